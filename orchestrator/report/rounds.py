"""What happened from round to round: accuracy, and the PQ index with its phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.notes import SURVIVORS
from orchestrator.analysis.plots import spread
from orchestrator.report.charts import Axis, Look, Spec, key, layout, looks
from orchestrator.report.curves import ACCURACY
from orchestrator.report.featured import MOST_METHODS, MOST_PANELS
from orchestrator.report.markup import Html, chart_text, joined, paragraph, tag
from orchestrator.report.plots import Mark, can_label, line_chart
from orchestrator.report.section import Section, place, side_by_side
from orchestrator.report.swept import Swept

MOST_TRIALS = 60
FEWEST_ROUNDS = 3
TALL, SMALL = 400, 250
NOT_SEEN = "phase not seen"
SURVIVED = (
    "Hollow points (§) are means of survivors: other seeds were stopped early, before that round. "
    "Rounds of trials that were stopped later count. "
)
# A phase, as pruning.phases names it -> how it is drawn; `pruning` brings torch, and is not imported.
PHASES = {
    NOT_SEEN: ("circle-open", "○"),
    "regularising": ("circle", "●"),
    "underfitting": ("square", "■"),
    "collapsing": ("x", "✖"),
}


MEASURED = ("sparsity", "accuracy", "val_accuracy", "compression", "pq_index")
Round = Mapping[str, Any]  # what was measured, by its name, and the phase


@dataclass(frozen=True)
class Walk:
    """A trial, a row of `results`, with its rounds, the dense network before them."""

    panel: str
    method: str
    row: Mapping[str, Any]
    steps: tuple[Round, ...]

    @property
    def seed(self) -> int:
        return int(self.row["seed"])

    def of(self, name: str) -> list[float]:
        """One measurement along the rounds."""
        return [step[name] for step in self.steps]

    @property
    def was_stopped(self) -> bool:
        return bool(self.row["status"] == "stopped")

    @property
    def phases(self) -> list[str]:
        return [step["phase"] for step in self.steps]

    def said(self, number: int) -> str:
        """What is told of a round when it is pointed at."""
        index = f"PQ index {self.of('pq_index')[number]:.3f}"
        lines = (f"seed {self.seed}, round {number}", index, self.phases[number])
        return "<br>".join(map(chart_text, lines))


def rounds(swept: Swept) -> Section | None:
    """None for a sweep whose trials have fewer than three rounds. At most 60 runs' files are read."""
    candidates, total = _candidates(swept)
    read = [walk for walk in (_walk(swept, *one) for one in candidates) if walk is not None]
    shown = {(walk.panel, walk.method) for walk in read if not walk.was_stopped}
    walks = [walk for walk in read if (walk.panel, walk.method) in shown]
    if not walks:
        return None
    styles = looks(swept.methods)
    charts: dict[str, Spec] = {}
    parts: list[Html] = [_introduction(walks, total)]
    for number, panel in enumerate(dict.fromkeys(walk.panel for walk in walks)):
        mine = [walk for walk in walks if walk.panel == panel]
        methods = list(dict.fromkeys(walk.method for walk in mine))
        accuracy_id = f"rounds-accuracy-{number}"
        charts[accuracy_id] = _accuracy_chart(mine, methods, styles)
        about = f"Test accuracy against sparsity, round by round: {panel}"
        parts.append(tag("h3", panel))
        if not can_label(methods):
            parts.append(key({name: styles[name] for name in methods}))
        parts.append(side_by_side(place(accuracy_id, label=about, height=TALL, unit=ACCURACY)))
        places = []
        for index, method in enumerate(methods):
            chart_id = f"rounds-pq-{number}-{index}"
            own = [walk for walk in mine if walk.method == method]
            charts[chart_id] = _pq_chart(own, styles[method], bounds=_pq_range(mine))
            about = f"PQ index over rounds: {method}, {panel}"
            places.append(place(chart_id, label=about, height=SMALL, title=method, unit="PQ index"))
        parts += [tag("h4", "PQ index, a line per seed"), _phase_key(), side_by_side(*places)]
    return Section("rounds", "Round by round", joined(parts), charts)


def _introduction(walks: Sequence[Walk], total: int) -> Html:
    read = len(walks)
    some = f" Read were {read} of {total} trials, the lowest seeds first." if read < total else ""
    stopped = SURVIVED if any(walk.was_stopped for walk in walks) else ""
    return paragraph(
        "Accuracy after each round against what remains, means over the seeds that ran the round. "
        f"{stopped}The PQ index (p = 0.5, q = 1) of "
        "the retrained network falls while pruning regularises, rises when it begins to underfit, and falls "
        "again when it collapses (Diao et al., ICLR 2023); where no turning point is confirmed, no phase is "
        "claimed." + some
    )


def _phase_key() -> Html:
    return tag("ul", *(tag("li", glyph, " ", name) for name, (_, glyph) in PHASES.items()), class_="key")


