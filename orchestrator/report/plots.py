"""Line charts and dot charts: means with bars, named at their ends where there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.charts import INK, MUTED, Axis, Look, Looks, Spec, layout
from orchestrator.report.markup import chart_text

MOST_LABELS, LONGEST_LABEL = 6, 30  # lines that can be labelled at their ends
LABEL_PIXELS = 17.0
LETTER_PIXELS = 7.2


@dataclass(frozen=True)
class Mark:
    """A point, the ends of its bar, and what is said of it when it is pointed at (lines of text)."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    said: tuple[str, ...] = ()
    is_hollow: bool = False


def line_chart(
    lines: Mapping[str, Sequence[Mark]],
    styles: Looks,
    *,
    x: Axis,
    y: Axis,
    level: tuple[str, float] | None = None,
    height: int,
    labelled: bool = False,
) -> Spec:
    """Lines with bars; `level` is a named horizontal line, `labelled` names each line at its right end."""
    data = [_line(name, marks, styles[name]) for name, marks in lines.items() if marks]
    xs = [mark.x for marks in lines.values() for mark in marks]
    margin = 12
    annotations: list[Spec] = []
    if labelled:
        ends = {name: marks[-1].y for name, marks in lines.items() if marks}
        annotations = _end_labels(ends, styles, y=y, height=height)
        margin = 40 + int(LETTER_PIXELS * max(map(len, ends), default=0))
    shapes = []
    if level is not None:
        shapes = [_level(level[1])]
        annotations.append(_level_label(*level, right=not x.log or x.reversed))
    frame = layout(x, y, xs=xs, right=margin, annotations=annotations, shapes=shapes)
    return {"data": data, "layout": frame}


def dot_chart(marks: Mapping[str, Mark], styles: Looks, *, x: Axis, level: tuple[str, float]) -> Spec:
    """A row for each name, from the top down, its mark and bar along `x`; a mark's own x is not looked at."""
    names = list(marks)
    data = []
    for place, name in enumerate(names):
        mark = marks[name]
        dot = _line(name, [mark], styles[name])
        dot |= {"mode": "markers", "x": [mark.y], "y": [place]}
        if "error_y" in dot:
            dot["error_x"] = dot.pop("error_y")
        dot["marker"]["size"] = 10
        data.append(dot)
    found = layout(x, Axis("", range=(len(names) - 0.5, -0.5)))
    found["yaxis"] |= {"tickvals": list(range(len(names))), "ticktext": [chart_text(n) for n in names]}
    found["yaxis"] |= {"tickfont": {"color": INK}, "gridcolor": "rgba(0,0,0,0)"}
    found["shapes"] = [{**_level(0), "yref": "paper", "y0": 0, "y1": 1, "x0": level[1], "x1": level[1]}]
    found["shapes"][0]["xref"] = "x"
    said = {**_level_label(*level, right=False), "x": level[1], "xref": "x", "y": 1, "yref": "paper"}
    found["annotations"] = [said]
    found["margin"]["t"] = 24
    return {"data": data, "layout": found}


def dots_height(count: int) -> int:
    """Pixels for a dot chart of so many rows."""
    return 86 + 30 * count


def can_label(names: Sequence[str]) -> bool:
    """Whether lines of these names can bear them at their ends; else they need a key."""
    return len(names) <= MOST_LABELS and all(len(name) <= LONGEST_LABEL for name in names)


def _line(name: str, marks: Sequence[Mark], look: Look) -> Spec:
    line: Spec = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": chart_text(name),
        "x": [mark.x for mark in marks],
        "y": [mark.y for mark in marks],
        "text": ["<br>".join(map(chart_text, (name, *mark.said))) for mark in marks],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "symbol": _symbols(marks, look), "size": 7},
        "cliponaxis": False,
    }
    if any(mark.low is not None for mark in marks):
        line["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [0 if mark.high is None else mark.high - mark.y for mark in marks],
            "arrayminus": [0 if mark.low is None else mark.y - mark.low for mark in marks],
            "color": look.colour,
            "thickness": 1,
            "width": 3,
        }
    return line


def _symbols(marks: Sequence[Mark], look: Look) -> str | list[str]:
    """One for the line, or where a point is hollow one for each."""
    if not any(mark.is_hollow for mark in marks):
        return look.marker
    return [f"{look.marker}-open" if mark.is_hollow else look.marker for mark in marks]


def _end_labels(ends: Mapping[str, float], styles: Looks, *, y: Axis, height: int) -> list[Spec]:
    """Names to the right of the lines' ends, moved apart where they would touch."""
    low, high = y.range or (min(ends.values(), default=0), max(ends.values(), default=1))
    gap = LABEL_PIXELS * (high - low) / (height - 56)
    places = spread_out(list(ends.values()), gap=gap, low=low, high=high)
    return [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 10,
            "y": place,
            "yanchor": "middle",
            "showarrow": False,
            "align": "left",
            "text": _glyph(styles[name]) + chart_text(name),
            "font": {"color": INK},
        }
        for name, place in zip(ends, places, strict=True)
    ]


def _glyph(look: Look) -> str:
    return f'<span style="color:{look.colour}">{look.glyph}</span> '


def spread_out(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places as near to the values as can be, in their order, at least `gap` apart, between low and high."""
    order = sorted(range(len(values)), key=lambda n: values[n])
    found = [0.0] * len(values)
    floor = low
    for number in order:
        found[number] = max(values[number], floor)
        floor = found[number] + gap
    ceiling = high
    for number in reversed(order):
        found[number] = min(found[number], ceiling)
        ceiling = found[number] - gap
    return found


def _level(value: float) -> Spec:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
        "layer": "below",
    }


def _level_label(name: str, value: float, *, right: bool) -> Spec:
    return {
        "x": 1 if right else 0,
        "xref": "paper",
        "xanchor": "right" if right else "left",
        "xshift": -4 if right else 4,
        "y": value,
        "yanchor": "bottom",
        "showarrow": False,
        "text": chart_text(name),
        "font": {"color": MUTED, "size": 11},
    }
