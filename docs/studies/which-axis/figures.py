"""Draw the figures of the page from its numbers, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pairs import Record, sign
from svg import shrink

from orchestrator.analysis.figure import STYLES_BY_NAME, render
from orchestrator.analysis.plots import MARKERS, OKABE_ITO

AXES = ("amount", "sparsity", "effective", "physical")  # of the curves
STYLE = STYLES_BY_NAME["paper"]
WIDTH = 7.2  # inches
LABELS = {
    "amount": "amount removed (%)",
    "sparsity": "sparsity (%)",
    "effective": "effective MACs left (%)",
    "physical": "physical MACs left (%)",
    "latency": "time of one image (% of dense)",
}
COLUMNS = {
    name: number for number, name in enumerate(("amount", "sparsity", "effective", "physical", "latency"))
}
MEAN, LOW, HIGH = 5, 6, 7
LINES = {  # method -> colour, marker, line
    "weights": (OKABE_ITO[0], "o", "-"),
    "units": (OKABE_ITO[1], "s", "-"),
    "channels": (OKABE_ITO[2], "D", "-"),
    "weights, global": (OKABE_ITO[3], "^", "--"),
    "weights, random": (OKABE_ITO[5], "v", ":"),
    "channels, random": (OKABE_ITO[4], "P", ":"),
    "2:4": (OKABE_ITO[6], "X", "none"),
}
GAIN_AXES = {
    "amount": "amount",
    "sparsity": "sparsity",
    "parameters": "living parameters",
    "effective": "effective MACs",
    "physical": "physical MACs",
    "latency": "latency",
}


def draw(results: Record, folder: Path) -> list[Path]:
    """Write every figure into a folder; return their paths."""
    makers: dict[str, Callable[[Record], Figure]] = {
        **{f"axes-{name}": partial(curves, panels=panels) for name, panels in pages_of(results).items()},
        "differences": differences,
        "causes": causes,
        "pq-index": courses,
        "rounding": rounding,
    }
    if results["latency"]:
        makers["latency"] = latency
    paths = []
    with matplotlib.rc_context(
        {
            "hatch.linewidth": 0.4,
            "font.size": STYLE.font,
            "axes.titlesize": STYLE.font,
            "legend.fontsize": STYLE.font - 1,
        }
    ):
        for name, make in makers.items():
            path = folder / f"{name}.svg"
            path.write_text(shrink(render(make(results), "svg").decode()), encoding="utf-8")
            paths.append(path)
    return paths


def pages_of(results: Record) -> dict[str, list[str]]:
    """Return the panels of each data set and length of training, by `digits-10`."""
    pages: dict[str, list[str]] = {}
    for panel in results["no_retraining"]["curves"]:
        pages.setdefault("-".join(panel.split("/")[1:]), []).append(panel)
    return pages


def curves(results: Record, *, panels: Sequence[str]) -> Figure:
    """Accuracy over four axes, a row for each network."""
    compared = results["no_retraining"]
    figure = Figure(figsize=(WIDTH, 1.6 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), len(AXES), squeeze=False, sharey="row", sharex="col")
    for row, panel in zip(axes, panels, strict=True):
        for axis, name in zip(row, AXES, strict=True):
            _curves_of(axis, compared, panel, name)
        network, data, _ = panel.split("/")
        row[0].set_ylabel(f"{network}, {data}\naccuracy (%)")
    for axis, name in zip(axes[-1], AXES, strict=True):
        axis.set_xlabel(LABELS[name])
    _legend(figure, axes[0][0], columns=4)
    return figure


def _curves_of(axis: Axes, compared: Record, panel: str, name: str) -> None:
    column = COLUMNS[name]
    for method, (colour, marker, line) in LINES.items():
        # In the order of the amounts.
        points = [point for point in compared["curves"][panel].get(method, []) if point[column]]
        if not points:
            continue
        xs, means = ([100 * point[n] for point in points] for n in (column, MEAN))
        look = {"color": colour, "linewidth": STYLE.line, "markersize": STYLE.marker}
        axis.plot(xs, means, marker=marker, linestyle=line, label=method, **look)
        ends = [end for point in points for end in (100 * point[LOW], 100 * point[HIGH], nan)]
        # One path with gaps: a bar for each point would be most of the file.
        axis.plot([x for x in xs for _ in range(3)], ends, color=colour, linewidth=0.6)
    dense = 100 * compared["dense"][panel]["mean"]
    axis.axhline(dense, color="0.45", linewidth=0.8, linestyle=":", label="dense")
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.25, linewidth=0.5)
    if name not in ("amount", "sparsity"):
        _set_log(axis)


def _set_log(axis: Axes) -> None:
    """Make an axis of costs logarithmic, cheaper to the right."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    if not axis.xaxis_inverted():
        axis.invert_xaxis()


