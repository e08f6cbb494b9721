"""Layer by layer and class by class, as heat maps: sparsity, sensitivity where it was measured, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.notes import legend
from orchestrator.analysis.sensitivity import (
    NOTE,
    PARTS,
    NetworkSensitivity,
    SensitivityGroup,
    group_sensitivities,
    sensitivity_table,
)
from orchestrator.analysis.setting_means import sparsest_within
from orchestrator.config import dense_from_json
from orchestrator.formatting import format_percent
from orchestrator.report.components import Block, Heading, HeatMap, Paragraph, Section, TableBlock, note
from orchestrator.report.data import HeatMapGroup, Json, ReportData, ReportOptions, Setting
from orchestrator.tracking.result_metrics import CONFIG
from orchestrator.tracking.sensitivities import iter_sensitivities

MAX_CLASSES = 20
FORGOTTEN = 0.5  # of what the dense network gets right
MAX_NETWORKS, MAX_MEASURED, MAX_ROWS = 24, 6, 130


def layers_section(data: ReportData) -> Section | None:
    """Map the sparsity of each layer; None where no run has recorded its layers.

    One file per network is read, for the order of its layers.
    """
    groups = data.heat_map_groups()
    weights: dict[str, dict[str, int]] = {}  # panel -> layer -> its weights
    for group in groups:
        if group.panel not in weights:
            weights[group.panel] = _load_layer_weights(data, group.settings[0])
    blocks = [block for group in groups for block in _layer_blocks(group, weights[group.panel])]
    if not blocks:
        return None
    text = "Sparsity of each layer in %, means over seeds, from the input to the output. "
    signs = legend(name for group in groups for name in group.column_names)
    notes = [Paragraph(text + data.heat_map_limits), note(f"{signs}." if signs else "")]
    return Section("layers", "Layer by layer", [*notes, *blocks])


def _load_layer_weights(data: ReportData, setting: Setting) -> dict[str, int]:
    """Return layer -> its number of weights, in the order of the network."""
    table: Json | None = data.load_json(data.trial_run(setting.trials[0]), "layers.json")
    if table is None:
        return {}
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    return {row["layer"]: row["weights"] for row in rows if row["weights"]}  # some layers only have MACs


def _layer_blocks(group: HeatMapGroup, weights: dict[str, int]) -> list[Block]:
    if not weights:
        return []
    rows = [
        (
            Markup("{} <small>{}</small>").format(layer, f"{count:,}"),
            [s.mean(f"layers/{layer}") if f"layers/{layer}" in s.rows else None for s in group.settings],
        )
        for layer, count in weights.items()
    ]
    heat_map = HeatMap("layer, weights", group.axis, group.column_names, rows, row_name="layers")
    return [Heading(group.title, level=4), heat_map]


@dataclass(frozen=True)
class ClassAccuracies:
    """The class accuracies of a setting's trial with the lowest seed, and of its dense network.

    They are None for a class without test images.
    """

    setting: Setting
    column_name: str
    seed: int
    pruned: tuple[float | None, ...]
    dense: tuple[float | None, ...]
    accuracy: float
    is_sparsest: bool  # of its method within the tolerance, by validation accuracy
    names: tuple[str, ...]  # of the classes; their numbers where they are not recorded

    def loss(self, number: int) -> float:
        return (self.dense[number] or 0.0) - (self.pruned[number] or 0.0)


def classes_section(data: ReportData, options: ReportOptions) -> Section | None:
    """Map the accuracy of each class; None where no confusion matrix is in the store.

    One trial's file is read for each setting in the maps, and its dense network's.
    """
    groups = data.heat_map_groups()
    maps: list[Block] = []
    rows: list[list[str]] = []
    names_of: dict[str, tuple[str, ...]] = {}
    for group in groups:
        if accuracies := _load_class_accuracies(data, group, options.tolerance, names_of):
            maps += _class_blocks(group, accuracies)
            rows += _table_rows(group, accuracies)
    if not maps:
        return None
    within_text = f"within {100 * options.tolerance:g} of dense by validation accuracy"
    introduction = (
        "Of the test images of each class, how many each network gets right, in %; one seed, the lowest that "
        f"has finished. Framed is the method's sparsest network {within_text}; the list has it, and the next "
        "sparser one: what was lost first. Where there is none, it has the least sparse one. "
        f"{data.heat_map_limits}"
    )
    definition = (
        f"A class is forgotten if less than {100 * FORGOTTEN:.0f}% is left of what the dense network gets "
        "right."
    )
    header = ["method", "network", "amount", "accuracy, %", "dense, %", "worst class, %", "forgotten classes"]
    names = [name for group in groups for name in group.column_names]
    signs = legend([*names, *(text for row in rows for text in row)])
    blocks: list[Block] = [
        Paragraph(introduction),
        TableBlock(header, rows, text_columns=2),
        note(f"{definition} {signs}".strip()),
        *maps,
    ]
    return Section("classes", "Class by class", blocks)


def class_accuracies(confusion: Sequence[Sequence[int]]) -> tuple[float | None, ...]:
    """Return the fraction of each true class on the diagonal of a matrix [true, predicted].

    It is None for a class without images.
    """
    return tuple(row[n] / sum(row) if sum(row) else None for n, row in enumerate(confusion))


def _load_class_accuracies(
    data: ReportData, group: HeatMapGroup, tolerance: float, names: dict[str, tuple[str, ...]]
) -> list[ClassAccuracies]:
    """Load a group's matrices; `names` has the classes of the data sets, read once each."""
    sparsest = _sparsest_keys(group, tolerance)
    accuracies = []
    for setting, name in zip(group.settings, group.column_names, strict=True):
        row = setting.trials[0]
        pruned: Json | None = data.load_json(data.trial_run(row), "confusion.json")
        dense: Json | None = data.load_json(data.dense_run(row), "confusion.json")
        if pruned is not None and dense is not None:
            dataset = str(row["dataset"])
            if dataset not in names:
                classes: Json | None = data.load_json(data.trial_run(row), "classes.json")
                names[dataset] = _class_names(classes, len(pruned))
            accuracies.append(
                ClassAccuracies(
                    setting,
                    name,
                    int(row["seed"]),
                    class_accuracies(pruned),
                    class_accuracies(dense),
                    float(row["final/accuracy"]),
                    row["key"] in sparsest,
                    names[dataset],
                )
            )
    return accuracies


