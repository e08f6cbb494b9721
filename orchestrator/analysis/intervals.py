"""Means over seeds with 95% intervals: Student's t and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_FOR_INTERVAL = 3  # the t interval of two values is 13 times as wide as their distance
FEWEST_FOR_BOOTSTRAP, ENOUGH_FOR_BOOTSTRAP = 6, 10
NO_SPREAD = 1e-12  # differences of equal fractions differ by their last bits
IntervalMethod = Literal["t", "bootstrap"]
Bounds = tuple[float, float]
FRACTION: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)  # of two fractions
AMOUNT: Bounds = (0.0, math.inf)
ANY: Bounds = (-math.inf, math.inf)
STUDENT = "mean ± half of the 95% t interval over seeds"
CUT = "-a/+b are the ends of a t interval that is cut at the lowest or highest possible value"
RANGE = "[lowest to highest] where there are two seeds"
BOOTSTRAP = "mean [95% bootstrap interval over seeds: BCa, percentile where that is undefined]"
TOO_FEW = "a bootstrap of fewer than ten seeds is too narrow: docs/numbers.md has how often it covers"


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and its 95% interval, `low` to `high`; both None for a single seed.

    Of two seeds these are the lowest and the highest value. `is_cut`: an end is a bound of the values.
    `p` is that of a two-sided t test of a mean of 0; None without an interval or a spread. `deviation` is the
    sample standard deviation (n - 1); None for a single seed.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    method: IntervalMethod = "t"
    is_cut: bool = False
    p: float | None = None
    deviation: float | None = field(default=None, compare=False)

    @property
    def is_range(self) -> bool:
        """Whether the ends are the lowest and the highest of two values."""
        return self.method == "t" and self.low is not None and self.count < FEWEST_FOR_INTERVAL

    @property
    def leaves_zero_out(self) -> bool:
        """Whether 0 is outside of the interval; False for a range of two seeds."""
        if self.is_range or self.low is None or self.high is None:
            return False
        return not self.low <= 0 <= self.high

    @property
    def half_width(self) -> float | None:
        """Half of a t interval; None where it is cut, and for fewer than three seeds."""
        if self.low is None or self.high is None or self.is_range or self.is_cut:
            return None
        return (self.high - self.low) / 2

    @property
    def kind(self) -> str:
        """Name what the ends are, for a column of the CSV."""
        if self.low is None:
            return "one value"
        if self.is_range:
            return "lowest to highest"
        return f"95% {self.method}" + (", cut" if self.is_cut else "")

    def text(self, *, sign: str = "") -> str:
        """Format fractions in percent, to a tenth; `sign` is "+" to write it before a gain."""
        mean = f"{100 * self.mean:{sign}z.1f}"
        if self.low is None or self.high is None:
            return mean
        if self.is_range:
            return f"{mean} [{100 * self.low:{sign}z.1f} to {100 * self.high:{sign}z.1f}]"
        if self.method == "bootstrap":
            return f"{mean} [{100 * self.low:{sign}z.1f}, {100 * self.high:{sign}z.1f}]"
        if self.is_cut:
            return f"{mean} -{100 * (self.mean - self.low):z.1f}/+{100 * (self.high - self.mean):z.1f}"
        return f"{mean} ± {50 * (self.high - self.low):.1f}"

    def __str__(self) -> str:
        return self.text()


def interval(values: Sequence[float], *, method: IntervalMethod = "t", bounds: Bounds = FRACTION) -> Interval:
    """Return the mean and its 95% interval, cut at the bounds that the values have.

    Raises ValueError without values, and UsageError for a bootstrap of fewer than six.
    """
    count = len(values)
    if not count:
        raise ValueError("no values to average")
    mean = math.fsum(values) / count  # exact, whatever the order of the seeds
    if count == 1 and method != "bootstrap":
        return Interval(mean, None, None, 1, method)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, count - 1)
    deviation = math.sqrt(variance)
    if method == "bootstrap":
        check_bootstrap(count)
        return Interval(mean, *_bootstrap(tuple(values)), count, method, deviation=deviation)
    if count < FEWEST_FOR_INTERVAL:
        return Interval(mean, min(values), max(values), count, deviation=deviation)
    error = math.sqrt(variance / count)
    half = _quantile(count - 1) * error
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    is_cut = low > mean - half or high < mean + half
    if is_cut:  # rounding may put a mean of equal values a little beyond a bound
        low, high = min(low, mean), max(high, mean)
    return Interval(mean, low, high, count, "t", is_cut, _p_value(mean, error, count - 1), deviation)


def dense_interval(rows: DataFrame, *, method: IntervalMethod = "t") -> Interval | None:
    """Return the test accuracy of the dense networks behind rows of `results`; None if any lacks it."""
    if "ipa/accuracy" not in rows or rows["ipa/accuracy"].isna().any():
        return None
    return interval(rows["ipa/accuracy"].tolist(), method=method)


def test_set_width(accuracy: float, images: int) -> float:
    """Return half of the binomial 95% interval of an accuracy on so many test images, in points."""
    return 196 * math.sqrt(max(0.0, accuracy * (1 - accuracy)) / images)


def check_bootstrap(count: int) -> None:
    """Raise UsageError for fewer values than a bootstrap needs."""
    if count < FEWEST_FOR_BOOTSTRAP:
        raise UsageError(
            f"a bootstrap needs at least {FEWEST_FOR_BOOTSTRAP} seeds of every setting, and one has {count}: "
            "its 95% would cover 82% at five and 74% at three; give more seeds, or --interval t"
        )


def _p_value(mean: float, error: float, freedom: int) -> float | None:
    """Two-sided t test of a mean of 0; None where equal values leave no spread to test by."""
    from scipy.special import stdtr

    if error < NO_SPREAD:
        return 1.0 if abs(mean) < NO_SPREAD else None
    return float(2 * stdtr(freedom, -abs(mean / error)))


def interval_note(intervals: Iterable[Interval], *, method: IntervalMethod = "t") -> str:
    """Return for a header what the ends of these intervals are, of every kind among them."""
    means = list(intervals)
    with_ends = [mean for mean in means if mean.low is not None]
    if means and not with_ends:
        return "one seed, without an interval"
    if method == "bootstrap":
        is_narrow = any(mean.count < ENOUGH_FOR_BOOTSTRAP for mean in with_ends)
        return f"{BOOTSTRAP}; {TOO_FEW}" if is_narrow else BOOTSTRAP
    if with_ends and all(mean.is_range for mean in with_ends):
        return "mean [lowest to highest] of two seeds"
    phrases = [STUDENT]
    phrases += [CUT] if any(mean.is_cut for mean in with_ends) else []
    phrases += [RANGE] if any(mean.is_range for mean in with_ends) else []
    return "; ".join(phrases)


@lru_cache(maxsize=256)
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats calls it, and takes far longer to import

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _bootstrap(values: tuple[float, ...]) -> tuple[float, float]:
    """Return Efron's bias-corrected and accelerated (BCa) interval, resampled from a fixed seed.

    BCa is undefined where all resampled means are on one side of the mean: the percentile interval then.
    """
    import warnings

    import numpy as np
    from scipy.stats import bootstrap

    if len(set(values)) == 1:
        return values[0], values[0]
    ends = (math.nan, math.nan)
    for kind in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undefined interval is NaN, which the loop looks for
            result = bootstrap(
                (values,),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=kind,
                rng=np.random.default_rng(0),
            )
        ends = float(result.confidence_interval.low), float(result.confidence_interval.high)
        if not any(map(math.isnan, ends)):
            break
    return ends
