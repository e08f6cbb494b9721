"""Figures for papers and talks: one measure over another, a line for each value of what was compared."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.figure_data import (
    DEFAULT_OPTIONS,
    FigureOptions,
    FigurePanel,
    FigurePoint,
    XAxis,
    YAxis,
    find_axes,
    find_panels,
)
from orchestrator.analysis.intervals import interval
from orchestrator.analysis.plots import MARKERS, OKABE_ITO, STYLES
from orchestrator.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

FORMATS = ("pdf", "svg", "png")


@dataclass(frozen=True)
class FigureStyle:
    """Sizes in inches and points. One panel is `width` wide, several share `full_width`."""

    width: float
    full_width: float
    panel_height: float
    font: float
    line: float
    marker: float


STYLES_BY_NAME = {
    # The column of ICML is 3.25 inches wide, the text of NeurIPS 5.5; both set captions in 9 points.
    "paper": FigureStyle(3.25, 5.5, 2.3, 8.0, 1.0, 3.0),
    "talk": FigureStyle(8.0, 12.0, 4.5, 16.0, 2.2, 7.0),
}
MOST_PANELS_IN_A_ROW = 3
LETTER = 0.55  # the width of one, of the size of its font
DENSE = "dense"  # the label of the dense networks' line


def make_figure(results: DataFrame, options: FigureOptions = DEFAULT_OPTIONS) -> Figure:
    """Return a matplotlib figure of a sweep's results (see `results`): means and 95% intervals over seeds.

    Raises UsageError for an unknown name, for a measure that no trial has, and where a line would mix
    settings that differ in more than their amount.
    """
    import matplotlib
    from matplotlib.figure import Figure

    x, y = find_axes(options)
    if options.style not in STYLES_BY_NAME:
        raise UsageError(f"--style: {unknown_name('style', options.style, STYLES_BY_NAME)}")
    style, panels = STYLES_BY_NAME[options.style], find_panels(results, options)
    columns = min(len(panels), MOST_PANELS_IN_A_ROW)
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    sizes: dict[Any, Any] = {  # matplotlib types each key as a literal
        "font.size": style.font,
        "axes.titlesize": style.font,
        "legend.fontsize": style.font - 1,
    }
    # Type 42: fonts that publishers accept and editors can change.
    with matplotlib.rc_context({**sizes, "pdf.fonttype": 42, "svg.fonttype": "none"}):
        width = style.width if columns == 1 else style.full_width
        entry = style.font / 72 * (5 + LETTER * max(map(len, (*names, DENSE))))  # a handle, and its name
        legend_columns = max(1, min(len(names) + 1, int(width / entry)))
        legend = 1.6 * style.font / 72 * -(-(len(names) + 1) // legend_columns)
        figure = Figure(figsize=(width, style.panel_height * rows + legend), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _draw(axis, panel, names, style, x, y, has_seeds=options.seeds)
        for row in axes:
            row[0].set_ylabel(y.label)
        _draw_legend(figure, (*names, DENSE), columns=legend_columns)
    return figure


def _draw_legend(figure: Figure, names: Sequence[str], *, columns: int) -> None:
    pairs = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    handles = {name: handle for of_axis in pairs for handle, name in of_axis}
    labels = [name for name in names if name in handles]
    lines = [handles[name] for name in labels]
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)


def render(figure: Figure, format: str) -> bytes:
    """Return the bytes of a figure as pdf, svg or png, the same for equal figures."""
    import matplotlib

    buffer = io.BytesIO()
    metadata: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "orchestrate", "pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(buffer, format=format, dpi=300, metadata=metadata.get(format))
    return buffer.getvalue()


def _draw(
    axis: Axes,
    panel: FigurePanel,
    names: Sequence[str],
    style: FigureStyle,
    x: XAxis,
    y: YAxis,
    *,
    has_seeds: bool,
) -> None:
    for name, points in panel.lines.items():
        number = names.index(name)
        look: dict[str, Any] = {  # keywords of matplotlib
            "color": OKABE_ITO[number % len(OKABE_ITO)],
            "marker": MARKERS[(number + number // 7) % len(MARKERS)],
            "linestyle": STYLES[number % len(STYLES)],
            "linewidth": style.line,
            "markersize": style.marker,
            "label": name,
        }
        visible = sorted((p for p in points if not x.is_log or p.x > 0), key=lambda point: point.x)
        xs, means = [point.x for point in visible], [sum(p.values) / len(p.values) for p in visible]
        if has_seeds:
            axis.plot(xs, means, **look)
            for point in visible:
                axis.plot([point.x] * len(point.values), point.values, ".", color=look["color"], alpha=0.5)
            continue
        ends = [_ends(point, y) for point in visible]
        below = [mean - low for mean, (low, _) in zip(means, ends, strict=True)]
        above = [high - mean for mean, (_, high) in zip(means, ends, strict=True)]
        axis.errorbar(
            xs, means, yerr=[below, above], capsize=style.marker / 2, elinewidth=style.line * 0.7, **look
        )
    if panel.dense:
        axis.axhline(
            sum(panel.dense) / len(panel.dense), color="0.45", linewidth=0.8, linestyle=":", label=DENSE
        )
    axis.set_title(panel.title)
    axis.set_xlabel(x.label)
    if x.is_log:
        _set_log(axis, [p.x for line in panel.lines.values() for p in line if p.x > 0])
    axis.grid(alpha=0.25, linewidth=0.5)


def _set_log(axis: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic, smaller to the right, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    is_narrow = not values or max(values) / min(values) < 100
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_narrow else (1.0,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_xaxis()


def _ends(point: FigurePoint, y: YAxis) -> tuple[float, float]:
    mean = interval([value / y.factor for value in point.values], bounds=y.bounds)
    if mean.low is None or mean.high is None:
        return point.values[0], point.values[0]
    return y.factor * mean.low, y.factor * mean.high
