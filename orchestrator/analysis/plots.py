"""The figure of a sweep by matplotlib: accuracy against sparsity and MACs."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import FEWEST_FOR_INTERVAL, dense_interval, interval
from orchestrator.analysis.settings import STOPPED, method_label, method_names, panel_title, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", "-.", ":")
MOST_PANELS = 36
INCHES_PER_LETTER = 0.055  # at 7 points
INCHES_PER_TITLE_LETTER = 0.082  # at 10 points
MOST_DECADES = 2.5  # of an axis with ticks at 2 and 5 as well
MOST_ON_ALL_AXES = 6  # networks; more are drawn over sparsity alone


@dataclass(frozen=True)
class DataPoint:
    """A point of a line, in fractions; `low` and `high` are the ends of its bar.

    `xs` are the values on each of `AXES_OF_COST`. `is_complete` is False where some seeds were stopped early.
    """

    xs: Mapping[str, float]
    mean: float
    low: float
    high: float
    is_complete: bool = True


@dataclass(frozen=True)
class Panel:
    """Lines of points by method, and the accuracies of the dense networks that they start from.

    `is_joined`: whether lines join the points; those of a search differ in more than their amounts.
    """

    name: str
    lines: dict[str, list[DataPoint]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)
    is_joined: bool = True


def accuracy_against_sparsity(results: DataFrame, *, title: str, format: str = "png") -> bytes:
    """Return an image with a row of panels per network: over sparsity, effective and physical MACs.

    Bars are intervals over seeds. More than six networks get one panel each, over sparsity.
    """
    from matplotlib.figure import Figure  # pyplot takes half a second more

    panels = _panels(results)
    costs = _costs(panels) if len(panels) <= MOST_ON_ALL_AXES else list(AXES_OF_COST)[:1]
    plots = [(panel, cost) for panel in panels for cost in costs]
    columns = len(costs) if len(costs) > 1 else min(3, len(panels))
    rows = math.ceil(len(plots) / columns)
    # Numbered over all panels: a space may leave a method out for one of its networks.
    styles = {name: n for n, name in enumerate(dict.fromkeys(name for p in panels for name in p.lines))}
    width = 5.2 * columns
    entries_in_a_row = max(1, int(width / (0.6 + INCHES_PER_LETTER * max(map(len, styles)))))
    is_partial = any(not point.is_complete for p in panels for line in p.lines.values() for point in line)
    hollow = "; hollow: mean of survivors, other seeds were stopped early" if is_partial else ""
    heading = textwrap.wrap(f"{title} ({spread_note(results)}{hollow})", int(width / INCHES_PER_TITLE_LETTER))
    legend_height = 0.16 * math.ceil((len(styles) + 1) / entries_in_a_row)
    size = (width, 3.7 * rows + legend_height + 0.17 * (len(heading) - 1))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(plots) :]:
        axis.set_visible(False)
    for axis, (panel, cost) in zip(axes.flat, plots, strict=False):
        _draw_panel(axis, panel, styles, cost)
    _draw_legend(figure, styles, entries_in_a_row)
    figure.suptitle("\n".join(heading), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130 if columns <= 3 else 100)
    return buffer.getvalue()


def _draw_legend(figure: Figure, styles: Mapping[str, int], columns: int) -> None:
    pairs = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    handles = {name: handle for of_axis in pairs for handle, name in of_axis}
    names = sorted(handles, key=lambda name: styles.get(name, len(styles)))  # the dense line last
    lines = [handles[name] for name in names]
    figure.legend(lines, names, frameon=False, fontsize=7, loc="outside lower center", ncols=columns)


def spread_note(results: DataFrame) -> str:
    """Return over how many seeds the points are means, and what their bars are."""
    counts = sorted({len(rows) for _, rows in settings(results)} or {1})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    if counts[-1] == 1:
        return "one seed"
    if counts[-1] < FEWEST_FOR_INTERVAL:
        return f"{seeds}, bars from lowest to highest"
    two = "; of two seeds from lowest to highest" if 2 in counts else ""
    return f"{seeds}, bars are 95% t intervals of the mean{two}"


def _panels(results: DataFrame) -> list[Panel]:
    panels: dict[str, Panel] = {}
    is_search = bool(results.attrs.get("objectives"))
    for setting, rows in settings(results):
        name = f"{setting['model']} on {setting['dataset']}" if is_search else panel_title(setting)
        panel = panels.setdefault(name, Panel(name, is_joined=not is_search))
        label = method_names(setting) if is_search else method_label(setting)
        xs = {name: cost(rows) for name, cost in COSTS_OF.items()}
        accuracy = spread(rows["final/accuracy"].tolist())
        panel.lines.setdefault(label, []).append(DataPoint(xs, *accuracy, not rows.attrs.get(STOPPED)))
        if (dense := dense_interval(rows)) is not None:
            panel.dense.append(dense.mean)
    return list(panels.values())[:MOST_PANELS]


def _share(rows: DataFrame, name: str) -> float:
    return float(rows[f"final/{name}"].mean() / rows["final/macs_dense"].mean())


COSTS_OF: Mapping[str, Callable[[DataFrame], float]] = {
    "sparsity": lambda rows: float(rows["final/sparsity"].mean()),
    "effective": lambda rows: _share(rows, "macs_effective"),
    "physical": lambda rows: _share(rows, "macs_physical"),
}
AXES_OF_COST = {
    "sparsity": "sparsity: weights removed (%)",
    "effective": "effective MACs left (% of dense, log)",
    "physical": "physical MACs left, cut out (% of dense, log)",
}


def _costs(panels: Sequence[Panel]) -> list[str]:
    """The axes along which the networks differ, and sparsity."""
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    varied = [name for name in AXES_OF_COST if len({round(point.xs[name], 6) for point in points}) > 1]
    return varied if "sparsity" in varied else ["sparsity", *varied]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, low and high of fractions: the 95% interval; of two values their range, of one itself."""
    mean = interval(values)
    if mean.low is None or mean.high is None:
        return mean.mean, mean.mean, mean.mean
    return mean.mean, mean.low, mean.high


