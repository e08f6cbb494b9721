"""Sensitivities as tables and a picture: what removing parts of one layer or group alone costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.plots import MARKERS, OKABE_ITO
from orchestrator.analysis.tables import Table
from orchestrator.config import DenseConfig
from orchestrator.errors import UsageError
from orchestrator.formatting import format_number, format_percent
from orchestrator.trial.params import params, without_defaults
from orchestrator.trial.sensitivity import LEVELS, Sensitivity
from pruning.user_code.own_code import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHOWN = (0.1, 0.3, 0.5)  # parts removed, in tables
PARTS = tuple(level for level in LEVELS if level < 1)
TENTH = 0.1
NOTE = (
    "Of one layer or group at a time, the part with the lowest scores is removed, without training; the rise "
    "of the loss and the points of accuracy are on validation images, the least sensitive layer first. A "
    "dash: the part is less than one unit."
)
MOST_GROUPS, MOST_LAYERS = 6, 120
ROW, WIDTH = 0.17, 6.0  # inches: the height of a layer, and the width
LINEAR_BELOW = 0.01  # of a rise in nats: the axis is logarithmic above


@dataclass(frozen=True)
class NetworkSensitivity:
    """What was measured of one dense network; `run_id` is its run."""

    run_id: str
    dense: DenseConfig
    sensitivity: Sensitivity


@dataclass(frozen=True)
class GroupMeans:
    """A layer or group: means over networks of the rise of the loss, and the change of the accuracy, by part.

    None where a part is less than a unit.
    """

    name: str
    size: int
    macs: int
    rises: Mapping[float, float | None]
    changes: Mapping[float, float | None]

    @property
    def rise(self) -> float:
        """The rise after a tenth, by which groups are sorted; infinite where that is less than one unit."""
        value = self.rises[TENTH]
        return math.inf if value is None else value


@dataclass(frozen=True)
class SensitivityGroup:
    """Networks that differ in their seed alone, and what a criterion would remove of them."""

    title: str
    unit: str
    loss: float
    accuracy: float
    rows: tuple[GroupMeans, ...]


def group_sensitivities(networks: Sequence[NetworkSensitivity]) -> list[SensitivityGroup]:
    """Return the means over seeds, in the order of the networks; rows are in the order of the network."""
    alike: dict[tuple[object, ...], list[NetworkSensitivity]] = {}
    for network in networks:
        question = network.sensitivity.question
        what = (question.criterion, question.granularity, question.protect)
        alike.setdefault((replace(network.dense, seed=0), *what), []).append(network)
    return [_means(members) for members in alike.values()]


def _means(members: Sequence[NetworkSensitivity]) -> SensitivityGroup:
    dense, sensitivities = members[0].dense, [member.sensitivity for member in members]
    question = sensitivities[0].question
    values, count = params(dense), len(members)
    granularity = without_defaults("granularity", question.granularity)
    what = f"{without_defaults('criterion', question.criterion)}, {granularity}"
    first = [sensitivity.groups[0] for sensitivity in sensitivities if sensitivity.groups]
    networks = f"{count} networks" if count > 1 else f"seed {dense.seed}"
    return SensitivityGroup(
        f"{shown(str(values['model']))} on {shown(str(values['dataset']))}, {what}, {networks}",
        granularity,
        fmean(group.losses[0] for group in first) if first else math.nan,
        fmean(group.accuracies[0] for group in first) if first else math.nan,
        tuple(_group_means(number, sensitivities) for number in range(len(sensitivities[0].groups))),
    )


def _group_means(number: int, sensitivities: Sequence[Sensitivity]) -> GroupMeans:
    groups = [sensitivity.groups[number] for sensitivity in sensitivities]
    rises: dict[float, float | None] = {}
    changes: dict[float, float | None] = {}
    for part in PARTS:
        pairs = [(group, at) for group in groups if (at := group.at(part)) is not None]
        rises[part] = fmean(at[0] - group.losses[0] for group, at in pairs) if pairs else None
        changes[part] = fmean(at[1] - group.accuracies[0] for group, at in pairs) if pairs else None
    return GroupMeans(groups[0].name, groups[0].size, groups[0].macs, rises, changes)


def sensitivity_table(group: SensitivityGroup) -> Table:
    """Return the table of a group, the least sensitive layers first."""
    header = ["layer", f"{group.unit}s", "MACs"]
    header += [f"loss at -{format_percent(part)}" for part in SHOWN]
    header += [f"accuracy at -{format_percent(part)}" for part in SHOWN]
    rows = [
        [
            row.name,
            f"{row.size:,}",
            f"{row.macs:,}",
            *(_signed(row.rises[part], "{:+.4f}") for part in SHOWN),
            *(_signed(row.changes[part], "{:+.2f}", 100) for part in SHOWN),
        ]
        for row in sorted(group.rows, key=lambda row: row.rise)
    ]
    dense = f"dense: loss {format_number(group.loss)}, accuracy {group.accuracy:.2%}"
    return Table(f"{group.title}; {dense}", header, rows, NOTE)


def _signed(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(factor * value)


def sensitivity_records(networks: Sequence[NetworkSensitivity]) -> list[dict[str, Any]]:
    """Return a record for each group of each network; None where a part is no unit, or not finite."""
    return [record for network in networks for record in _records(network)]


def _records(network: NetworkSensitivity) -> Iterator[dict[str, Any]]:
    question, dense = network.sensitivity.question, network.dense
    values = params(dense)
    common = {
        "dense_run": network.run_id,
        "model": values["model"],
        "dataset": values["dataset"],
        "seed": dense.seed,
        "criterion": without_defaults("criterion", question.criterion),
        "granularity": without_defaults("granularity", question.granularity),
        "validation_images": network.sensitivity.images,
    }
    for group in network.sensitivity.groups:
        record = {**common, "layer": group.name, "size": group.size, "macs": group.macs}
        record |= {"loss": _finite(group.losses[0]), "accuracy": group.accuracies[0]}
        for part in PARTS:
            loss, accuracy = group.at(part) or (None, None)
            name = f"{100 * part:.0f}"
            record |= {f"loss_{name}": _finite(loss), f"accuracy_{name}": accuracy}
        yield record


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def make_sensitivity_figure(groups: Sequence[SensitivityGroup]) -> Figure:
    """Return a matplotlib figure with a panel for each group. UsageError for more than fit on a page."""
    import matplotlib
    from matplotlib.figure import Figure

    layers = [len(group.rows) for group in groups]
    if not groups or len(groups) > MOST_GROUPS or max(layers) > MOST_LAYERS:
        raise UsageError(
            f"--out: a picture has up to {MOST_GROUPS} networks of up to {MOST_LAYERS} layers; here are "
            f"{len(groups)} of up to {max(layers, default=0)}: name fewer runs, or write --csv"
        )
    sizes = [ROW * count + 0.9 for count in layers]
    with matplotlib.rc_context({"font.size": 8.0, "pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH, sum(sizes) + 0.3), layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": sizes})
        for axis, group in zip(axes.flat, groups, strict=True):
            _draw(axis, group)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    return figure


def _draw(axis: Axes, group: SensitivityGroup) -> None:
    axis.set_xmargin(0.06)
    for number, part in enumerate(SHOWN):
        points = [
            (rise, position)
            for position, row in enumerate(group.rows)
            if (rise := row.rises[part]) is not None and math.isfinite(rise)
        ]
        axis.plot(
            [rise for rise, _ in points],
            [position for _, position in points],
            linestyle="none",
            marker=MARKERS[number],
            markersize=4,
            clip_on=False,
            color=OKABE_ITO[number],
            label=f"{format_percent(part)} removed",
        )
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(group.rows)), [row.name for row in group.rows])
    axis.set_ylim(len(group.rows) - 0.5, -0.5)
    axis.set_xscale("symlog", linthresh=LINEAR_BELOW)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_xlabel("rise of the loss on validation images, in nats")
    axis.set_title(group.title, loc="left", fontsize=8)
