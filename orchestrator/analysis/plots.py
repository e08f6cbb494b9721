"""Figures of a comparison, drawn by matplotlib."""

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
    from pandas import DataFrame

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", "-.", ":")
MOST_PANELS = 36
INCHES_A_LETTER = 0.055  # at 7 points
INCHES_A_TITLE_LETTER = 0.082  # at 10 points


MOST_DECADES = 2.5  # with ticks between them
MOST_ON_ALL_AXES = 6  # networks that are drawn over MACs as well


@dataclass(frozen=True)
class DataPoint:
    """A point of a line, all in fractions; `low` and `high` are the ends of its bar.

    `xs` are the means of `AXES_OF_COST`, as fractions of the dense network; `is_whole` is False for a mean
    of survivors.
    """

    xs: Mapping[str, float]
    mean: float
    low: float
    high: float
    is_whole: bool = True


@dataclass(frozen=True)
class Panel:
    """Lines of points by method, and the accuracies of the dense networks that they start from."""

    name: str
    lines: dict[str, list[DataPoint]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)
    joined: bool = True  # by lines; the points of a search differ in more than their amounts


def accuracy_against_sparsity(results: DataFrame, *, title: str, format: str = "png") -> bytes:
    """A row per (model, data set, batch size): over sparsity, effective and physical MACs, bars over seeds.

    Many networks are drawn over sparsity alone.
    """
    from matplotlib.figure import Figure  # pyplot takes half a second more

    panels = _panels(results)
    costs = _costs(panels) if len(panels) <= MOST_ON_ALL_AXES else list(AXES_OF_COST)[:1]
    drawn = [(panel, cost) for panel in panels for cost in costs]
    columns = len(costs) if len(costs) > 1 else min(3, len(panels))
    height = math.ceil(len(drawn) / columns)
    # By its name, over all panels: a space may leave a method out for one of its networks.
    looks = {name: n for n, name in enumerate(dict.fromkeys(name for p in panels for name in p.lines))}
    width = 5.2 * columns
    # Entries of the legend in a row
    beside = max(1, int(width / (0.6 + INCHES_A_LETTER * max(map(len, looks)))))
    survivors = any(not mark.is_whole for p in panels for marks in p.lines.values() for mark in marks)
    more = "; hollow: mean of survivors, other seeds were stopped early" if survivors else ""
    heading = textwrap.wrap(f"{title} ({spread_note(results)}{more})", int(width / INCHES_A_TITLE_LETTER))
    entries = 0.16 * math.ceil((len(looks) + 1) / beside)
    size = (width, 3.7 * height + entries + 0.17 * (len(heading) - 1))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, (panel, cost) in zip(axes.flat, drawn, strict=False):
        _draw(axis, panel, looks, cost)
    found = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes.flat]
    handles = {name: handle for pairs in found for handle, name in pairs}
    names = sorted(handles, key=lambda name: looks.get(name, len(looks)))  # the dense line last
    figure.legend(
        [handles[name] for name in names],
        names,
        frameon=False,
        fontsize=7,
        loc="outside lower center",
        ncols=beside,
    )
    figure.suptitle("\n".join(heading), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130 if columns <= 3 else 100)
    return buffer.getvalue()


def spread_note(results: DataFrame) -> str:
    """How many seeds stand behind the points, and what their bars are."""
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
    searched = bool(results.attrs.get("objectives"))
    for setting, rows in settings(results):
        name = f"{setting['model']} on {setting['dataset']}" if searched else panel_title(setting)
        panel = panels.setdefault(name, Panel(name, joined=not searched))
        line = method_names(setting) if searched else method_label(setting)
        xs = {name: of(rows) for name, of in COSTS_OF.items()}
        whole = not rows.attrs.get(STOPPED)
        panel.lines.setdefault(line, []).append(
            DataPoint(xs, *spread(rows["final/accuracy"].tolist()), whole)
        )
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
    """The axes along which the networks differ."""
    marks = [mark for panel in panels for marks in panel.lines.values() for mark in marks]
    varied = [name for name in AXES_OF_COST if len({round(mark.xs[name], 6) for mark in marks}) > 1]
    return varied if "sparsity" in varied else ["sparsity", *varied]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of fractions: the 95% interval; the value itself or the range of one or two seeds."""
    found = interval(values)
    if found.low is None or found.high is None:
        return found.mean, found.mean, found.mean
    return found.mean, found.low, found.high


def _draw(axis: Axes, panel: Panel, looks: Mapping[str, int], cost: str) -> None:
    for label, marks in panel.lines.items():
        # What is left of nothing has no place on a logarithmic axis.
        placed = [mark for mark in marks if cost == "sparsity" or mark.xs[cost] > 0]
        _line(axis, sorted(placed, key=lambda mark: mark.xs[cost]), label, looks[label], cost, panel.joined)
    if panel.dense:
        dense = 100 * sum(panel.dense) / len(panel.dense)
        axis.axhline(dense, color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label="dense")
    axis.set_title(panel.name, fontsize=9)
    axis.set_xlabel(AXES_OF_COST[cost], fontsize=8)
    axis.set_ylabel("test accuracy (%)", fontsize=8)
    axis.set_ylim(0, 102)
    if cost != "sparsity":
        _mark_decades(axis, [100 * mark.xs[cost] for marks in panel.lines.values() for mark in marks])
        axis.invert_xaxis()  # to the right less is left, as over sparsity
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _mark_decades(axis: Axes, xs: Sequence[float]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 of every decade, or of many at whole decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    above = [x for x in xs if x > 0]
    narrow = not above or max(above) / min(above) < 10**MOST_DECADES
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _line(
    axis: Axes, marks: Sequence[DataPoint], label: str, number: int, cost: str, is_joined: bool
) -> None:
    colour, marker = OKABE_ITO[number % 7], MARKERS[(number + number // 7) % 7]
    x = [100 * mark.xs[cost] for mark in marks]
    axis.errorbar(
        x,
        [100 * mark.mean for mark in marks],
        yerr=[
            [100 * (mark.mean - mark.low) for mark in marks],
            [100 * (mark.high - mark.mean) for mark in marks],
        ],
        label=label,
        color=colour,
        linestyle=STYLES[number % 4] if is_joined else "none",
        marker=marker,
        markersize=4,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
    )
    hollow = [(place, 100 * mark.mean) for place, mark in zip(x, marks, strict=True) if not mark.is_whole]
    if hollow:
        axis.plot(*zip(*hollow, strict=True), marker, mfc="white", mec=colour, ms=5, ls="none", zorder=5)
