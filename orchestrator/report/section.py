"""A part of the report: its heading, its HTML, and the charts that stand in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.analysis.intervals import IntervalMethod
from orchestrator.analysis.paired import Baseline
from orchestrator.report.charts import Spec
from orchestrator.report.markup import Html, tag


@dataclass(frozen=True)
class Wanted:
    """How a report is made; `tolerance` is a fraction of accuracy, without a baseline it takes its own."""

    tolerance: float = 0.01
    how: IntervalMethod = "t"
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Section:
    """`charts`: what plotly draws, by the id of its place in `body`."""

    anchor: str
    title: str
    body: Html
    charts: Mapping[str, Spec] = field(default_factory=dict)


def place(chart_id: str, *, label: str, height: int, title: str = "", unit: str = "") -> Html:
    """Where a chart is drawn; until then, and without scripts, it says what would be there."""
    head = tag("h4", title) if title else Html("")
    above = tag("p", unit, class_="unit") if unit else Html("")
    waiting = tag("span", "A chart, drawn by scripts; its numbers are in the tables.", class_="waiting")
    drawn = tag(
        "div", waiting, class_="chart", id=chart_id, role="img", aria_label=label, style=f"height:{height}px"
    )
    return tag("div", head, above, drawn, class_="panel")


def side_by_side(*places: Html) -> Html:
    """Charts in as many columns as there is room for; one alone has the whole width."""
    return tag("div", *places, class_="alone" if len(places) == 1 else "grid")