def _draw_panel(axis: Axes, panel: Panel, styles: Mapping[str, int], cost: str) -> None:
    for label, line in panel.lines.items():
        # A logarithmic axis has no 0.
        points = [point for point in line if cost == "sparsity" or point.xs[cost] > 0]
        points.sort(key=lambda point: point.xs[cost])
        _draw_line(axis, points, label, styles[label], cost, is_joined=panel.is_joined)
    if panel.dense:
        dense = 100 * sum(panel.dense) / len(panel.dense)
        axis.axhline(dense, color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label="dense")
    axis.set_title(panel.name, fontsize=9)
    axis.set_xlabel(AXES_OF_COST[cost], fontsize=8)
    axis.set_ylabel("test accuracy (%)", fontsize=8)
    axis.set_ylim(0, 102)
    if cost != "sparsity":
        _set_log_ticks(axis, [100 * point.xs[cost] for line in panel.lines.values() for point in line])
        axis.invert_xaxis()  # more is pruned to the right, as over sparsity
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _set_log_ticks(axis: Axes, xs: Sequence[float]) -> None:
    """Make the axis logarithmic, with ticks at 1, 2 and 5 of every decade, or of many decades at 1 alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    positive = [x for x in xs if x > 0]
    is_narrow = not positive or max(positive) / min(positive) < 10**MOST_DECADES
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_narrow else (1.0,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _draw_line(
    axis: Axes, points: Sequence[DataPoint], label: str, number: int, cost: str, *, is_joined: bool
) -> None:
    colour, marker = OKABE_ITO[number % 7], MARKERS[(number + number // 7) % 7]
    x, y = [100 * point.xs[cost] for point in points], [100 * point.mean for point in points]
    below = [100 * (point.mean - point.low) for point in points]
    above = [100 * (point.high - point.mean) for point in points]
    axis.errorbar(
        x,
        y,
        yerr=[below, above],
        label=label,
        color=colour,
        linestyle=STYLES[number % 4] if is_joined else "none",
        marker=marker,
        markersize=4,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
    )
    hollow = [xy for *xy, point in zip(x, y, points, strict=True) if not point.is_complete]
    if hollow:
        axis.plot(*zip(*hollow, strict=True), marker, mfc="white", mec=colour, ms=5, ls="none", zorder=5)
