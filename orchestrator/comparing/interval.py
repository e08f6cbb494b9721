"""Means over seeds with their 95% intervals: Student's t, or the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

CONFIDENCE = 0.95
RESAMPLES = 9999
How = Literal["t", "bootstrap"]
NAMES: dict[How, str] = {
    "t": "mean ± half of the 95% t interval over seeds",
    "bootstrap": "mean [95% bootstrap interval over seeds: BCa, percentile where that is undefined]",
}


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and the ends of its 95% interval; None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    count: int
    how: How = "t"

    @property
    def half_width(self) -> float | None:
        """Half of the distance of the ends; the interval's own for t, whose mean is in the middle."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def text(self, *, sign: str = "") -> str:
        """In percent, for fractions, to a tenth; `sign` is "+" to write it before a gain."""
        mean = f"{100 * self.mean:{sign}z.1f}"
        if self.low is None or self.high is None:
            return mean
        if self.how == "t":
            return f"{mean} ± {50 * (self.high - self.low):.1f}"
        return f"{mean} [{100 * self.low:{sign}z.1f}, {100 * self.high:{sign}z.1f}]"

    def __str__(self) -> str:
        return self.text()


def interval(values: Sequence[float], *, how: How = "t") -> Interval:
    """The mean and its interval. ValueError without values."""
    count = len(values)
    if not count:
        raise ValueError("no values to average")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1, how)
    if how == "bootstrap":
        return Interval(mean, *_bootstrap(tuple(values)), count, how)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@lru_cache(maxsize=256)
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # what scipy.stats' t calls, which takes longer to import than a table

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _bootstrap(values: tuple[float, ...]) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval; equal values equal intervals, from a fixed seed.

    BCa is undefined where the resampled means lie all on one side of the mean, or the values are equal.
    """
    import warnings

    import numpy as np
    from scipy.stats import bootstrap

    if len(set(values)) == 1:
        return values[0], values[0]
    ends = (math.nan, math.nan)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is undefined comes back as NaN, and is seen to here
            found = bootstrap(
                (values,),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            )
        ends = float(found.confidence_interval.low), float(found.confidence_interval.high)
        if not any(map(math.isnan, ends)):
            break
    return ends
