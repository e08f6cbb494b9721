"""The Pareto fronts: which settings are worth what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.notes import legend
from orchestrator.analysis.pareto import COSTS, Candidate, candidates, cost_text, members
from orchestrator.report.charts import INK, MUTED, PAPER, Axis, Spec, key, layout, looks
from orchestrator.report.curves import ACCURACY
from orchestrator.report.markup import Html, chart_text, joined, paragraph, table, tag
from orchestrator.report.section import Section, Wanted, place, side_by_side
from orchestrator.report.swept import Swept

HEIGHT = 330
DRAWN = ("macs", "bytes", "latency")
TITLES = {
    "macs": "effective MACs of one image",
    "bytes": "bytes, sparse",
    "latency": "measured latency of one image, ms",
}
NAMES = {"macs": "MACs", "bytes": "bytes", "latency": "latency, ms"}
MOST_ROWS = 25
MOST_LINES = 14


def fronts(swept: Swept, wanted: Wanted) -> Section:
    styles = looks(swept.methods)
    charts: dict[str, Spec] = {}
    parts = [paragraph(INTRODUCTION)]
    found = {cost: candidates(swept.results, cost, method=wanted.how) for cost in DRAWN}
    datasets = dict.fromkeys(str(one.setting["dataset"]) for ones in found.values() for one in ones)
    for number, dataset in enumerate(datasets):
        places: list[Html] = []
        tables: list[Html] = []
        for cost, ones in found.items():
            mine = [one for one in ones if str(one.setting["dataset"]) == dataset]
            if not mine:
                continue
            chart_id = f"front-{cost}-{number}"
            charts[chart_id] = _chart(swept, mine, title=TITLES[cost], bounds=swept.accuracy_range)
            about = f"Test accuracy against {TITLES[cost]} on {dataset}, with the Pareto front"
            places.append(
                place(chart_id, label=about, height=HEIGHT, title=f"{dataset}: {NAMES[cost]}", unit=ACCURACY)
            )
            tables.append(_table(members(mine), cost, shown=not tables))
        keyed = key(styles) if len(styles) <= MOST_LINES else Html("")
        parts += [keyed, side_by_side(*places), *tables]
    return Section("front", "What is worth its cost", joined(parts), charts)


INTRODUCTION = (
    "A setting is on the Pareto front if no other network of this sweep on the same data, dense ones "
    "included, is at least as cheap and as accurate, and better in one of the two. Membership is decided "
    "by validation accuracy, means over seeds; test accuracy is then reported, so that the line need not "
    "rise everywhere. "
    "Ringed points are members, numbered as in the tables; a star is a dense network, and what is equal to "
    "one is left out."
)


def _table(front: Sequence[Candidate], cost: str, *, shown: bool) -> Html:
    rows = [
        [
            str(number),
            one.method if one.amount is None else f"{one.method}, {one.amount_text}",
            one.network,
            cost_text(cost, one.cost),
            f"{100 * one.val_accuracy:.1f}",
            f"{one.accuracy}{one.marks}",
        ]
        for number, one in enumerate(front, start=1)
    ]
    header = ["", "setting", "network", NAMES[cost], "validation, %", "test, %"]
    more = f"; the first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    title = tag("summary", f"Front by {NAMES[cost]} ({COSTS[cost].about}){more}")
    signs = legend(one.marks for one in front)
    parts = (table(header, rows[:MOST_ROWS], texts=3), paragraph(f"{signs}.", class_="note") if signs else "")
    return tag("details", title, *parts, open="" if shown else None)


def _chart(swept: Swept, found: Sequence[Candidate], *, title: str, bounds: tuple[float, float]) -> Spec:
    front = members(found)
    numbers = {id(one): str(number) for number, one in enumerate(front, start=1)}
    others = [one for one in found if id(one) not in numbers]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [one.cost for one in front],
            "y": [100 * one.accuracy.mean for one in front],
            "line": {"color": MUTED, "width": 1},
            "hoverinfo": "skip",
        },
        _points(swept, others, size=8, opacity=0.45),
        {
            **_points(swept, front, size=10, opacity=1.0, ring=True),
            "mode": "markers+text",
            "texttemplate": [numbers[id(one)] for one in front],
            "textposition": ["top left" if n % 2 else "bottom right" for n in range(len(front))],
            "textfont": {"size": 10, "color": INK},
        },
    ]
    costs = [one.cost for one in found]
    frame = layout(Axis(title, log=True), Axis(ACCURACY, range=bounds), xs=costs)
    return {"data": data, "layout": frame}


def _points(
    swept: Swept, found: Sequence[Candidate], *, size: int, opacity: float, ring: bool = False
) -> Spec:
    """Dense networks are stars in ink; the others look as in every chart."""
    styles = looks(swept.methods)
    look = [styles[swept.names(one.setting)[0]] if one.amount is not None else None for one in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [one.cost for one in found],
        "y": [100 * one.accuracy.mean for one in found],
        "text": ["<br>".join(map(chart_text, _said(one))) for one in found],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": [one.colour if one else INK for one in look],
            "symbol": [one.marker if one else "star" for one in look],
            "size": size,
            "opacity": opacity,
            "line": {"color": INK if ring else PAPER, "width": 1},
        },
        "cliponaxis": False,
    }


def _said(one: Candidate) -> tuple[str, ...]:
    amount = () if one.amount is None else (f"amount {one.amount_text}",)
    accuracies = f"test {one.accuracy}%, validation {100 * one.val_accuracy:.1f}%"
    return (one.method, one.network, *amount, f"cost {one.cost:.4g}", accuracies)
