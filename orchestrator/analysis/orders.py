"""Which of two methods is more accurate, along each cost: an order may turn from one axis to another.

Over sparsity whoever removes whole rows is at a disadvantage: what the next layer has for a dead unit is
dead as well, and is not counted. So methods are compared along the MACs that are left, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import DIFFERENCE, Interval, interval
from orchestrator.analysis.settings import STOPPED, method_label, methods, panel_title

if TYPE_CHECKING:
    from pandas import DataFrame

AXES = {"sparsity": "sparsity", "effective": "effective MACs", "physical": "physical MACs"}
POINTS = 101  # along the range that two lines share
MOST_METHODS = 30  # of a network, the first of the plan
MOST_LINES = 8
Line = tuple[list[float], list[float]]  # places and accuracies
Lines = Mapping[str, Mapping[object, Line]]  # axis -> seed


@dataclass(frozen=True)
class Order:
    """How much more accurate `first` is than `second` along an axis: a mean over their common range.

    Lines are drawn seed by seed, in log MACs and in sparsity, and compared where both are; None where
    they share no range.
    """

    panel: str
    first: str
    second: str
    gains: Mapping[str, Interval | None]

    @property
    def turns(self) -> bool:
        """Whether one is ahead along one axis, and behind along another."""
        signs = {gain.mean > 0 for gain in self.gains.values() if gain is not None and gain.mean != 0}
        return len(signs) > 1

    @property
    def is_clear(self) -> bool:
        """Whether intervals on both sides leave 0 out."""
        signs = {gain.mean > 0 for gain in self.gains.values() if gain is not None and gain.leaves_zero_out}
        return len(signs) > 1

    def text(self) -> str:
        parts = [
            f"over {AXES[axis]} {'they share no range' if gain is None else gain.text(sign='+')}"
            for axis, gain in self.gains.items()
        ]
        return f"{self.first} minus {self.second}: {', '.join(parts)}"


def orders(results: DataFrame) -> list[Order]:
    """Every two methods of the same network that have several amounts; nothing of a search."""
    if results.attrs.get("objectives"):
        return []
    panels: dict[str, dict[str, Lines]] = {}
    for method, rows in methods(results):
        lines = panels.setdefault(panel_title(method), {})
        if rows["amount"].nunique() > 1 and not rows.attrs.get(STOPPED) and len(lines) < MOST_METHODS:
            lines[method_label(method)] = _lines(rows)
    return [
        Order(panel, first, second, {axis: _gain(lines[first][axis], lines[second][axis]) for axis in AXES})
        for panel, lines in panels.items()
        for first, second in combinations(lines, 2)
    ]


def _lines(rows: DataFrame) -> Lines:
    return {axis: {seed: _line(own, axis) for seed, own in rows.groupby("seed")} for axis in AXES}


def _gain(first: Mapping[object, Line], second: Mapping[object, Line]) -> Interval | None:
    pairs = [_difference(line, second[seed]) for seed, line in first.items() if seed in second]
    gains = [gain for gain in pairs if gain is not None]
    return interval(gains, bounds=DIFFERENCE) if gains else None


def _line(own: DataFrame, axis: str) -> Line:
    """Of one seed: places along the axis, rising, and accuracies there; of equal places the mean."""
    if axis == "sparsity":
        means = own["final/accuracy"].groupby(own["final/sparsity"]).mean().sort_index()
    else:
        left = own[f"final/macs_{axis}"] / own["final/macs_dense"]
        living = left > 0
        means = own["final/accuracy"][living].groupby(left[living].map(math.log)).mean().sort_index()
    return [float(place) for place in means.index], [float(mean) for mean in means]


def _difference(first: Line, second: Line) -> float | None:
    """The mean distance of two lines over the range that they share; None where there is none."""
    import numpy as np

    if not first[0] or not second[0]:
        return None
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if high <= low:
        return None
    places = np.linspace(low, high, POINTS)
    distances = np.interp(places, *first) - np.interp(places, *second)
    return float(np.trapezoid(distances, places) / (high - low))


def turning(results: DataFrame) -> Iterator[str]:
    """Sentences on which axis turns the order of which methods, from the numbers alone."""
    every = orders(results)
    if not every:
        return
    turned = [order for order in every if order.turns]
    pairs = f"{len(every)} {'pair' if len(every) == 1 else 'pairs'} of methods"
    clear = sum(order.is_clear for order in turned)
    count = "none changes its order"
    if turned:
        word = "changes its order" if len(turned) == 1 else "change their order"
        count = f"{len(turned)} {word} ({clear} with intervals on both sides that leave 0 out)"
    shown = every[:MOST_LINES] if len(every) <= MOST_LINES else turned[:MOST_LINES]
    how = (
        " In points of test accuracy, the mean over the range that both lines share, paired by seed:"
        if shown
        else ""
    )
    yield f"Of {pairs}, {count} from one axis to another.{how}"
    for order in shown:
        yield f"{order.panel}: {order.text()}" + (" (turns)." if order.turns else ".")
    if len(turned) > len(shown):
        yield f"{len(turned) - len(shown)} more that change are not listed."
