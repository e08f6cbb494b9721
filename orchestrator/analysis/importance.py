"""How much of the spread of a result each of several causes explains.

Of a search, each axis by functional ANOVA over its finished points; of a balanced crossed design, each factor
by its variance component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from pandas import DataFrame


MIN_POINTS = 10  # a forest over fewer says more about its seed than about the axes
FORESTS = 3
LOG_RATIO = 100.0  # from here on an axis counts by its logarithm
Params = Mapping[str, Any]
REST = "rest"


@dataclass(frozen=True)
class Importance:
    """An axis' share of the variance that the axes explain one by one; all shares of an objective sum to 1.

    `share` is the mean over forests with different seeds, `lowest` and `highest` are their range.
    """

    axis: str
    share: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class SearchedPoint:
    """A finished point: its value on each axis, and its mean of each objective over seeds."""

    params: Params
    objectives: Mapping[str, float]


def searched_points(plan: Mapping[str, Any], results: DataFrame) -> list[SearchedPoint]:
    """Return the points of a search, given as its plan.json, of which every seed has finished."""
    objectives = plan["search"]["objectives"]
    finished = results[results["status"] == "finished"].set_index("key")
    points = []
    for point in plan["asked"]:
        if not point["keys"] or not all(key in finished.index for key in point["keys"]):
            continue
        rows = finished.loc[point["keys"]]
        means = {name: float(rows[name].mean()) if name in rows else float("nan") for name in objectives}
        if all(map(isfinite, means.values())):
            points.append(SearchedPoint(point["params"], means))
    return points


def common_axes(points: Sequence[SearchedPoint]) -> list[str]:
    """Return the axes on which every point has a value, and not all the same."""
    names = list(dict.fromkeys(name for point in points for name in point.params))
    return [
        name
        for name in names
        if all(name in point.params for point in points)
        and len({str(point.params[name]) for point in points}) > 1
    ]


def importances(points: Sequence[SearchedPoint], objective: str) -> list[Importance]:
    """Return the importance of each axis that all points have, the most important first.

    Hutter, Hoos and Leyton-Brown, An efficient approach for assessing hyperparameter importance, ICML 2014,
    as Optuna computes it. A numeric axis runs from its lowest to its highest sampled value, logarithmically
    where these differ by a factor of 100. Empty for fewer than MIN_POINTS points, fewer than two such axes,
    and an objective that is the same at all points.
    """
    axes = common_axes(points)
    values = [point.objectives[objective] for point in points]
    if len(points) < MIN_POINTS or len(axes) < 2 or min(values) == max(values):
        return []
    shares = [_shares(points, objective, axes, seed) for seed in range(FORESTS)]
    by_axis = {axis: [forest[axis] for forest in shares] for axis in axes}
    rows = [Importance(axis, fmean(own), min(own), max(own)) for axis, own in by_axis.items()]
    return sorted(rows, key=lambda row: -row.share)


def _shares(
    points: Sequence[SearchedPoint], objective: str, axes: Sequence[str], seed: int
) -> dict[str, float]:
    import optuna  # takes a second, and most reports are of grids

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {axis: _column([point.params[axis] for point in points]) for axis in axes}
    distributions = {axis: _distribution(column) for axis, column in columns.items()}
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={axis: column[number] for axis, column in columns.items()},
                distributions=distributions,
                value=point.objectives[objective],
            )
            for number, point in enumerate(points)
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis: float(share) for axis, share in shares.items()}


def _column(values: Sequence[Any]) -> list[str] | list[float]:
    """Return numbers as floats, logarithms where they span decades; anything else as texts."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return [str(value) for value in values]
    numbers = [float(value) for value in values]
    # Optuna's forest splits a logarithmic distribution on a linear scale, so it is given logarithms.
    is_log = min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers)
    return [log10(number) for number in numbers] if is_log else numbers


def _distribution(column: Sequence[str] | Sequence[float]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [value for value in column if isinstance(value, float)]
    if numbers:
        return FloatDistribution(min(numbers), max(numbers))
    return CategoricalDistribution(sorted({str(value) for value in column}))


def variance_components(values: NDArray[np.float64], factors: Sequence[str]) -> dict[str, float]:
    """Return the variance that each factor adds to a value, and that of the `rest`.

    `values` has an axis for each factor, with one value for each combination of levels. Factors are random
    and add up; the rest is what they leave, interactions among it. The estimates are those of the analysis of
    variance (Searle, Casella & McCulloch, Variance Components, 1992, chapter 4): (MS_factor - MS_rest) over
    the number of values at a level, and 0 where that is negative. ValueError for too few levels.
    """
    if values.ndim != len(factors) or not factors or min(values.shape) < 2:
        raise ValueError(
            f"values of shape {values.shape} for factors {', '.join(factors)}; give an axis of two or more "
            "levels for each"
        )
    total, mean = values.size, values.mean()
    squares = {
        factor: total / size * ((_means(values, number) - mean) ** 2).sum()
        for number, (factor, size) in enumerate(zip(factors, values.shape, strict=True))
    }
    freedom = {factor: size - 1 for factor, size in zip(factors, values.shape, strict=True)}
    rest_freedom = total - 1 - sum(freedom.values())
    if not rest_freedom:
        raise ValueError("a single factor leaves no rest; give two or more")
    rest = max(0.0, float(((values - mean) ** 2).sum() - sum(squares.values()))) / rest_freedom
    components = {
        factor: max(0.0, float(squares[factor] / freedom[factor] - rest) * size / total)
        for factor, size in zip(factors, values.shape, strict=True)
    }
    return {**components, REST: rest}


def _means(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values.mean(axis=tuple(n for n in range(values.ndim) if n != axis))
    return means
