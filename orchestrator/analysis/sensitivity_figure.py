"""The picture of a sensitivity: for each layer how far the loss rises, from the input to the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.analysis.plots import MARKERS, OKABE_ITO
from orchestrator.analysis.sensitivity import SHOWN, SensitivityGroup
from orchestrator.errors import UsageError
from orchestrator.formatting import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GROUPS, MOST_LAYERS = 6, 120
ROW, WIDTH = 0.17, 6.0  # inches: the height of a layer, and the width
LINEAR_BELOW = 0.01  # of a rise in nats: the axis is logarithmic above


def make_sensitivity_figure(groups: Sequence[SensitivityGroup]) -> Figure:
    """Return a matplotlib figure with a panel for each group. UsageError for more than fit on a page."""
    import matplotlib
    from matplotlib.figure import Figure

    layers = [len(group.rows) for group in groups]
    if not groups or len(groups) > MOST_GROUPS or max(layers) > MOST_LAYERS:
        raise UsageError(
            f"--out: a picture has up to {MOST_GROUPS} networks of up to {MOST_LAYERS} layers; here are "
            f"{len(groups)} of up to {max(layers, default=0)}: name fewer runs, or write --csv"
        )
    sizes = [ROW * count + 0.9 for count in layers]
    with matplotlib.rc_context({"font.size": 8.0, "pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH, sum(sizes) + 0.3), layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": sizes})
        for axis, group in zip(axes.flat, groups, strict=True):
            _draw(axis, group)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    return figure


def _draw(axis: Axes, group: SensitivityGroup) -> None:
    axis.set_xmargin(0.06)
    for number, part in enumerate(SHOWN):
        points = [
            (rise, position)
            for position, row in enumerate(group.rows)
            if (rise := row.rises[part]) is not None and math.isfinite(rise)
        ]
        axis.plot(
            [rise for rise, _ in points],
            [position for _, position in points],
            linestyle="none",
            marker=MARKERS[number],
            markersize=4,
            clip_on=False,
            color=OKABE_ITO[number],
            label=f"{format_percent(part)} removed",
        )
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(group.rows)), [row.name for row in group.rows])
    axis.set_ylim(len(group.rows) - 0.5, -0.5)
    axis.set_xscale("symlog", linthresh=LINEAR_BELOW)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_xlabel("rise of the loss on validation images, in nats")
    axis.set_title(group.title, loc="left", fontsize=8)
