"""What a figure shows: points by panel and line, from the results of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import AMOUNT, FRACTION, Bounds, dense_interval
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
    from pandas import DataFrame


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
class FigurePoint:
    """A point of a line: `values` are those of its seeds, in the units of the axis."""

    x: float
    values: tuple[float, ...]  # of the seeds


@dataclass
class FigurePanel:
    """Lines of points by their labels, and the means of the dense networks that they start from."""

    title: str
    lines: dict[str, list[FigurePoint]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)


def find_axes(options: FigureOptions) -> tuple[XAxis, YAxis]:
    """Return the axes of a figure. UsageError, with near names, for an unknown one."""
    tables: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("x", options.x, X_AXES),
        ("y", options.y, Y_AXES),
    )
    for option, name, known in tables:
        if name not in known:
            raise UsageError(f"--{option}: {unknown_name('measure', name, known)}")
    return X_AXES[options.x], Y_AXES[options.y]


def find_panels(results: DataFrame, options: FigureOptions) -> list[FigurePanel]:
    """Return the panels of a figure, in the order of the plan.

    Raises UsageError for an unknown name, for a measure that no trial has, and where a line would mix
    settings that differ in more than their amount.
    """
    x, y = find_axes(options)
    _check_columns(results, (*options.by, *([options.facet] if options.facet else [])))
    panels: dict[str, FigurePanel] = {}
    mixed: dict[tuple[str, str], list[dict[str, object]]] = {}
    for setting, rows in settings(results):
        title = _value(rows, options.facet) if options.facet else panel_title(setting)
        label = _label(setting, rows, options.by)
        mixed.setdefault((title, label), []).append(setting)
        panel = panels.setdefault(title, FigurePanel(title))
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


def _point(rows: DataFrame, x: XAxis, y: YAxis) -> FigurePoint:
    for metric in filter(None, (x.metric, x.share_of, y.metric)):
        if metric not in rows or rows[metric].isna().any():
            hint = "`orchestrate latency SWEEP` measures it" if "latency" in metric else "take another"
            raise UsageError(f"not every trial has {metric.removeprefix('final/')}; {hint}")
    value = float(rows[x.metric].mean()) * x.factor
    value = value / float(rows[x.share_of].mean()) if x.share_of else value
    return FigurePoint(value, tuple(y.factor * float(v) for v in rows[y.metric]))


def _dense(rows: DataFrame, y: YAxis) -> float | None:
    if y.metric == "final/accuracy":
        dense = dense_interval(rows)
        return None if dense is None else y.factor * dense.mean
    return None if rows[y.dense].isna().any() else y.factor * float(rows[y.dense].mean())
