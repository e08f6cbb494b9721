"""Pictures of a comparison: colours for the colour-blind, markers and line styles for black and white."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.compare import interval, setting_columns, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", "-.", ":")
MOST_PANELS = 36
Setting = Mapping[str, Any]  # axis values of any type


def accuracy_against_sparsity(results: DataFrame, *, title: str, format: str = "png") -> bytes:
    """One panel per (model, data set, batch size), a line per method with its 95% interval over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(results)
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(5.2 * columns, 3.9 * height), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, name, lines)
    axes.flat[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()


def _panels(results: DataFrame) -> dict[str, dict[str, list[tuple[float, Any, float]]]]:
    """Panel -> line -> points (sparsity, interval of the accuracy, dense accuracy)."""
    here = [c for c in ("model", "dataset", "batch_size") if c in results.columns]
    told = [c for c in setting_columns(results) if c not in here and c != "amount"]
    panels: dict[str, dict[str, list[tuple[float, Any, float]]]] = {}
    for setting, rows in settings(results):
        panel = f"{setting['model']} on {setting['dataset']}, batch {setting['batch_size']}"
        line = ", ".join(str(setting[c]) for c in told)
        point = (
            float(rows["final/sparsity"].mean()),
            interval(rows["final/accuracy"].tolist()),
            float(rows["ipa/accuracy"].mean()),
        )
        panels.setdefault(panel, {}).setdefault(line, []).append(point)
    return dict(list(panels.items())[:MOST_PANELS])


def _draw(axis: Axes, name: str, lines: Mapping[str, Sequence[tuple[float, Any, float]]]) -> None:
    for number, (label, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: point[0])
        x = [100 * point[0] for point in points]
        y = [100 * point[1].mean for point in points]
        spread = [100 * (point[1].half_width or 0.0) for point in points]
        look = {"color": OKABE_ITO[number % 7], "linestyle": STYLES[number % 4]}
        axis.plot(x, y, marker=MARKERS[number % 7], markersize=4, linewidth=1.4, label=label, **look)
        low = [a - b for a, b in zip(y, spread, strict=True)]
        high = [min(100.0, a + b) for a, b in zip(y, spread, strict=True)]
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    dense = [point[2] for points in lines.values() for point in points]
    axis.axhline(100 * sum(dense) / len(dense), color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label="dense")
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("sparsity: weights removed (%)", fontsize=8)
    axis.set_ylabel("test accuracy (%)", fontsize=8)
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