def differences(results: Record) -> Figure:
    """Mean gains with intervals by panel, a column for each pair of granularities; full: after correction."""
    compared = results["no_retraining"]
    pairs = [("weights", "units"), ("weights", "channels"), ("units", "channels")]
    panels = list(compared["curves"])
    figure = Figure(figsize=(WIDTH, 0.62 * len(panels) + 0.9), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axis, (first, second) in zip(axes, pairs, strict=True):
        by_panel = {
            p["panel"]: p["gains"] for p in compared["pairs"] if (p["first"], p["second"]) == (first, second)
        }
        for row, panel in enumerate(panels):
            _gains_of(axis, by_panel.get(panel, {}), row)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_title(f"{first} minus {second}")
        axis.set_xlabel("points of accuracy")
        axis.grid(alpha=0.25, linewidth=0.5, axis="x")
    axes[0].set_yticks(range(len(panels)), [panel.replace("/", ", ") + " epochs" for panel in panels])
    axes[0].invert_yaxis()
    for number, (name, label) in enumerate(GAIN_AXES.items()):
        if any(pair["gains"].get(name) for pair in compared["pairs"]):
            axes[0].plot([], [], MARKERS[number], color=OKABE_ITO[number], markersize=4, label=label)
    _legend(figure, axes[0], columns=6)
    return figure


def _gains_of(axis: Axes, gains: Record, row: int) -> None:
    for number, name in enumerate(GAIN_AXES):
        if not (gain := gains.get(name)) or gain["low"] is None:
            continue
        height, colour, marker = row + 0.14 * (number - 2), OKABE_ITO[number], MARKERS[number]
        axis.plot([100 * gain["low"], 100 * gain["high"]], [height] * 2, color=colour, linewidth=1)
        fill = colour if sign(gain) else "white"
        axis.plot(100 * gain["mean"], height, marker, color=colour, markerfacecolor=fill, markersize=4)


def causes(results: Record) -> Figure:
    """Stacked shares of variance by cause."""
    settings = results["causes"]
    names = {"seed": "seed", "rest": "rest", "train": "training images", "test": "test images"}
    figure = Figure(figsize=(WIDTH, 0.33 * len(settings) + 0.9), layout="constrained")
    axis = figure.subplots()
    for row, setting in enumerate(settings.values()):
        total, left = sum(setting[name] ** 2 for name in names) or 1.0, 0.0
        for number, name in enumerate(names):
            share = 100 * setting[name] ** 2 / total
            label = names[name] if row == 0 else None
            axis.barh(
                row,
                share,
                left=left,
                color=OKABE_ITO[number],
                label=label,
                hatch=("", "//", "..", "xx")[number],
            )
            left += share
        axis.text(101, row, f"sd {100 * total**0.5:.1f} points", va="center")
    axis.set_yticks(range(len(settings)), list(settings))
    axis.invert_yaxis()
    axis.set_xlim(0, 122)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("share of the variance (%)")
    _legend(figure, axis, columns=4)
    return figure


def courses(results: Record) -> Figure:
    """The PQ index after each round against the density that is left, by network and method."""
    panels = list(dict.fromkeys(course["panel"] for course in results["courses"]))
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        of_panel = [course for course in results["courses"] if course["panel"] == panel]
        for number, course in enumerate(of_panel):
            axis.plot(
                [100 * density for density in course["density"]],
                course["index"],
                color=OKABE_ITO[number % 7],
                marker=MARKERS[number % 7],
                linestyle="-" if course["method"].startswith("SAP") else "--",
                markersize=STYLE.marker,
                linewidth=STYLE.line,
                label=course["method"],
            )
        axis.set_title(", ".join(panel.split("/")[:2]))
        axis.set_xlabel("density left (%)")
        axis.grid(alpha=0.25, linewidth=0.5)
        _set_log(axis)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[0].set_ylabel("PQ index of the living weights")
    _legend(figure, axes[0], columns=3)
    return figure


def rounding(results: Record) -> Figure:
    """How much less the published program has removed after each round, in per cent of all weights."""
    panels = list(dict.fromkeys(record["panel"] for record in results["rounding"]))
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for number, record in enumerate(r for r in results["rounding"] if r["panel"] == panel):
            less = [100 * value for value in record["less"]]
            look = {"color": OKABE_ITO[number], "marker": MARKERS[number], "markersize": STYLE.marker}
            axis.plot(range(1, len(less) + 1), less, label=f"scope {record['scope']}", linewidth=1, **look)
        axis.set_title(", ".join(panel.split("/")) + " epochs")
        axis.set_xlabel("round")
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("removed by the formula, not by\nthe program (% of all weights)")
    _legend(figure, axes[0], columns=3)
    return figure


def latency(results: Record) -> Figure:
    """Accuracy against measured time, as a share of the dense network's."""
    compared = results["no_retraining"]
    panels = list(dict.fromkeys(share["panel"] for share in results["latency"]["shares"]))
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _curves_of(axis, compared, panel, "latency")
        axis.set_title(", ".join(panel.split("/")) + " epochs")
        axis.set_xlabel(LABELS["latency"])
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[0].set_ylabel("test accuracy (%)")
    _legend(figure, axes[0], columns=5)
    return figure


def _legend(figure: Figure, axis: Axes, *, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
