"""Heat maps as tables: every cell has its number, and needs no script."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.markup import Html, tag

DARK = 0.55  # from this heat on, a cell's number is set in the page's colour
MOST_ROWS = 130


def heat_table(
    corner: str,
    columns: Sequence[object],
    rows: Sequence[tuple[object, Sequence[float | None]]],
    *,
    over: str,
    marked: Sequence[int] = (),
) -> Html:
    """Fractions in whole percent, hotter towards 1; `over` stands above all columns, `marked` are framed."""
    width = len(columns)
    head = tag(
        "thead",
        tag("tr", tag("th", ""), tag("th", over, colspan=width, class_="over")),
        tag("tr", tag("th", corner, scope="col"), *(tag("th", c, scope="col", class_="n") for c in columns)),
    )
    body = tag("tbody", *(_row(name, values, marked) for name, values in rows[:MOST_ROWS]))
    return tag("div", tag("table", head, body, class_="heat"), class_="scroll")


def _row(name: object, values: Sequence[float | None], marked: Sequence[int]) -> Html:
    cells = [_cell(value, framed=number in marked) for number, value in enumerate(values)]
    return tag("tr", tag("th", name, scope="row"), *cells)


def _cell(value: float | None, *, framed: bool) -> Html:
    frame = " framed" if framed else ""
    if value is None or value != value:
        return tag("td", "", class_=f"none{frame}")
    heat = min(max(value, 0.0), 1.0)
    side = "hot" if heat >= DARK else "cool"
    return tag("td", f"{100 * value:.0f}", class_=side + frame, style=f"--heat:{100 * heat:.1f}%")