def _candidates(swept: Swept) -> tuple[list[tuple[str, str, Mapping[str, Any]]], int]:
    """(panel, method, row) of trials to read, the lowest seeds first, and how many there would be."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for panel in swept.panels[:MOST_PANELS]:
        for method in list(dict.fromkeys(cell.method for cell in swept.of(panel))):
            cell = swept.of(panel, method)[-1]  # the sparsest has the longest way
            if not str(cell.rows["schedule"].iloc[0]).startswith("one_shot"):
                rows = (*cell.trials, *swept.stopped_of(cell))
                found += [(panel, method, row) for row in rows]
    kept = set(list(dict.fromkeys(method for _, method, _ in found))[:MOST_METHODS])
    shown = [one for one in found if one[1] in kept]
    order = {seed: n for n, seed in enumerate(sorted({one[2]["seed"] for one in shown}))}
    shown.sort(key=lambda one: order[one[2]["seed"]])  # stable: in the order of the plan within a seed
    chosen = shown[:MOST_TRIALS]
    return sorted(chosen, key=lambda one: found.index(one)), len(found)


def _walk(swept: Swept, panel: str, method: str, row: Mapping[str, Any]) -> Walk | None:
    run = swept.run_of(row)
    table = swept.file(run, "rounds.json")
    if run is None or table is None or not table["data"]:
        return None
    if row["status"] != "stopped" and len(table["data"]) < FEWEST_ROUNDS:
        return None
    measured = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    # Of a stopped trial `results` have no measurements, its run has those of its dense network.
    before = run.metrics if row["status"] == "stopped" else row
    dense = {name: before[f"ipa/{name}"] for name in MEASURED}
    return Walk(panel, method, row, ({**dense, "phase": NOT_SEEN}, *_with_phases(dense, measured)))


def _with_phases(dense: Round, measured: Sequence[Round]) -> Sequence[Round]:
    """The rounds with their phases, which the first versions did not record."""
    if "phase" in measured[0]:
        return measured
    from pruning.phases import phases

    found = phases([dense["pq_index"], *(one["pq_index"] for one in measured)])
    return [{**one, "phase": phase} for one, phase in zip(measured, found[1:], strict=True)]


def _accuracy_chart(walks: Sequence[Walk], methods: Sequence[str], styles: Mapping[str, Look]) -> Spec:
    lines = {method: list(_means([walk for walk in walks if walk.method == method])) for method in methods}
    lowest = min(mark.y if mark.low is None else mark.low for marks in lines.values() for mark in marks)
    floor = 10 * ((lowest - 2) // 10)
    bounds = (floor, 100.5) if floor >= 50 else (0.0, 102.0)
    return line_chart(
        lines,
        styles,
        x=Axis("weights that remain, %", log=True, reversed=True),
        y=Axis(ACCURACY, range=bounds),
        height=TALL,
        labelled=can_label(methods),
    )


def _means(walks: Sequence[Walk]) -> Iterator[Mark]:
    """One mark per round, the mean of all trials that ran it, by what remains in percent.

    Hollow where other trials were stopped before it.
    """
    for number in range(max(len(walk.steps) for walk in walks)):
        there = [walk for walk in walks if number < len(walk.steps)]
        mean, low, high = spread([walk.of("accuracy")[number] for walk in there])
        x = 100 - 100 * sum(walk.of("sparsity")[number] for walk in there) / len(there)
        if x <= 0:  # no place on a logarithmic axis
            return
        said = [f"round {number}" if number else "dense", f"{x:.1f}% remain", f"accuracy {100 * mean:.1f}%"]
        has_lost = any(walk.was_stopped for walk in walks if number >= len(walk.steps))
        if has_lost:
            said.append(f"{SURVIVORS} {len(there)} of {len(walks)} seeds, the others were stopped before it")
        has_bar = len(there) > 1
        bottom, top = (100 * low, 100 * high) if has_bar else (None, None)
        yield Mark(x, 100 * mean, bottom, top, tuple(said), has_lost)


def _pq_range(walks: Sequence[Walk]) -> tuple[float, float]:
    """One for all methods of a network, so that their charts can be compared."""
    values = [value for walk in walks for value in walk.of("pq_index")]
    air = 0.06 * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air


def _pq_chart(walks: Sequence[Walk], look: Look, *, bounds: tuple[float, float]) -> Spec:
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(range(len(walk.steps))),
            "y": walk.of("pq_index"),
            "text": [walk.said(number) for number in range(len(walk.steps))],
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": look.colour, "width": 1},
            "marker": {
                "symbol": [PHASES.get(phase, PHASES[NOT_SEEN])[0] for phase in walk.phases],
                "size": 6,
                "color": look.colour,
            },
            "cliponaxis": False,
        }
        for walk in walks
    ]
    return {"data": data, "layout": layout(Axis("round (0: dense)"), Axis("PQ index", range=bounds))}
