"""Accuracy and the PQ index from round to round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.notes import SURVIVORS
from orchestrator.analysis.plots import spread
from orchestrator.report.accuracy import ACCURACY
from orchestrator.report.charts import (
    Axis,
    Chart,
    Figure,
    LineStyle,
    Point,
    can_label_ends,
    hover_text,
    line_chart,
    make_layout,
)
from orchestrator.report.components import Block, Charts, Heading, Legend, Paragraph, Section
from orchestrator.report.data import MAX_METHODS, MAX_PANELS, ReportData

MAX_TRIALS = 60
MIN_ROUNDS = 3
LARGE, SMALL = 400, 250
NOT_SEEN = "phase not seen"
# Phase -> symbol and glyph. The names are those of pruning.pq_index, which would import torch.
PHASES = {
    NOT_SEEN: ("circle-open", "○"),
    "regularising": ("circle", "●"),
    "underfitting": ("square", "■"),
    "collapsing": ("x", "✖"),
}
MEASUREMENTS = ("sparsity", "accuracy", "val_accuracy", "compression", "pq_index")
SURVIVORS_NOTE = (
    "Hollow points (§) are means of survivors: other seeds were stopped early, before that round. "
    "Rounds of trials that were stopped later count. "
)
Round = Mapping[str, Any]  # measurement -> value, and the phase


@dataclass(frozen=True)
class TrialCurve:
    """A trial, a row of `results`, with its rounds; the first is the dense network."""

    panel: str
    method: str
    row: Mapping[str, Any]
    rounds: tuple[Round, ...]

    @property
    def was_stopped(self) -> bool:
        return bool(self.row["status"] == "stopped")

    def values(self, measurement: str) -> list[float]:
        """Return a measurement along the rounds."""
        return [entry[measurement] for entry in self.rounds]


def rounds_section(data: ReportData) -> Section | None:
    """Draw accuracy and PQ index round by round; None where no trial has three rounds.

    At most MAX_TRIALS files are read.
    """
    candidates, total = _candidates(data)
    read = [curve for candidate in candidates if (curve := _load_curve(data, *candidate)) is not None]
    finished = {(curve.panel, curve.method) for curve in read if not curve.was_stopped}
    curves = [curve for curve in read if (curve.panel, curve.method) in finished]
    if not curves:
        return None
    blocks: list[Block] = [_introduction(curves, total)]
    for number, panel in enumerate(dict.fromkeys(curve.panel for curve in curves)):
        blocks += _panel_blocks(data, number, panel, [curve for curve in curves if curve.panel == panel])
    return Section("rounds", "Round by round", blocks)


def _introduction(curves: Sequence[TrialCurve], total: int) -> Paragraph:
    survivors = SURVIVORS_NOTE if any(curve.was_stopped for curve in curves) else ""
    limit = (
        f" Read were {len(curves)} of {total} trials, the lowest seeds first." if len(curves) < total else ""
    )
    return Paragraph(
        "Accuracy after each round against what remains, means over the seeds that ran the round. "
        f"{survivors}The PQ index (p = 0.5, q = 1) of "
        "the retrained network falls while pruning regularises, rises when it begins to underfit, and falls "
        "again when it collapses (Diao et al., ICLR 2023); where no turning point is confirmed, no phase is "
        f"claimed.{limit}"
    )


def _panel_blocks(data: ReportData, number: int, panel: str, curves: Sequence[TrialCurve]) -> Iterator[Block]:
    by_method: dict[str, list[TrialCurve]] = {}
    for curve in curves:
        by_method.setdefault(curve.method, []).append(curve)
    yield Heading(panel)
    if not can_label_ends(list(by_method)):
        yield Legend({method: data.styles[method] for method in by_method})
    figure = _accuracy_figure(by_method, data.styles)
    label = f"Test accuracy against sparsity, round by round: {panel}"
    yield Charts([Chart(f"rounds-accuracy-{number}", figure, label, LARGE, unit=ACCURACY)])
    yield Heading("PQ index, a line per seed", level=4)
    yield Legend({phase: glyph for phase, (_, glyph) in PHASES.items()})
    values = [value for curve in curves for value in curve.values("pq_index")]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    axis = Axis(range=(min(values) - margin, max(values) + margin))  # one for all methods, to compare them
    charts = []
    for index, (method, group) in enumerate(by_method.items()):
        figure = {
            "data": [_pq_trace(curve, data.styles[method]) for curve in group],
            "layout": make_layout(Axis("round (0: dense)"), axis),
        }
        label = f"PQ index over rounds: {method}, {panel}"
        charts.append(Chart(f"rounds-pq-{number}-{index}", figure, label, SMALL, method, "PQ index"))
    yield Charts(charts)


def _candidates(data: ReportData) -> tuple[list[tuple[str, str, Mapping[str, Any]]], int]:
    """Return (panel, method, row) of the trials to read, and how many there would be without a limit."""
    candidates: list[tuple[str, str, Mapping[str, Any]]] = []
    for panel in data.panels[:MAX_PANELS]:
        for method in data.methods_of(panel):
            sparsest = data.settings_of(panel, method)[-1]  # it has the most rounds
            if not str(sparsest.rows["schedule"].iloc[0]).startswith("one_shot"):
                trials = (*sparsest.trials, *data.stopped_trials(sparsest))
                candidates += [(panel, method, row) for row in trials]
    methods = list(dict.fromkeys(method for _, method, _ in candidates))[:MAX_METHODS]
    allowed = [n for n, (_, method, _) in enumerate(candidates) if method in methods]
    # The lowest seeds first; the sort is stable, so that a seed's trials stay in the order of the plan.
    lowest_seeds = sorted(allowed, key=lambda n: candidates[n][2]["seed"])[:MAX_TRIALS]
    return [candidates[n] for n in sorted(lowest_seeds)], len(candidates)


def _load_curve(data: ReportData, panel: str, method: str, row: Mapping[str, Any]) -> TrialCurve | None:
    run = data.trial_run(row)
    table = data.load_json(run, "rounds.json")
    is_stopped = row["status"] == "stopped"
    if run is None or table is None or not table["data"]:
        return None
    if not is_stopped and len(table["data"]) < MIN_ROUNDS:
        return None
    pruned = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    # `results` has no measurements of a stopped trial; its run has those of its dense network.
    metrics = run.metrics if is_stopped else row
    dense = {name: metrics[f"ipa/{name}"] for name in MEASUREMENTS}
    return TrialCurve(panel, method, row, ({**dense, "phase": NOT_SEEN}, *_with_phases(dense, pruned)))


def _with_phases(dense: Round, pruned: Sequence[Round]) -> Sequence[Round]:
    """Return the rounds with their phases, which the first versions did not record."""
    if "phase" in pruned[0]:
        return pruned
    from pruning.pq_index import find_phases

    names = find_phases([dense["pq_index"], *(entry["pq_index"] for entry in pruned)])
    return [{**entry, "phase": name} for entry, name in zip(pruned, names[1:], strict=True)]


def _accuracy_figure(
    by_method: Mapping[str, Sequence[TrialCurve]], styles: Mapping[str, LineStyle]
) -> Figure:
    lines = {method: list(_mean_points(curves)) for method, curves in by_method.items()}
    lowest = min(min(point.bar or (point.y,)) for points in lines.values() for point in points)
    floor = 10 * ((lowest - 2) // 10)
    return line_chart(
        lines,
        styles,
        x=Axis("weights that remain, %", is_log=True, is_reversed=True),
        y=Axis(ACCURACY, range=(floor, 100.5) if floor >= 50 else (0.0, 102.0)),
        height=LARGE,
        has_end_labels=can_label_ends(list(by_method)),
    )


def _mean_points(curves: Sequence[TrialCurve]) -> Iterator[Point]:
    """Yield the mean of each round, over the trials that ran it, at the percent of weights that remain.

    A point is hollow where other trials were stopped before its round.
    """
    for number in range(max(len(curve.rounds) for curve in curves)):
        survivors = [curve for curve in curves if number < len(curve.rounds)]
        mean, low, high = (100 * end for end in spread([c.values("accuracy")[number] for c in survivors]))
        x = 100 - 100 * sum(curve.values("sparsity")[number] for curve in survivors) / len(survivors)
        if x <= 0:  # a logarithmic axis has no place for it
            return
        lines = [f"round {number}" if number else "dense", f"{x:.1f}% remain", f"accuracy {mean:.1f}%"]
        is_hollow = any(curve.was_stopped for curve in curves if number >= len(curve.rounds))
        if is_hollow:
            count = f"{len(survivors)} of {len(curves)} seeds"
            lines.append(f"{SURVIVORS} {count}, the others were stopped before it")
        yield Point(x, mean, (low, high) if len(survivors) > 1 else None, tuple(lines), is_hollow)


def _pq_trace(curve: TrialCurve, style: LineStyle) -> Figure:
    seed = int(curve.row["seed"])
    return {
        "type": "scatter",
        "x": list(range(len(curve.rounds))),
        "y": curve.values("pq_index"),
        "text": [
            hover_text((f"seed {seed}, round {n}", f"PQ index {entry['pq_index']:.3f}", entry["phase"]))
            for n, entry in enumerate(curve.rounds)
        ],
        "line": {"color": style.colour, "width": 1},
        "marker": {
            "symbol": [PHASES.get(entry["phase"], PHASES[NOT_SEEN])[0] for entry in curve.rounds],
            "size": 6,
            "color": style.colour,
        },
    }
