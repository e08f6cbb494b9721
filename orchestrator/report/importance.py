"""The section on how much each axis of a search matters to its objectives."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.importance import Importance, common_axes, importances, searched_points
from orchestrator.report.charts import Axis, Chart, Point, dot_chart, dot_chart_height, make_line_styles
from orchestrator.report.components import Block, Charts, Details, Paragraph, Section, TableBlock, note
from orchestrator.report.data import ReportData

UNIT = "share of the explained variance, %"
INTRODUCTION = (
    "How much of the differences between points each axis explains by itself: functional ANOVA on a random "
    "forest, the mean over three forests, with a bar from the lowest to the highest of them."
)


def importance_section(data: ReportData) -> Section | None:
    """Draw the importance of each axis, an objective a chart; None for a grid and for few points."""
    if not data.is_search:
        return None
    points = searched_points(data.loaded.plan, data.results)
    by_objective = {name: importances(points, name) for name in data.results.attrs["objectives"]}
    drawn = {name: rows for name, rows in by_objective.items() if rows}
    if not drawn:
        return None
    conditional = sorted({name for point in points for name in point.params} - set(common_axes(points)))
    left_out = (
        f" Left out, as they have one value or not every point has one: {', '.join(conditional)}."
        if conditional
        else ""
    )
    blocks: list[Block] = [
        Paragraph(INTRODUCTION),
        note(
            f"Over {len(points):,} points. A search by tpe looks more often where it hopes for much, so that "
            f"axes may matter more elsewhere.{left_out}"
        ),
        Charts([_chart(number, name, rows) for number, (name, rows) in enumerate(drawn.items())]),
        Details("The numbers", [_table(name, rows) for name, rows in drawn.items()]),
    ]
    return Section("importance", "Importance of axes", blocks)


def _chart(number: int, objective: str, rows: Sequence[Importance]) -> Chart:
    points = {
        row.axis: Point(0.0, 100 * row.share, (100 * row.lowest, 100 * row.highest), (f"{row.share:.1%}",))
        for row in rows
    }
    # One colour: the axes are no methods.
    style = make_line_styles([""])[""]
    figure = dot_chart(points, dict.fromkeys(points, style), x=Axis(UNIT), reference=("none", 0.0))
    name = objective.removeprefix("final/")
    return Chart(f"importance-{number}", figure, f"{UNIT}, of {name}", dot_chart_height(len(points)), name)


def _table(objective: str, rows: Sequence[Importance]) -> TableBlock:
    header = ["axis", f"share of {objective.removeprefix('final/')}, %", "lowest", "highest"]
    texts = [[row.axis, *(f"{100 * x:.1f}" for x in (row.share, row.lowest, row.highest))] for row in rows]
    return TableBlock(header, texts)