def _class_names(classes: Json | None, count: int) -> tuple[str, ...]:
    """Return the names in the first column of classes.json, or the numbers of the classes without it."""
    names = tuple(str(row[0]) for row in (classes or {}).get("data", ()))
    return names if len(names) == count else tuple(map(str, range(count)))


def _sparsest_keys(group: HeatMapGroup, tolerance: float) -> set[str]:
    """Return the keys of each method's sparsest trials within the tolerance, of its lowest seed."""
    import pandas

    keys: set[str] = set()
    for method in dict.fromkeys(setting.method for setting in group.settings):
        rows = pandas.concat([setting.rows for setting in group.settings if setting.method == method])
        lowest = rows[rows["seed"] == rows["seed"].min()]
        keys |= set(lowest.loc[sparsest_within(lowest, tolerance), "key"])
    return keys


def _class_blocks(group: HeatMapGroup, accuracies: Sequence[ClassAccuracies]) -> list[Block]:
    dense = accuracies[0].dense
    shown = list(range(len(dense)))
    if len(dense) > MAX_CLASSES:  # those that lost most, over all settings
        losses = [sum(entry.loss(number) for entry in accuracies) for number in shown]
        shown = sorted(sorted(shown, key=lambda number: -losses[number])[:MAX_CLASSES])
    names = accuracies[0].names
    rows = [(f"class {names[n]}", [dense[n], *(entry.pruned[n] for entry in accuracies)]) for n in shown]
    hidden = len(dense) - len(shown)
    heat_map = HeatMap(
        "class",
        f"{group.axis} (seed {accuracies[0].seed})",
        ["dense", *(entry.column_name for entry in accuracies)],
        rows,
        framed=[column for column, entry in enumerate(accuracies, start=1) if entry.is_sparsest],
    )
    limit = f"The {len(shown)} classes that lost most; {hidden} others." if hidden else ""
    return [Heading(group.title, level=4), heat_map, note(limit)]


