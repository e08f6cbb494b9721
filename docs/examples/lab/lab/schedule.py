"""A schedule: how many units of each pool are removed at a round."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from pruning.mask_selection import Pools
from pruning.registry import Between
from pruning.schedules import count_to_prune, schedules


@schedules.register(summary="removes half of the remaining amount at every round")
def halve(pools: Pools, *, amount: float, round: int, rounds: Annotated[int, Between(1, 100)] = 4) -> Tensor:
    """Return half of the remaining count, rounded up; all of it at the last round."""
    count = count_to_prune(pools, amount)
    return count if round >= rounds else (count + 1) // 2
