"""Pictures of a comparison: colours for the colour-blind, markers and line styles for black and white."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import interval
from orchestrator.comparing.setting import method_label, method_names, panel_title, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", "-.", ":")
MOST_PANELS = 36
INCHES_A_LETTER = 0.055  # at 7 points
FEWEST_FOR_INTERVAL = 3  # with two seeds a t interval is 13 times as wide as their distance


@dataclass(frozen=True)
class Mark:
    """A point of a line, all in fractions; `low` and `high` are the ends of its bar."""

    sparsity: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Lines of points by method, and the accuracies of the dense networks that they start from."""

    name: str
    lines: dict[str, list[Mark]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)
    joined: bool = True  # by lines; the points of a search differ in more than their amounts


def accuracy_against_sparsity(results: DataFrame, *, title: str, format: str = "png") -> bytes:
    """One panel per (model, data set, batch size), a line per method, bars over seeds."""
    from matplotlib.figure import Figure  # pyplot takes half a second more

    panels = _panels(results)
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    # By its name, over all panels: a space may leave a method out for one of its networks.
    looks = {name: n for n, name in enumerate(dict.fromkeys(name for p in panels for name in p.lines))}
    width = 5.2 * columns
    # Entries of the legend in a row
    beside = max(1, int(width / (0.6 + INCHES_A_LETTER * max(map(len, looks)))))
    size = (width, 3.7 * height + 0.16 * math.ceil((len(looks) + 1) / beside))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, looks)
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
    figure.suptitle(f"{title} ({spread_note(results)})", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130)
    return buffer.getvalue()


def spread_note(results: DataFrame) -> str:
    seeds = results["seed"].nunique()
    if seeds < FEWEST_FOR_INTERVAL:
        return "one seed" if seeds == 1 else f"{seeds} seeds, bars from lowest to highest"
    return f"{seeds} seeds, bars are 95% t intervals of the mean"


def _panels(results: DataFrame) -> list[Panel]:
    panels: dict[str, Panel] = {}
    searched = bool(results.attrs.get("objectives"))
    for setting, rows in settings(results):
        name = f"{setting['model']} on {setting['dataset']}" if searched else panel_title(setting)
        panel = panels.setdefault(name, Panel(name, joined=not searched))
        line = method_names(setting) if searched else method_label(setting)
        mark = Mark(float(rows["final/sparsity"].mean()), *spread(rows["final/accuracy"].tolist()))
        panel.lines.setdefault(line, []).append(mark)
        panel.dense.append(float(rows["ipa/accuracy"].mean()))
    return list(panels.values())[:MOST_PANELS]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95% interval, or the range where there are too few seeds for one."""
    found = interval(values)
    if found.low is None or found.high is None or found.count < FEWEST_FOR_INTERVAL:
        return found.mean, min(values), max(values)
    return found.mean, max(0.0, found.low), min(1.0, found.high)


def _draw(axis: Axes, panel: Panel, looks: Mapping[str, int]) -> None:
    for label, marks in panel.lines.items():
        number = looks[label]
        marks = sorted(marks, key=lambda mark: mark.sparsity)
        mean = [100 * mark.mean for mark in marks]
        below = [100 * (mark.mean - mark.low) for mark in marks]
        above = [100 * (mark.high - mark.mean) for mark in marks]
        axis.errorbar(
            [100 * mark.sparsity for mark in marks],
            mean,
            yerr=[below, above],
            label=label,
            color=OKABE_ITO[number % 7],
            linestyle=STYLES[number % 4] if panel.joined else "none",
            marker=MARKERS[(number + number // 7) % 7],
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    dense = 100 * sum(panel.dense) / len(panel.dense)
    axis.axhline(dense, color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label="dense")
    axis.set_title(panel.name, fontsize=9)
    axis.set_xlabel("sparsity: weights removed (%)", fontsize=8)
    axis.set_ylabel("test accuracy (%)", fontsize=8)
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
