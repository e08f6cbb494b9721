"""The sections that are tables: summary, all settings, exports, trials without a result, and the setup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from markupsafe import Markup

from orchestrator.analysis.intervals import dense_interval, interval, test_set_width
from orchestrator.analysis.notes import StoppedSetting, dense_marks, legend, stopped_note, stopped_settings
from orchestrator.analysis.run_ids import COMMAND, runs_table
from orchestrator.analysis.settings import axis_columns, dense_sets, is_by_criterion
from orchestrator.analysis.tables import caption, search_table, sparsest_table
from orchestrator.report.components import (
    Block,
    Code,
    Details,
    Facts,
    Heading,
    Paragraph,
    Section,
    TableBlock,
    from_table,
    note,
)
from orchestrator.report.data import ReportData, ReportOptions, Setting
from orchestrator.storage.runs import NORM_IMAGES
from pruning.user_code import own_code

MAX_METHODS, MAX_POINTS, MAX_SETTINGS = 60, 12, 300
EXPORT_COLUMNS = 3  # to the right: seed, accuracy and command
MAX_REASONS, MAX_SEED_REASONS = 30, 3
MAX_VALUES = 24
SETTINGS_NOTE = (
    "Accuracy is {caption}. Sparsity counts what is dead, by choice or because all that it reads or all "
    "that reads it is dead; chosen is what the masks took away by themselves. MACs are those of a machine "
    "that skips dead weights, as a share of the dense "
    "network's; cut is what is left after dead channels are taken out for good. Epochs and GFLOPs count "
    "all training since the first epoch of the dense network; effective GFLOPs leave out what the masks of "
    "the time had taken away."
)


def summary_section(data: ReportData, options: ReportOptions) -> Section:
    """List the highest sparsity of each method within the tolerance, or the best points of a search."""
    blocks: list[Block]
    if data.is_search:
        table = search_table(data.results, data.results.attrs["objectives"], method=options.method)
        title = f"{table.title[0].upper()}{table.title[1:]}"
        blocks = [Paragraph(f"{title}."), from_table(table, has_network=True, max_rows=MAX_POINTS)]
    else:
        table = sparsest_table(
            data.results, tolerance=options.tolerance, method=options.method, earlier=data.earlier
        )
        blocks = [
            Heading(f"{table.title[0].upper()}{table.title[1:]}"),
            from_table(table, has_network=data.has_networks, max_rows=MAX_METHODS),
            note(table.note),
        ]
    return Section("short", "Summary", blocks)


def settings_section(data: ReportData, options: ReportOptions) -> Section:
    """List the numbers behind the charts, and say how to read them."""
    settings = data.settings[:MAX_SETTINGS]
    intervals = [interval(s.rows["final/accuracy"].tolist(), method=options.method) for s in settings]
    reading = SETTINGS_NOTE.format(caption=caption(intervals, options.method))
    signs = legend(setting.marks + dense_marks(setting.rows) for setting in settings)
    blocks: list[Block] = [
        note(f"{reading} {_test_set_note(data)}".strip()),
        note(f"{signs}." if signs else ""),
        note(stopped_note(data.results)),
    ]
    for panel in dict.fromkeys(setting.panel for setting in settings):
        group = [setting for setting in settings if setting.panel == panel]
        rows = [*_dense_rows(group, options), *(_setting_row(setting, options) for setting in group)]
        # Drop the columns that no run has a value for.
        header = [n for n in rows[-1] if n in ("method", "amount") or any(row.get(n) for row in rows)]
        cells = [[row.get(name, "") for name in header] for row in rows]
        blocks += [Heading(panel, level=4), TableBlock(header, cells)]
    if len(data.settings) > MAX_SETTINGS:
        count = f"The first {MAX_SETTINGS} of {len(data.settings):,} settings."
        command = f"orchestrate compare {data.name} --csv"
        blocks.append(note(Markup("{} All of them: <code>{}</code>").format(count, command)))
    return Section("settings", "All settings", blocks)


def exports_section(data: ReportData) -> Section | None:
    """List for each setting its most accurate run on validation images, and how it is exported."""
    table = runs_table(data.results)
    if table is None:
        return None
    best = f"{COMMAND} {data.name} --best"
    blocks: list[Block] = [
        Paragraph("The most accurate network on validation images, or the smallest nearly as accurate:"),
        Code(f"{best}\n{best} --within 1%"),
        TableBlock(table.header, table.rows, len(table.header) - EXPORT_COLUMNS, MAX_SETTINGS, "settings"),
        note(table.note),
    ]
    return Section("exports", "Export a network", blocks)


def _test_set_note(data: ReportData) -> str:
    """Return how far the size of the test sets alone determines an accuracy, or ""."""
    texts = []
    for dataset, images in data.test_image_counts.items():
        dense = float(data.finished.loc[data.finished["dataset"] == dataset, "ipa/accuracy"].mean())
        width = f"{100 * dense:.1f}% is ± {test_set_width(dense, images):.1f}"
        texts.append(f"{dataset} has {images:,} test images, by which alone {width}")
    return (
        f"{'; '.join(texts)} points: no number of seeds narrows that, though pairs share it." if texts else ""
    )


def _dense_rows(settings: Sequence[Setting], options: ReportOptions) -> Iterator[dict[str, str]]:
    """Yield a row for each set of dense networks behind the settings."""
    for _, rows in dense_sets([setting.rows for setting in settings]):
        if (dense := dense_interval(rows, method=options.method)) is not None:
            yield {"method": "dense", "accuracy": f"{dense}{dense_marks(rows)}", "seeds": str(dense.count)}


def _setting_row(setting: Setting, options: ReportOptions) -> dict[str, str]:
    accuracy = interval(setting.rows["final/accuracy"].tolist(), method=options.method)
    dense_macs = setting.mean("final/macs_dense")
    return {
        "method": setting.name,
        "amount": setting.amount_text,
        "accuracy": f"{accuracy}{setting.marks}",
        "loss": f"{setting.mean('final/loss'):.3f}",
        "sparsity, %": _percent(setting, "sparsity"),
        "chosen, %": _percent(setting, "sparsity_chosen"),
        "MACs, %": _percent(setting, "macs_effective", of=dense_macs),
        "MACs chosen, %": _percent(setting, "macs_effective_chosen", of=dense_macs),
        "MACs cut, %": _percent(setting, "macs_physical", of=dense_macs),
        "parameters cut": f"{setting.mean('final/parameters_physical'):,.0f}",
        "epochs": f"{setting.mean('final/epochs'):g}",
        "GFLOPs": f"{setting.mean('final/train_flops') / 1e9:,.3g}",
        "effective GFLOPs": _gflops(setting, "train_flops_effective"),
        "seeds": str(len(setting.rows)),
    }


def _gflops(setting: Setting, metric: str) -> str:
    """Return a mean in 1e9 FLOPs, or "" for runs from before it was measured."""
    name = f"final/{metric}"
    is_missing = name not in setting.rows or setting.rows[name].isna().any()
    return "" if is_missing else f"{setting.mean(name) / 1e9:,.3g}"


def _percent(setting: Setting, metric: str, *, of: float = 1) -> str:
    """Return a mean as a percentage of a total, or "" for runs from before it was measured."""
    name = f"final/{metric}"
    if name not in setting.rows or setting.rows[name].isna().any():
        return ""
    return f"{100 * setting.mean(name) / of:.2f}"


def outcomes_section(data: ReportData) -> Section:
    """Count how the trials of the plan ended: what failed, was stopped or left out, and why."""
    status = data.results["status"]
    counts = Counter(status)
    failed = data.results[data.results["status"] == "failed"]
    excluded = [(str(item["reason"]), int(item["count"])) for item in data.loaded.plan.get("excluded", ())]
    reasons = {
        "Failed": Counter(str(reason) for reason in failed["reason"]).most_common(),
        "Never tried: excluded from the plan": excluded,
        "Finished, with notes": Counter(str(text) for text in data.finished["notes"] if text).most_common(),
    }
    if not any(reasons.values()) and not counts["missing"] and not counts["stopped"]:
        text = f"All {len(status):,} trials of the plan have finished, and nothing was left out."
        return Section("ends", "Failed, stopped and excluded trials", [Paragraph(text)])
    line = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    blocks: list[Block] = [Paragraph(f"{len(status):,} trials were planned: {line}.")]
    if counts["missing"]:
        blocks.append(note("What is missing runs when the sweep is started again."))
    if stopped := list(stopped_settings(data.results)):
        rows = [_stopped_row(setting) for setting in stopped]
        header = ["setting", "seeds stopped", "why"]
        table = TableBlock(header, rows, max_rows=MAX_REASONS, row_name="settings")
        blocks += [Heading("StoppedSetting early"), Paragraph(stopped_note(data.results)), table]
    for title, pairs in reasons.items():
        if pairs:
            rows = [[reason, f"{count:,}"] for reason, count in pairs]
            table = TableBlock(["reason", "trials"], rows, max_rows=MAX_REASONS, row_name="reasons")
            blocks += [Heading(title), table]
    return Section("ends", "Failed, stopped and excluded trials", blocks)


def _stopped_row(setting: StoppedSetting) -> list[str]:
    """Return a setting, how many of its seeds were stopped, and the reasons of the first of them."""
    stopped = setting.rows[setting.rows["status"] == "stopped"].sort_values("seed")
    pairs = zip(stopped["seed"], stopped["reason"], strict=True)
    reasons = [f"seed {seed}: {reason}" for seed, reason in pairs]
    hidden = len(reasons) - MAX_SEED_REASONS
    text = "; ".join(reasons[:MAX_SEED_REASONS]) + (f"; and {hidden} more" if hidden > 0 else "")
    return [setting.label, f"{len(stopped)} of {len(setting.rows)}", text]


def setup_section(data: ReportData) -> Section:
    """List what was swept and with what: axes, command, space file, versions and machine."""
    results = data.results
    # `technique` repeats the criterion where that is an axis.
    has_criterion = is_by_criterion(results)
    columns = [name for name in axis_columns(results) if name != "technique" or not has_criterion]
    axes = [name for name in (*columns, "seed") if results[name].nunique(dropna=False) > 1]
    fixed = [[name, str(results[name].iloc[0])] for name in columns if name not in axes]
    blocks: list[Block] = [
        TableBlock(["axis", "values"], [[name, _values_text(data, name)] for name in axes], text_columns=2),
        Details("What was the same for all", [TableBlock(["field", "value"], fixed, text_columns=2)]),
    ]
    if data.command:
        blocks += [Heading("To repeat it"), Code(data.command)]
    else:
        blocks.append(note("The command that ran it was not recorded."))
    if data.space_text:
        title = "The space file, before what the command sets in it"
        blocks.append(Details(title, [Code(data.space_text)]))
    prefix = "package."
    versions = {k.removeprefix(prefix): v for k, v in data.environment.items() if k.startswith(prefix)}
    machine = {k: v for k, v in data.environment.items() if not k.startswith(prefix)}
    numerics = {
        name.removeprefix("numerics."): ", ".join(map(str, results[name].drop_duplicates()))
        for name in results.columns
        if name.startswith("numerics.")
    }
    blocks += [Heading("Environment"), Facts({**machine, **numerics}), Details("Versions", [Facts(versions)])]
    if text := _norm_text(data):
        blocks.append(note(text))
    return Section("setup", "Setup", blocks)


def _norm_text(data: ReportData) -> str:
    """Return a sentence on trainings whose batch norms saw less than a batch; "" where there are none."""
    runs = [run for run in data.loaded.runs.values() if NORM_IMAGES in run.tags]
    kinds = dict.fromkeys((run.params.get("model", ""), run.tags[NORM_IMAGES]) for run in runs)
    texts = (f"{own_code.shown(model)} ({images} images)" for model, images in kinds)
    names = ", ".join(texts)
    return names and f"Batch norms took their statistics over a part of each batch: {names}."


def _values_text(data: ReportData, column: str) -> str:
    values = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for value in data.results[column].drop_duplicates()
        if value == value and value is not None
    ]
    hidden = len(values) - MAX_VALUES
    return ", ".join(values[:MAX_VALUES]) + (f", and {hidden:,} more" if hidden > 0 else "")


def headline(data: ReportData) -> Facts:
    """Return the facts at the head of the page."""
    results, run = data.results, data.run
    values: dict[str, object] = {"network": data.panels[0]} if len(data.panels) == 1 else {}
    values |= {"trials": f"{len(results):,}", "finished": f"{len(data.finished):,}"}
    values |= {"reused": f"{data.reused_count:,}"} if data.reused_count else {}
    values["dense trainings"] = f"{int(results['dense_key'].nunique()):,}"
    values["seeds"] = f"{int(results['seed'].nunique())}"
    values["begun"] = datetime.fromtimestamp(run.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if run.end_ms:
        values["elapsed"] = str(timedelta(seconds=(run.end_ms - run.start_ms) // 1000))
    recorded = {"processor": "processor", "commit": "revision"}
    values |= {name: data.environment[key] for key, name in recorded.items() if key in data.environment}
    return Facts(values)