def _table_rows(group: HeatMapGroup, accuracies: Sequence[ClassAccuracies]) -> list[list[str]]:
    """Return each method's framed trial and the next sparser one, or, without a framed one, its first."""
    rows = []
    for method in dict.fromkeys(entry.setting.method for entry in accuracies):
        entries = [entry for entry in accuracies if entry.setting.method == method]
        framed = next((n for n, entry in enumerate(entries) if entry.is_sparsest), None)
        listed = entries[:1] if framed is None else entries[framed : framed + 2]
        rows += [_table_row(group, entry) for entry in listed]
    return rows


def _table_row(group: HeatMapGroup, entry: ClassAccuracies) -> list[str]:
    tested = [number for number, value in enumerate(entry.pruned) if value is not None]
    pruned = {number: entry.pruned[number] or 0.0 for number in tested}
    dense = {number: entry.dense[number] or 0.0 for number in tested}
    worst = min(tested, key=lambda number: pruned[number])
    forgotten = [number for number in tested if pruned[number] < FORGOTTEN * dense[number]]
    return [
        entry.setting.method,
        group.panel,
        entry.setting.amount_text,
        f"{100 * entry.accuracy:.1f}{entry.setting.marks}",
        f"{100 * sum(dense.values()) / len(tested):.1f}",
        f"{entry.names[worst]}: {100 * pruned[worst]:.0f}, dense {100 * dense[worst]:.0f}",
        ", ".join(entry.names[number] for number in forgotten) or "none",
    ]


def sensitivity_section(data: ReportData) -> Section | None:
    """Map the accuracy after parts of each layer are gone; None where nothing was measured.

    At most MAX_NETWORKS dense networks are looked at, by the tags of their runs; one file is read for each
    measurement, and one for each network that has any.
    """
    networks = list(_measured_networks(data))
    groups = group_sensitivities(networks)
    if not groups:
        return None
    limit = f" Shown are the first {MAX_MEASURED} of {len(groups)}." if len(groups) > MAX_MEASURED else ""
    blocks: list[Block] = [Paragraph(NOTE + limit)]
    for group in groups[:MAX_MEASURED]:
        blocks += _sensitivity_blocks(group)
    return Section("sensitivity", "Sensitivity of layers", blocks)


def _measured_networks(data: ReportData) -> Iterator[NetworkSensitivity]:
    rows = data.finished.drop_duplicates("dense_key").head(MAX_NETWORKS)
    for key in rows["dense_key"]:
        run = data.loaded.runs.get(str(key))
        measured = [] if run is None else list(iter_sensitivities(data.tracker, run))
        config = data.load_json(run, CONFIG) if measured else None
        if run is not None and config is not None:
            dense = dense_from_json(config)
            yield from (NetworkSensitivity(run.run_id, dense, one) for one in measured)


def _sensitivity_blocks(group: SensitivityGroup) -> Iterator[Block]:
    yield Heading(group.title, level=4)
    rows = [
        (
            Markup("{} <small>{}</small>").format(row.name, f"{row.size:,}"),
            [None if (change := row.changes[part]) is None else group.accuracy + change for part in PARTS],
        )
        for row in group.rows
    ]
    columns = [format_percent(part).removesuffix("%") for part in PARTS]
    axis = f"accuracy on validation images, %, by the part that is removed, %; dense {group.accuracy:.1%}"
    yield HeatMap(f"layer, {group.unit}s", axis, columns, rows, max_rows=MAX_ROWS, row_name="layers")
    table = sensitivity_table(group)
    # The map above has the accuracies.
    losses = [number for number, name in enumerate(table.header) if not name.startswith("accuracy")]
    texts = [[row[number] for number in losses] for row in table.rows]
    header = [table.header[number] for number in losses]
    yield TableBlock(header, texts, max_rows=MAX_ROWS, row_name="layers")
