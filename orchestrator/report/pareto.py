"""The Pareto fronts of accuracy against MACs, bytes and latency."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.notes import legend
from orchestrator.analysis.pareto import COSTS, Candidate, candidates, cost_text, members
from orchestrator.report.accuracy import ACCURACY
from orchestrator.report.charts import (
    INK,
    MAX_LINES,
    MUTED,
    PAPER,
    Axis,
    Chart,
    Figure,
    hover_text,
    make_layout,
)
from orchestrator.report.components import (
    Block,
    Charts,
    Details,
    Legend,
    Paragraph,
    Section,
    TableBlock,
    note,
)
from orchestrator.report.data import ReportData, ReportOptions

HEIGHT = 330
MAX_ROWS = 25
INTRODUCTION = (
    "A setting is on the Pareto front if no other network of this sweep on the same data, dense ones "
    "included, is at least as cheap and as accurate, and better in one of the two. Membership is decided "
    "by validation accuracy, means over seeds; test accuracy is then reported, so that the line need not "
    "rise everywhere. Ringed points are members, numbered as in the tables; a star is a dense network, and "
    "what is equal to one is left out."
)


# Cost of comparing.pareto.COSTS -> the title of its axis, and its name in tables.
DRAWN_COSTS = {
    "macs": ("effective MACs of one image", "MACs"),
    "bytes": ("bytes, sparse", "bytes"),
    "latency": ("measured latency of one image, ms", "latency, ms"),
}


def pareto_section(data: ReportData, options: ReportOptions) -> Section:
    """Draw each data set's front by each cost, and list its members."""
    by_cost = {cost: candidates(data.results, cost, method=options.method) for cost in DRAWN_COSTS}
    datasets = dict.fromkeys(str(c.setting["dataset"]) for group in by_cost.values() for c in group)
    blocks: list[Block] = [Paragraph(INTRODUCTION)]
    for number, dataset in enumerate(datasets):
        charts: list[Chart] = []
        tables: list[Block] = []
        for cost, group in by_cost.items():
            on_dataset = [c for c in group if str(c.setting["dataset"]) == dataset]
            if on_dataset:
                charts.append(_chart(data, on_dataset, cost, dataset, chart_id=f"front-{cost}-{number}"))
                tables.append(_table(members(on_dataset), cost, is_open=not tables))
        if len(data.methods) <= MAX_LINES:
            blocks.append(Legend(data.styles))
        blocks += [Charts(charts), *tables]
    return Section("front", "Pareto fronts", blocks)


def _table(front: Sequence[Candidate], cost: str, *, is_open: bool) -> Block:
    rows = [
        [
            str(number),
            member.method if member.amount is None else f"{member.method}, {member.amount_text}",
            member.network,
            cost_text(cost, member.cost),
            f"{100 * member.val_accuracy:.1f}",
            f"{member.accuracy}{member.marks}",
        ]
        for number, member in enumerate(front, start=1)
    ]
    _, name = DRAWN_COSTS[cost]
    header = ["", "setting", "network", name, "validation, %", "test, %"]
    count = f"; the first {MAX_ROWS} of {len(rows)}" if len(rows) > MAX_ROWS else ""
    signs = legend(member.marks for member in front)
    table = TableBlock(header, rows[:MAX_ROWS], text_columns=3)
    summary = f"Front by {name} ({COSTS[cost].about}){count}"
    return Details(summary, [table, note(f"{signs}." if signs else "")], is_open)


def _chart(data: ReportData, group: Sequence[Candidate], cost: str, dataset: str, *, chart_id: str) -> Chart:
    front = members(group)
    front_ids = {id(member) for member in front}
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [member.cost for member in front],
        "y": [100 * member.accuracy.mean for member in front],
        "line": {"color": MUTED, "width": 1},
        "hoverinfo": "skip",
    }
    numbered = _points(data, front, size=10, opacity=1.0, outline=INK) | {
        "mode": "markers+text",
        "texttemplate": [str(number) for number in range(1, len(front) + 1)],
        "textposition": ["top left" if n % 2 else "bottom right" for n in range(len(front))],
        "textfont": {"size": 10, "color": INK},
    }
    others = [candidate for candidate in group if id(candidate) not in front_ids]
    unnumbered = _points(data, others, size=8, opacity=0.45, outline=PAPER)
    title, name = DRAWN_COSTS[cost]
    layout = make_layout(
        Axis(title, is_log=True), Axis(range=data.accuracy_range), xs=[candidate.cost for candidate in group]
    )
    return Chart(
        chart_id,
        {"data": [line, unnumbered, numbered], "layout": layout},
        label=f"Test accuracy against {title} on {dataset}, with the Pareto front",
        height=HEIGHT,
        title=f"{dataset}: {name}",
        unit=ACCURACY,
    )


def _points(
    data: ReportData, group: Sequence[Candidate], *, size: int, opacity: float, outline: str
) -> Figure:
    """Return points that look as in every chart; dense networks are stars in ink."""
    styles = data.styles
    looks = [None if c.amount is None else styles[data.names(c.setting)[0]] for c in group]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [candidate.cost for candidate in group],
        "y": [100 * candidate.accuracy.mean for candidate in group],
        "text": [hover_text(_hover_lines(candidate)) for candidate in group],
        "marker": {
            "color": [style.colour if style else INK for style in looks],
            "symbol": [style.symbol if style else "star" for style in looks],
            "size": size,
            "opacity": opacity,
            "line": {"color": outline, "width": 1},
        },
    }


def _hover_lines(candidate: Candidate) -> tuple[str, ...]:
    amount = () if candidate.amount is None else (f"amount {candidate.amount_text}",)
    accuracies = f"test {candidate.accuracy}%, validation {100 * candidate.val_accuracy:.1f}%"
    return (candidate.method, candidate.network, *amount, f"cost {candidate.cost:.4g}", accuracies)
