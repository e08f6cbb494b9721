"""How long a sweep will still take, from how long its runs have taken so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """One kind of run, in seconds: what those that ended took, and how long the others are at it.

    `todo` counts what has not ended, those that run among them.
    """

    todo: int
    took: Sequence[float] = ()
    running: Sequence[float] = ()


def seconds_left(paces: Sequence[Pace], *, concurrent: float) -> float | None:
    """Seconds until all is done, `concurrent` runs at a time; None where a kind to do has not ended once."""
    work, longest = 0.0, 0.0
    for pace in paces:
        if not pace.todo:
            continue
        if not pace.took:
            return None
        mean = sum(pace.took) / len(pace.took)
        rest = [max(0.0, mean - seconds) for seconds in pace.running]
        work += mean * max(0, pace.todo - len(rest)) + sum(rest)
        longest = max([longest, mean if pace.todo > len(rest) else 0.0, *rest])
    return max(work / max(concurrent, 1.0), longest)
