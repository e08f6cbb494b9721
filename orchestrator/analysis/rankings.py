"""Which of two methods is more accurate over sparsity and over MACs: the order may differ between axes.

Sparsity alone is unfair to methods that remove whole rows: the next layer's weights for a dead unit are
without effect as well, and do not count as removed. So methods are compared over the remaining MACs, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import DIFFERENCE, Interval, interval
from orchestrator.analysis.settings import STOPPED, method_label, methods, panel_title

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class CostAxis:
    """An axis: a column of the results, or the logarithm of its ratio to that of the dense network."""

    label: str
    metric: str
    dense: str = ""


AXES = {
    "amount": CostAxis("amount", "final/amount"),
    "sparsity": CostAxis("sparsity", "final/sparsity"),
    "parameters": CostAxis("living parameters", "final/parameters_nonzero", "final/parameters_dense"),
    "effective": CostAxis("effective MACs", "final/macs_effective", "final/macs_dense"),
    "physical": CostAxis("physical MACs", "final/macs_physical", "final/macs_dense"),
    "latency": CostAxis("latency", "final/latency_ms_p50", "ipa/latency_ms_p50"),
}
REPORTED_AXES = ("sparsity", "effective", "physical")
POINTS = 101  # of the interpolation, over the range that two lines share
MOST_METHODS = 30  # of a network, the first of the plan
MOST_LINES = 8
Line = tuple[list[float], list[float]]  # values on the axis, rising, and accuracies
Lines = Mapping[str, Mapping[object, Line]]  # axis -> seed


@dataclass(frozen=True)
class Order:
    """How much more accurate `first` is than `second`, by axis: means over the range that both cover.

    Lines are interpolated seed by seed, in the amount, the sparsity, or the logarithm of a cost; None where
    they share no range.
    """

    panel: str
    first: str
    second: str
    gains: Mapping[str, Interval | None]

    @property
    def turns(self) -> bool:
        """Whether `first` is ahead along one axis and behind along another."""
        signs = {gain.mean > 0 for gain in self.gains.values() if gain is not None and gain.mean != 0}
        return len(signs) > 1

    @property
    def is_clear(self) -> bool:
        """Whether it turns by intervals that leave 0 out."""
        signs = {gain.mean > 0 for gain in self.gains.values() if gain is not None and gain.leaves_zero_out}
        return len(signs) > 1

    def text(self) -> str:
        """Write the gains of each axis in a line."""
        gains = [
            f"over {AXES[axis].label} {'they share no range' if gain is None else gain.text(sign='+')}"
            for axis, gain in self.gains.items()
        ]
        return f"{self.first} minus {self.second}: {', '.join(gains)}"


def orders(results: DataFrame, axes: Sequence[str] = REPORTED_AXES) -> list[Order]:
    """Compare every two methods of a network that have several points; none of a search.

    `axes` are keys of AXES whose columns the results have.
    """
    if results.attrs.get("objectives"):
        return []
    panels: dict[str, dict[str, Lines]] = {}
    for method, rows in methods(results):
        lines = panels.setdefault(panel_title(method), {})
        if rows["amount"].nunique() > 1 and not rows.attrs.get(STOPPED) and len(lines) < MOST_METHODS:
            lines[method_label(method)] = _lines(rows, axes)
    return [
        Order(panel, first, second, {axis: _gain(lines[first][axis], lines[second][axis]) for axis in axes})
        for panel, lines in panels.items()
        for first, second in combinations(lines, 2)
    ]


def _lines(rows: DataFrame, axes: Sequence[str]) -> Lines:
    return {axis: {seed: _line(trials, axis) for seed, trials in rows.groupby("seed")} for axis in axes}


def _gain(first: Mapping[object, Line], second: Mapping[object, Line]) -> Interval | None:
    pairs = [_difference(line, second[seed]) for seed, line in first.items() if seed in second]
    gains = [gain for gain in pairs if gain is not None]
    return interval(gains, bounds=DIFFERENCE) if gains else None


def _line(trials: DataFrame, axis: str) -> Line:
    """The line of one seed; of trials at one value of the axis the mean accuracy."""
    cost = AXES[axis]
    values = trials[cost.metric] / trials[cost.dense] if cost.dense else trials[cost.metric]
    if cost.dense:
        values = values[values > 0].map(math.log)  # 0 has no logarithm
    means = trials["final/accuracy"].reindex(values.index).groupby(values).mean().sort_index()
    return [float(value) for value in means.index], [float(mean) for mean in means]


def _difference(first: Line, second: Line) -> float | None:
    """The mean distance of two lines over the range that they share; None without one."""
    import numpy as np

    if not first[0] or not second[0]:
        return None
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if high <= low:
        return None
    values = np.linspace(low, high, POINTS)
    distances = np.interp(values, *first) - np.interp(values, *second)
    return float(np.trapezoid(distances, values) / (high - low))


def gain_at(first: DataFrame, second: DataFrame, axis: str, value: float) -> Interval | None:
    """Return how much more accurate one method is than another at one value of an axis, paired by seed.

    `first` and `second` are rows of `results` of a method each. A cost is a share of the dense network's, in
    (0, 1]. Lines are interpolated as in `orders`. None where no seed has both lines there.
    """
    position = math.log(value) if AXES[axis].dense else value
    lines = [{seed: _line(trials, axis) for seed, trials in rows.groupby("seed")} for rows in (first, second)]
    gains = [
        _value_at(lines[0][seed], position) - _value_at(lines[1][seed], position)
        for seed in lines[0]
        if seed in lines[1]
    ]
    gains = [gain for gain in gains if not math.isnan(gain)]
    return interval(gains, bounds=DIFFERENCE) if gains else None


def _value_at(line: Line, position: float) -> float:
    """The accuracy of a line at a position; NaN outside of it."""
    import numpy as np

    if not line[0]:
        return math.nan
    return float(np.interp(position, *line, left=math.nan, right=math.nan))


def turning(results: DataFrame) -> Iterator[str]:
    """Yield sentences on the methods whose order differs between the axes."""
    compared = orders(results)
    if not compared:
        return
    turned = [order for order in compared if order.turns]
    pairs = f"{len(compared)} {'pair' if len(compared) == 1 else 'pairs'} of methods"
    clear = sum(order.is_clear for order in turned)
    count = "none changes its order"
    if turned:
        word = "changes its order" if len(turned) == 1 else "change their order"
        count = f"{len(turned)} {word} ({clear} with intervals on both sides that leave 0 out)"
    shown = compared[:MOST_LINES] if len(compared) <= MOST_LINES else turned[:MOST_LINES]
    legend = (
        " In points of test accuracy, the mean over the range that both lines share, paired by seed:"
        if shown
        else ""
    )
    yield f"Of {pairs}, {count} from one axis to another.{legend}"
    for order in shown:
        yield f"{order.panel}: {order.text()}" + (" (turns)." if order.turns else ".")
    if len(turned) > len(shown):
        yield f"{len(turned) - len(shown)} more that change are not listed."
