"""A schedule: how many more units of each pool leave at a round."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from pruning.registry import Between
from pruning.schedules import remaining, schedules
from pruning.step import Pools


@schedules.register(summary="half of what is still to go, at every round")
def halve(pools: Pools, *, amount: float, round: int, rounds: Annotated[int, Between(1, 100)] = 4) -> Tensor:
    """Half of the rest, rounded up, at each round but the last, which lands on the amount exactly."""
    rest = remaining(pools, amount)
    return rest if round >= rounds else (rest + 1) // 2
