"""Which settings lead: the best of those that compete, and all that no paired test tells from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import DIFFERENCE, FEWEST_FOR_INTERVAL, interval
from orchestrator.analysis.paired import LEVEL, NOTHING_PRUNED, holm
from orchestrator.analysis.settings import amount_label
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_COMPETITORS = 200  # of a group: its pairs grow with the square
Pair = tuple[int, int, int]  # a group, and two of its settings


@dataclass(frozen=True)
class Leaders:
    """For each group, whether each of its settings leads; `pairs` were tested, `untested` could not be.

    A group in which no setting is worse than the best by a test has no leader.
    """

    flags: list[list[bool]]
    pairs: int
    untested: int

    @property
    def any(self) -> bool:
        """Whether any setting leads."""
        return any(map(any, self.flags))


def find_leaders(groups: Sequence[Sequence[DataFrame]]) -> Leaders:
    """Return the leaders of groups of settings, each given by its rows of `results`, one per seed.

    The best has the highest mean test accuracy. Every pair of a group is tested (paired t test by seed), with
    Holm's correction for all pairs of all groups: as the best is chosen by the same numbers, a correction for
    comparisons with it alone would promise too much. UsageError for a group of more than MOST_COMPETITORS.
    """
    if (largest := max(map(len, groups), default=0)) > MOST_COMPETITORS:
        raise UsageError(
            f"{largest:,} settings compete in one table; at most {MOST_COMPETITORS} are tested against each "
            "other; compare fewer, or take --csv, which has no tests between them"
        )
    pairs = dict(_p_values(groups))
    p_values = {pair: p for pair, p in pairs.items() if p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    separated = {pair for pair, p in corrected.items() if p <= LEVEL}
    flags = [_flags(number, group, separated) for number, group in enumerate(groups)]
    return Leaders(flags, len(p_values), len(pairs) - len(p_values))


def _p_values(groups: Sequence[Sequence[DataFrame]]) -> Iterator[tuple[Pair, float | None]]:
    """Yield the p-value of each pair; None where it cannot be tested. Two dense networks are no pair."""
    for number, group in enumerate(groups):
        accuracies = [dict(zip(rows["seed"], rows["final/accuracy"], strict=True)) for rows in group]
        is_dense = [amount_label(rows) == NOTHING_PRUNED for rows in group]
        for first, second in combinations(range(len(group)), 2):
            if is_dense[first] and is_dense[second]:
                continue
            one, other = accuracies[first], accuracies[second]
            gains = [one[seed] - other[seed] for seed in one if seed in other]
            is_tested = len(gains) >= FEWEST_FOR_INTERVAL
            yield (number, first, second), interval(gains, bounds=DIFFERENCE).p if is_tested else None


def _flags(number: int, group: Sequence[DataFrame], separated: set[Pair]) -> list[bool]:
    means = [float(rows["final/accuracy"].mean()) for rows in group]
    best = max(range(len(group)), key=means.__getitem__)
    is_worse = [(number, min(best, n), max(best, n)) in separated for n in range(len(group))]
    return [any(is_worse) and not worse for worse in is_worse]
