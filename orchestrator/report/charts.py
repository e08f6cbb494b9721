"""Charts as plain data for plotly: colours, markers and line styles told apart in black and white, too.

A colour is the name of one of the page's, `theme:ink`, and the page's script puts it in: it is another
by day, by night and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.markup import Html, chart_text, joined, tag

Spec = dict[str, Any]  # JSON, as plotly's schema has it
INK, MUTED, GRID, PAPER = "theme:ink", "theme:muted", "theme:grid", "theme:paper"
# Okabe and Ito's colours in the order of figures.OKABE_ITO; the page has them lighter by night.
COLOURS = tuple(f"theme:{name}" for name in ("blue", "vermillion", "green", "pink", "orange", "sky", "ink"))
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
GLYPHS = "●■▲◆▼✚✖"
DASHES = ("solid", "dash", "dashdot", "dot")
DASH_ARRAYS = ("", "7 4", "7 3 2 3", "2 3")
MOST_DECADES = 2.5  # with ticks between them


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every chart of the report."""

    number: int

    @property
    def colour(self) -> str:
        return COLOURS[self.number % 7]

    @property
    def _marker(self) -> int:
        return (self.number + self.number // 7) % 7

    @property
    def marker(self) -> str:
        return MARKERS[self._marker]

    @property
    def glyph(self) -> str:
        return GLYPHS[self._marker]

    @property
    def dash(self) -> str:
        return DASHES[self.number % 4]

    @property
    def dash_array(self) -> str:
        return DASH_ARRAYS[self.number % 4]


Looks = Mapping[str, Look]


def looks(names: Iterable[str]) -> dict[str, Look]:
    return {name: Look(number) for number, name in enumerate(dict.fromkeys(names))}


@dataclass(frozen=True)
class Axis:
    """`title` with its unit; `log` to base 10; a range where it is fixed; `reversed` falls to the right."""

    title: str
    log: bool = False
    range: tuple[float, float] | None = None
    reversed: bool = False


def layout(
    x: Axis,
    y: Axis,
    *,
    xs: Sequence[float] = (),
    right: int = 12,
    annotations: Sequence[Spec] = (),
    shapes: Sequence[Spec] = (),
) -> Spec:
    """A calm frame: thin grid, no box; `xs` are all values along x, for the ticks of a logarithmic axis."""
    above = [value for value in xs if value > 0]  # a network of which nothing is left costs 0
    return {
        "margin": {"l": 44, "r": right, "t": 10, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": MUTED},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "align": "left", "font": {"color": INK}},
        "xaxis": _axis(x, title=True) | (_log_ticks(above) if x.log and above else {}),
        "yaxis": _axis(y, title=False),
        "annotations": list(annotations),
        "shapes": list(shapes),
    }


def _axis(axis: Axis, *, title: bool) -> Spec:
    found: Spec = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": MUTED,
        "showline": title,
        "ticks": "outside" if title else "",
        "tickcolor": MUTED,
        "automargin": True,
        "fixedrange": True,
    }
    if title:
        found["title"] = {"text": chart_text(axis.title), "standoff": 8}
    if axis.log:
        found["type"] = "log"
    if axis.range is not None:
        found["range"] = list(axis.range)
    if axis.reversed:
        found["autorange"] = "reversed"
    return found


def _log_ticks(values: Sequence[float]) -> Spec:
    """Ticks at 1, 2 and 5 in every decade, or at whole decades where there are many; with whole numbers."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < MOST_DECADES else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    found = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in found if 10 ** (low - 0.1) <= tick <= 10 ** (high + 0.1)]
    return {"tickvals": inside, "ticktext": [_short(tick) for tick in inside]}


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def key(styles: Looks) -> Html:
    """What the lines are, for charts that do not say it themselves."""
    return tag("ul", *(tag("li", _swatch(look), " ", name) for name, look in styles.items()), class_="key")


def _swatch(look: Look) -> Html:
    colour = f"var(--{look.colour.removeprefix('theme:')})"
    line = tag(
        "line",
        x1=0,
        y1=6,
        x2=30,
        y2=6,
        style=f"stroke:{colour}",
        stroke_width=2,
        stroke_dasharray=look.dash_array,
    )
    glyph = tag("text", look.glyph, x=15, y=10, text_anchor="middle", font_size=11, style=f"fill:{colour}")
    return tag("svg", joined((line, glyph)), width=30, height=12, aria_hidden="true")
