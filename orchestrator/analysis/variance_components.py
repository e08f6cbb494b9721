"""How much of the spread of a result each of several causes explains, from a balanced crossed design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REST = "rest"


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
