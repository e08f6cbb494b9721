"""How much leaves at each round.

A schedule is called once a round with the pools of competing units and answers, for each pool, how
many more of its units are to leave: int64 [P]. `amount` is the fraction of all units, dead ones
included, that is to be gone in the end. A schedule of several rounds has a hyper-parameter `rounds`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from pruning.registry import Between, Method, Registry
from pruning.step import Pools, target_count

schedules = Registry("schedule")
Rounds = Annotated[int, Between(1, 10_000)]


def rounds_of(schedule: Method) -> int:
    """How many rounds of prune and recover a schedule takes."""
    return int(schedule.options.get("rounds", 1))


def remaining(pools: Pools, amount: float) -> Tensor:
    """int64 [P]: how many must leave each pool until `amount` of all its units are gone."""
    target = target_count(amount, pools.alive.shape[1])
    return (target - (~pools.alive).sum(1)).clamp(min=0)


@schedules.register(summary="everything at once")
def one_shot(pools: Pools, *, amount: float, round: int) -> Tensor:
    """All of the amount in the first round."""
    return remaining(pools, amount)


@schedules.register(summary="the same fraction of the survivors at every round")
def iterative(pools: Pools, *, amount: float, round: int, rounds: Rounds = 5) -> Tensor:
    """Geometric: after round t of n the density is (1 - amount)^(t / n).

    Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019, section 2; the last round lands on
    the amount exactly.
    """
    return remaining(pools, amount if round >= rounds else 1.0 - (1.0 - amount) ** (round / rounds))
