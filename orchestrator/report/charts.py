"""Charts as plotly's JSON: colours, symbols and dashes that differ in black and white, too.

They are plain dictionaries: plotly.graph_objects checks every property, which takes 4 ms a line, and a
report of many networks has a thousand lines. The tests check them against plotly's schema instead.

A colour is `theme:` and the name of a CSS variable. The page's script puts in its value, which differs by
day, by night and on paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]  # JSON in plotly's schema
INK, MUTED, GRID, PAPER = "theme:ink", "theme:muted", "theme:grid", "theme:paper"
CLEAR = "rgba(0,0,0,0)"
# Okabe and Ito's colours in the order of figures.OKABE_ITO; the style sheet has lighter ones for the night.
COLOURS = tuple(f"theme:{name}" for name in ("blue", "vermillion", "green", "pink", "orange", "sky", "ink"))
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
GLYPHS = "●■▲◆▼✚✖"
DASHES = ("solid", "dash", "dashdot", "dot")
DASH_ARRAYS = ("", "7 4", "7 3 2 3", "2 3")  # the same for SVG
MAX_LINES = 14  # with a legend
MAX_END_LABELS, MAX_LABEL_LETTERS = 6, 30
LABEL_PIXELS, LETTER_PIXELS = 17.0, 7.2
AXES_PIXELS = 56  # the margins above and below the axes
TICK_DECADES = 2.5  # up to here there is room for ticks at 1, 2 and 5
TEMPLATE: Figure = {
    "layout": {
        "margin": {"l": 44, "r": 12, "t": 10, "b": 46},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": MUTED},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "align": "left", "font": {"color": INK}},
        **{
            name: {
                "gridcolor": GRID,
                "zeroline": False,
                "linecolor": MUTED,
                "showline": name == "xaxis",
                "ticks": "outside" if name == "xaxis" else "",
                "tickcolor": MUTED,
                "automargin": True,
                "fixedrange": True,
            }
            for name in ("xaxis", "yaxis")
        },
        "annotationdefaults": {"showarrow": False, "font": {"color": MUTED, "size": 11}},
        "shapedefaults": {
            "type": "line",
            "line": {"color": MUTED, "width": 1, "dash": "dot"},
            "layer": "below",
            "label": {"font": {"color": MUTED, "size": 11}},
        },
    },
    "data": {
        "scatter": [
            {
                "mode": "lines+markers",
                "line": {"width": 2},
                "marker": {"size": 7},
                "hovertemplate": "%{text}<extra></extra>",
                "cliponaxis": False,
            }
        ]
    },
}


@dataclass(frozen=True)
class LineStyle:
    """How a method is drawn in every chart of the report; `glyph` is its symbol as a character."""

    colour: str
    symbol: str
    glyph: str
    dash: str
    dash_array: str


def make_line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a style for each name; the first seven differ in colour and symbol, the first 28 in some way."""
    styles = {}
    for n, name in enumerate(dict.fromkeys(names)):
        symbol = (n + n // 7) % 7  # shifted, so that a colour that comes again has another symbol
        styles[name] = LineStyle(
            COLOURS[n % 7], SYMBOLS[symbol], GLYPHS[symbol], DASHES[n % 4], DASH_ARRAYS[n % 4]
        )
    return styles


@dataclass(frozen=True)
class Axis:
    """An axis: `title` with its unit, `is_log` to base 10, `is_reversed` falls to the right."""

    title: str = ""
    is_log: bool = False
    range: tuple[float, float] | None = None
    is_reversed: bool = False


@dataclass(frozen=True)
class Point:
    """A point, the lower and upper end of its bar, and the text that shows when it is pointed at."""

    x: float
    y: float
    bar: tuple[float, float] | None = None
    hover_lines: tuple[str, ...] = ()
    is_hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure with its place on the page; `label` describes it to a screen reader, `height` is in pixels."""

    chart_id: str
    figure: Figure
    label: str
    height: int
    title: str = ""
    unit: str = ""


def plotly_text(text: object) -> str:
    """Escape a text for plotly, which reads tags and entities in titles, ticks and labels."""
    return html.escape(str(text), quote=False)


def hover_text(lines: Iterable[object]) -> str:
    return "<br>".join(map(plotly_text, lines))


def make_layout(x: Axis, y: Axis, *, xs: Sequence[float] = (), **properties: object) -> Figure:
    """Return a layout on top of TEMPLATE; `xs` are all values along x, for the ticks of a logarithmic axis.

    The title of y is not drawn: it stands above the chart, where it is read without turning the head.
    """
    x_axis = {**_axis(x), "title": {"text": plotly_text(x.title), "standoff": 8}}
    if positive := [value for value in xs if x.is_log and value > 0]:  # an empty network costs 0
        x_axis |= _log_ticks(min(positive), max(positive))
    return {"xaxis": x_axis, "yaxis": _axis(y), **properties}


def _axis(axis: Axis) -> Figure:
    properties: Figure = {"type": "log"} if axis.is_log else {}
    if axis.range is not None:
        properties["range"] = list(axis.range)
    if axis.is_reversed:
        properties["autorange"] = "reversed"
    return properties


def _log_ticks(lowest: float, highest: float) -> Figure:
    """Return ticks at 1, 2 and 5 in every decade, or at whole decades where there are many.

    Where no such tick is near, the lowest and the highest value are marked.
    """
    low, high = math.log10(lowest), math.log10(highest)
    steps = (1, 2, 5) if high - low < TICK_DECADES else (1,)
    ticks = [step * 10.0**n for n in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    visible = [tick for tick in ticks if 10 ** (low - 0.1) <= tick <= 10 ** (high + 0.1)]
    if not visible:
        visible = sorted({float(f"{value:.3g}") for value in (lowest, highest)})
    return {"tickvals": visible, "ticktext": [_short_number(tick) for tick in visible]}


def _short_number(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def line_chart(
    lines: Mapping[str, Sequence[Point]],
    styles: Mapping[str, LineStyle],
    *,
    x: Axis,
    y: Axis,
    height: int,
    reference: tuple[str, float] | None = None,
    has_end_labels: bool = False,
    has_lines: bool = True,
) -> Figure:
    """Draw a line with bars for each name, or its points alone without `has_lines`.

    `reference` is a named horizontal line; with `has_end_labels` each line is named at its right end.
    """
    lines = {name: points for name, points in lines.items() if points}
    figure: Figure = {
        "data": [_trace(name, points, styles[name]) for name, points in lines.items()],
        "layout": make_layout(x, y, xs=[point.x for points in lines.values() for point in points]),
    }
    if not has_lines:
        for trace in figure["data"]:
            trace["mode"] = "markers"
    if has_end_labels:
        ends = {name: points[-1].y for name, points in lines.items()}
        figure["layout"]["annotations"] = _end_labels(ends, styles, y=y, height=height)
        longest = max(map(len, ends), default=0)
        figure["layout"]["margin"] = {"r": 40 + int(LETTER_PIXELS * longest)}
    if reference is not None:
        name, value = reference
        side = "end" if not x.is_log or x.is_reversed else "start"  # where the lines leave room
        label = {"text": plotly_text(name), "textposition": side, "yanchor": "bottom"}
        line = {"xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "label": label}
        figure["layout"]["shapes"] = [line]
    return figure


def dot_chart(
    points: Mapping[str, Point], styles: Mapping[str, LineStyle], *, x: Axis, reference: tuple[str, float]
) -> Figure:
    """Draw a row for each name, from the top down: the point's `y` and its bar run along `x`."""
    traces = []
    for row, (name, point) in enumerate(points.items()):
        trace = _trace(name, [point], styles[name]) | {"mode": "markers", "x": [point.y], "y": [row]}
        if "error_y" in trace:
            trace["error_x"] = trace.pop("error_y")
        trace["marker"]["size"] = 10
        traces.append(trace)
    layout = make_layout(x, Axis(range=(len(points) - 0.5, -0.5)), margin={"t": 24})
    layout["yaxis"] |= {"tickvals": list(range(len(points))), "ticktext": list(map(plotly_text, points))}
    layout["yaxis"] |= {"tickfont": {"color": INK}, "gridcolor": CLEAR}
    name, value = reference
    # The label of a shape would be cut off above the axes; an annotation is not, and widens their range.
    layout["shapes"] = [{"yref": "paper", "y0": 0, "y1": 1, "x0": value, "x1": value}]
    label = {"text": plotly_text(name), "x": value, "xanchor": "left", "xshift": 4}
    layout["annotations"] = [{**label, "y": 1, "yref": "paper", "yanchor": "bottom"}]
    return {"data": traces, "layout": layout}


def dot_chart_height(count: int) -> int:
    """Return the pixels for a dot chart of so many rows."""
    return 86 + 30 * count


def can_label_ends(names: Sequence[str]) -> bool:
    """Return whether lines of these names can be named at their ends; otherwise they need a legend."""
    return len(names) <= MAX_END_LABELS and all(len(name) <= MAX_LABEL_LETTERS for name in names)


def _trace(name: str, points: Sequence[Point], style: LineStyle) -> Figure:
    symbols = [f"{style.symbol}-open" if point.is_hollow else style.symbol for point in points]
    trace: Figure = {
        "type": "scatter",
        "name": plotly_text(name),
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "text": [hover_text((name, *point.hover_lines)) for point in points],
        "line": {"color": style.colour, "dash": style.dash},
        "marker": {"color": style.colour, "symbol": symbols},
    }
    if any(point.bar for point in points):
        bars = [point.bar or (point.y, point.y) for point in points]
        above = [high - point.y for point, (_, high) in zip(points, bars, strict=True)]
        below = [point.y - low for point, (low, _) in zip(points, bars, strict=True)]
        trace["error_y"] = {
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": style.colour,
            "thickness": 1,
            "width": 3,
        }
    return trace


def _end_labels(
    ends: Mapping[str, float], styles: Mapping[str, LineStyle], *, y: Axis, height: int
) -> list[Figure]:
    """Return the names to the right of the lines' ends, moved apart where they would touch."""
    low, high = y.range or (min(ends.values(), default=0), max(ends.values(), default=1))
    gap = LABEL_PIXELS * (high - low) / (height - AXES_PIXELS)
    positions = spread_out(list(ends.values()), gap=gap, low=low, high=high)
    right_of_axes = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 10, "yanchor": "middle"}
    labels = []
    for name, position in zip(ends, positions, strict=True):
        glyph = f'<span style="color:{styles[name].colour}">{styles[name].glyph}</span>'
        text = f"{glyph} {plotly_text(name)}"
        labels.append({**right_of_axes, "y": position, "text": text, "font": {"color": INK, "size": 12}})
    return labels


def spread_out(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return positions near the values, in their order, at least `gap` apart, between `low` and `high`."""
    order = sorted(range(len(values)), key=lambda n: values[n])
    positions = [0.0] * len(values)
    floor, ceiling = low, high
    for number in order:  # push upwards what would touch the one below
        positions[number] = max(values[number], floor)
        floor = positions[number] + gap
    for number in reversed(order):  # then push down what left at the top
        positions[number] = min(positions[number], ceiling)
        ceiling = positions[number] - gap
    return positions
