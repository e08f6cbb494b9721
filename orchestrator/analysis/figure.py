"""Figures for papers and talks: one measure over another, a line for each value of what was compared."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.intervals import AMOUNT, FRACTION, Bounds, dense_interval, interval
from orchestrator.analysis.plots import MARKERS, OKABE_ITO, STYLES
from orchestrator.analysis.settings import (
    NETWORK,
    axis_columns,
    method_label,
    panel_title,
    setting_columns,
    settings,
)
from orchestrator.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

FORMATS = ("pdf", "svg", "png")


@dataclass(frozen=True)
class XAxis:
    """A measure of how much is pruned: a column of the results, divided by `share_of` where it has one."""

    metric: str
    label: str
    factor: float = 1.0
    share_of: str = ""
    is_log: bool = False


@dataclass(frozen=True)
class YAxis:
    """A measure of how good a network is. `dense` is the metric of the dense network."""

    metric: str
    dense: str
    label: str
    factor: float = 100.0
    bounds: Bounds = FRACTION


X_AXES = {
    "amount": XAxis("amount", "amount (%)", 100.0),
    "sparsity": XAxis("final/sparsity", "sparsity (%)", 100.0),
    "macs": XAxis("final/macs_effective", "effective MACs left (%)", 100.0, "final/macs_dense", is_log=True),
    "macs_physical": XAxis(
        "final/macs_physical", "MACs left, cut out (%)", 100.0, "final/macs_dense", is_log=True
    ),
    "parameters": XAxis("final/parameters_physical", "parameters, cut out", is_log=True),
    "bytes": XAxis("final/bytes_sparse", "size (kB)", 1e-3, is_log=True),
    "latency": XAxis("final/latency_ms_p50", "latency of one image (ms)"),
}
Y_AXES = {
    "accuracy": YAxis("final/accuracy", "ipa/accuracy", "test accuracy (%)"),
    "top5": YAxis("final/top5", "ipa/top5", "test top-5 accuracy (%)"),
    "worst_class": YAxis("final/worst_class_accuracy", "", "accuracy of the worst class (%)"),
    "loss": YAxis("final/loss", "ipa/loss", "test cross-entropy (nats)", 1.0, AMOUNT),
}


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


@dataclass(frozen=True)
class FigureOptions:
    """What a figure shows: keys of X_AXES and Y_AXES, and columns of the results for lines and panels.

    `by` is () for methods, as tables name them; `seeds` draws a point for each seed in place of a bar.
    """

    x: str = "sparsity"
    y: str = "accuracy"
    by: tuple[str, ...] = ()
    facet: str = ""
    style: str = "paper"
    seeds: bool = False


DEFAULT_OPTIONS = FigureOptions()


@dataclass(frozen=True)
class _Point:
    x: float
    values: tuple[float, ...]  # of the seeds


@dataclass
class _Panel:
    title: str
    lines: dict[str, list[_Point]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)


def make_figure(results: DataFrame, options: FigureOptions = DEFAULT_OPTIONS) -> Figure:
    """Return a matplotlib figure of a sweep's results (see `results`): means and 95% intervals over seeds.

    Raises UsageError for an unknown name, for a measure that no trial has, and where a line would mix
    settings that differ in more than their amount.
    """
    import matplotlib
    from matplotlib.figure import Figure

    x, y, style = _chosen(options)
    panels = _panels(results, options, x, y)
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
        handles = {
            label: handle
            for axis in axes.flat
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        shown = [name for name in (*names, DENSE) if name in handles]
        lines = [handles[name] for name in shown]
        figure.legend(lines, shown, loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def render(figure: Figure, format: str) -> bytes:
    """Return the bytes of a figure as pdf, svg or png, the same for equal figures."""
    import matplotlib

    buffer = io.BytesIO()
    metadata: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "orchestrate", "pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(buffer, format=format, dpi=300, metadata=metadata.get(format))
    return buffer.getvalue()


def _chosen(options: FigureOptions) -> tuple[XAxis, YAxis, FigureStyle]:
    tables: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("x", options.x, X_AXES),
        ("y", options.y, Y_AXES),
        ("style", options.style, STYLES_BY_NAME),
    )
    for kind, name, known in tables:
        if name not in known:
            raise UsageError(f"--{kind}: {unknown_name('measure' if kind != 'style' else kind, name, known)}")
    return X_AXES[options.x], Y_AXES[options.y], STYLES_BY_NAME[options.style]


def _panels(results: DataFrame, options: FigureOptions, x: XAxis, y: YAxis) -> list[_Panel]:
    _check_columns(results, (*options.by, *([options.facet] if options.facet else [])))
    panels: dict[str, _Panel] = {}
    mixed: dict[tuple[str, str], list[dict[str, object]]] = {}
    for setting, rows in settings(results):
        title = _value(rows, options.facet) if options.facet else panel_title(setting)
        label = _label(setting, rows, options.by)
        mixed.setdefault((title, label), []).append(setting)
        panel = panels.setdefault(title, _Panel(title))
        panel.lines.setdefault(label, []).append(_point(rows, x, y))
        if y.dense and y.dense in rows and (dense := _dense(rows, y)) is not None:
            panel.dense.append(dense)
    if not panels:
        raise UsageError("no trial of this sweep has finished; there is nothing to draw")
    _check_unmixed(mixed, results, options)
    return list(panels.values())


def _check_columns(results: DataFrame, columns: Sequence[str]) -> None:
    known = [c for c in axis_columns(results) if c != "amount"]
    for column in columns:
        if column not in known:
            raise UsageError(unknown_name("column", column, known))


def _label(setting: Mapping[str, object], rows: DataFrame, by: Sequence[str]) -> str:
    return ", ".join(_value(rows, column) for column in by) if by else method_label(setting)


def _value(rows: DataFrame, column: str) -> str:
    """Return a value as text; a number or a field of the recipe with the name of its column."""
    value = rows[column].iloc[0]
    return str(value) if isinstance(value, str) and "." not in column else f"{column}={value}"


def _check_unmixed(
    mixed: Mapping[tuple[str, str], Sequence[Mapping[str, object]]],
    results: DataFrame,
    options: FigureOptions,
) -> None:
    """Raise UsageError where settings of one line differ in more than their amount."""
    shown = {*options.by, options.facet, "amount"}
    for (_, label), of_line in mixed.items():
        varied = [
            column
            for column in setting_columns(results)
            if column not in shown and len({str(setting.get(column)) for setting in of_line}) > 1
        ]
        if varied:
            names = ",".join((*(options.by or ("technique",)), *(c for c in varied if c not in NETWORK)))
            networks = [column for column in varied if column in NETWORK]
            hint = f"--facet {networks[0]}" if networks else f"--by {names}"
            raise UsageError(f"the line {label!r} would mix several {varied[0]}; give {hint}")


def _point(rows: DataFrame, x: XAxis, y: YAxis) -> _Point:
    for metric in filter(None, (x.metric, x.share_of, y.metric)):
        if metric not in rows or rows[metric].isna().any():
            hint = "`orchestrate latency SWEEP` measures it" if "latency" in metric else "take another"
            raise UsageError(f"not every trial has {metric.removeprefix('final/')}; {hint}")
    value = float(rows[x.metric].mean()) * x.factor
    value = value / float(rows[x.share_of].mean()) if x.share_of else value
    return _Point(value, tuple(y.factor * float(v) for v in rows[y.metric]))


def _dense(rows: DataFrame, y: YAxis) -> float | None:
    if y.metric == "final/accuracy":
        dense = dense_interval(rows)
        return None if dense is None else y.factor * dense.mean
    return None if rows[y.dense].isna().any() else y.factor * float(rows[y.dense].mean())


def _draw(
    axis: Axes,
    panel: _Panel,
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


def _ends(point: _Point, y: YAxis) -> tuple[float, float]:
    mean = interval([value / y.factor for value in point.values], bounds=y.bounds)
    if mean.low is None or mean.high is None:
        return point.values[0], point.values[0]
    return y.factor * mean.low, y.factor * mean.high
