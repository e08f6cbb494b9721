"""Differences to a baseline, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.paired import Baseline, Difference
from orchestrator.analysis.settings import method_label, panel_title
from orchestrator.analysis.tables import differences_table
from orchestrator.report.charts import MAX_LINES, Axis, Chart, Point, dot_chart, dot_chart_height, line_chart
from orchestrator.report.components import (
    Block,
    Charts,
    Details,
    Legend,
    Paragraph,
    Section,
    from_table,
    note,
)
from orchestrator.report.data import ReportData, ReportOptions

MAX_PANELS, MAX_ROWS = 12, 40
LARGE, SMALL = 360, 270
UNIT = "difference in test accuracy, points"


def differences_section(
    data: ReportData, options: ReportOptions, baseline: Baseline, paired: Sequence[Difference]
) -> Section | None:
    """Draw the differences of each network over the amount; None where nothing pairs, as in a search."""
    if not paired:
        return None
    by_panel: dict[str, list[Difference]] = {}
    for difference in paired:
        by_panel.setdefault(panel_title(difference.setting), []).append(difference)
    table = differences_table(data.results, baseline, method=options.method)
    blocks: list[Block] = [Paragraph(_introduction(baseline)), note(table.note)]
    methods = {method_label(difference.setting) for difference in paired}
    styles = data.styles
    if len(methods) <= MAX_LINES and not all(map(_has_one_amount, by_panel.values())):
        blocks.append(Legend({name: style for name, style in styles.items() if name in methods}))
    charts = [
        _chart(data, f"difference-{number}", panel, group, baseline, is_single=len(by_panel) == 1)
        for number, (panel, group) in enumerate(list(by_panel.items())[:MAX_PANELS])
    ]
    numbers = from_table(table, has_network=data.has_networks, max_rows=MAX_ROWS)
    blocks += [Charts(charts), Details("The numbers", [numbers])]
    return Section("differences", f"Paired differences to {_short_name(baseline)}", blocks)


def _introduction(baseline: Baseline) -> str:
    if baseline.is_dense:
        return "Each network against the dense network that it comes from, in points of test accuracy."
    return (
        f"Each network against the one with {baseline.text} at the same amount, in points of test accuracy. "
        "A pair shares its seed, and its dense network wherever that is not what differs, so that most of "
        "the spread between seeds cancels."
    )


def _short_name(baseline: Baseline) -> str:
    return "dense" if baseline.is_dense else ", ".join(map(str, baseline.values.values()))


def _has_one_amount(group: Sequence[Difference]) -> bool:
    """Return whether each method has one amount only: then a dot chart shows them."""
    return len({method_label(difference.setting) for difference in group}) == len(group)


def _chart(
    data: ReportData,
    chart_id: str,
    panel: str,
    group: Sequence[Difference],
    baseline: Baseline,
    *,
    is_single: bool,
) -> Chart:
    styles = data.styles
    label = f"{UNIT}, to {baseline.text}: {panel}"
    title = "" if is_single else panel
    reference = (_short_name(baseline), 0.0)
    lines = {
        method: _points(group, method)
        for method in dict.fromkeys(method_label(difference.setting) for difference in group)
    }
    if _has_one_amount(group):
        dots = {method: points[0] for method, points in lines.items()}
        figure = dot_chart(dots, styles, x=Axis(UNIT), reference=reference)
        return Chart(chart_id, figure, label, dot_chart_height(len(dots)), title)
    is_ceiling = any(difference.amount.startswith("by ") for difference in group)
    amount = "amount asked for, %" + (" (the most that an adaptive schedule may take)" if is_ceiling else "")
    height = LARGE if is_single else SMALL
    figure = line_chart(lines, styles, x=Axis(amount), y=Axis(UNIT), height=height, reference=reference)
    return Chart(chart_id, figure, label, height, title, unit=UNIT)


def _points(group: Sequence[Difference], method: str) -> list[Point]:
    points = []
    for difference in group:
        if method_label(difference.setting) == method:
            amount = float(str(difference.setting["amount"]))
            gain = difference.difference
            bar = None if gain.low is None or gain.high is None else (100 * gain.low, 100 * gain.high)
            hover_lines = (f"amount {difference.amount}", f"{gain.text(sign='+')} points, {gain.count} pairs")
            points.append(Point(100 * amount, 100 * gain.mean, bar, hover_lines))
    return sorted(points, key=lambda point: point.x)
