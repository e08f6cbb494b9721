"""How much leaves at each round.

A schedule is called once a round with the pools of competing units and answers, for each pool, how
many more of its units are to leave: int64 [P]. `amount` is the fraction of all units, dead ones
included, that is to be gone in the end. A schedule of several rounds has a hyper-parameter `rounds`.

Traits: `target` gives the fraction that is to be gone after a part of the rounds; schedules that `lands`
reach the amount exactly in their last round, whatever was before; `adaptive` ones look at the values, and
the amount is only their ceiling; those with `scores` as well look at the scores instead; `during` schedules
prune while the network trains.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from pruning.pq_index import RANGES, check_pq, sap_counts
from pruning.registry import Between, Method, Registry
from pruning.step import Count, Pools, target_count

schedules = Registry("schedule")
Rounds = Annotated[int, Between(1, 10_000)]


def rounds_of(schedule: Method) -> int:
    """How many rounds of prune and recover a schedule takes."""
    return int(schedule.options.get("rounds", 1))


def target_after(schedule: Method, *, amount: float, round: int) -> float | None:
    """The fraction of all units that is to be gone after a round, counted from 1.

    None where the schedule does not say: an adaptive one, whose amount is a ceiling, or one of several
    rounds that has no `target`, before its last.
    """
    if schedule.traits.get("adaptive"):
        return None
    rounds = rounds_of(schedule)
    if round >= rounds:
        return amount
    target = schedule.traits.get("target")
    return None if target is None else float(target(amount, round / rounds))


def remaining(pools: Pools, amount: float) -> Tensor:
    """int64 [P]: how many must leave each pool until `amount` of all its units are gone."""
    target = target_count(amount, pools.alive.shape[1])
    return (target - pools.alive.shape[1] + pools.living).clamp(min=0)


@schedules.register(summary="everything at once")
def one_shot(pools: Pools, *, amount: float, round: int) -> Tensor:
    """All of the amount in the first round."""
    return remaining(pools, amount)


def geometric(amount: float, part: float) -> float:
    """1 - (1 - amount)^part after that part of the rounds."""
    return float(1.0 - (1.0 - amount) ** part)


def cubical(amount: float, part: float) -> float:
    """amount (1 - (1 - part)^3) after that part of the rounds."""
    return amount * (1.0 - (1.0 - part) ** 3)


@schedules.register(
    summary="the same fraction of the survivors at every round",
    paper="Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019",
    target=geometric,
    lands=True,
)
def iterative(pools: Pools, *, amount: float, round: int, rounds: Rounds = 5) -> Tensor:
    """After round t of n the density is (1 - amount)^(t / n); the last lands on the amount exactly."""
    return remaining(pools, amount if round >= rounds else geometric(amount, round / rounds))


@schedules.register(
    summary="fast first, slower as little is left",
    paper="Zhu & Gupta, To prune, or not to prune, 2017",
    during=True,
    target=cubical,
    lands=True,
)
def cubic(pools: Pools, *, amount: float, round: int, rounds: Rounds = 10) -> Tensor:
    """After round t of n the sparsity is amount (1 - (1 - t / n)^3); the last lands on the amount exactly.

    The paper's may start from another sparsity than 0.
    """
    return remaining(pools, amount if round >= rounds else cubical(amount, round / rounds))


@schedules.register(
    "pq_index",
    summary="as much as the PQ index says is compressible",
    paper="Diao et al., SAP, ICLR 2023",
    adaptive=True,
    check=check_pq,
)
def sap(
    pools: Pools,
    *,
    amount: float,
    round: int,
    p: Annotated[float, RANGES["p"]] = 0.5,
    q: Annotated[float, RANGES["q"]] = 1.0,
    eta: Annotated[float, RANGES["eta"]] = 0.0,
    gamma: Annotated[float, RANGES["gamma"]] = 1.0,
    beta: Annotated[float, RANGES["beta"]] = 0.9,
    published: bool = False,
    rounds: Rounds = 30,
) -> Tensor:
    """Sparsity-informed adaptive pruning, on the values whatever the criterion; see `sap_prune_count`.

    30 rounds are the authors' for linear models, MLP and CNN.
    """
    counts = sap_counts(
        pools.values, pools.alive, p=p, q=q, eta=eta, gamma=gamma, beta=beta, published=published
    )
    return torch.minimum(counts, remaining(pools, amount))


def check_threshold(*, value: float, unit: str) -> None:
    """ValueError for a unit that is neither `std` nor `absolute`."""
    if unit not in ("std", "absolute"):
        raise ValueError(f"threshold(unit) is {unit!r}; it must be 'std' or 'absolute'")


@schedules.register(
    summary="as many as lie below a value",
    paper="Han et al., NeurIPS 2015",
    adaptive=True,
    check=check_threshold,
)
def threshold(
    pools: Pools,
    *,
    amount: float,
    round: int,
    value: Annotated[float, Between(0, under=True)] = 1.0,
    unit: str = "std",
) -> Tensor:
    """The living below `value`, or below `value` standard deviations of the living in their pool.

    The deviation is about zero, sqrt(mean v^2): that of weights with mean zero, of which the pool has
    the absolute values. The paper's is a quality parameter times the layer's standard deviation.
    """
    squares = pools.values.square().masked_fill(~pools.alive, 0.0).sum(1)
    scale = (squares / pools.living.clamp(min=1)).sqrt() if unit == "std" else torch.ones_like(squares)
    return _below(pools, value * scale, amount)


@schedules.register(summary="units below a fraction of their pool's mean", adaptive=True)
def column_mean(
    pools: Pools,
    *,
    amount: float,
    round: int,
    fraction: Annotated[float, Between(0, under=True)] = 0.5,
) -> Tensor:
    """The living whose value is below `fraction` times the mean of the living in their pool.

    Meant for units and channels, whose values are 2-norms: columns where a framework stores a
    unit's weights in one, rows here.
    """
    total = pools.values.masked_fill(~pools.alive, 0.0).sum(1)
    return _below(pools, fraction * total / pools.living.clamp(min=1), amount)


@schedules.register(summary="units below their mean, once the layer has settled", adaptive=True, during=True)
def mean_norm(
    pools: Pools,
    *,
    amount: float,
    round: int,
    fraction: Annotated[float, Between(0, under=True)] = 0.5,
    tolerance: Annotated[float, Between(0, above=True)] = 0.05,
) -> Tensor:
    """`column_mean` in those layers whose mean unit norm changed by less than `tolerance` in an epoch.

    The change is relative. Who trains the network finds the layers that have settled; the others are
    not asked. When, where and how much then follow from the training itself.
    """
    counts: Tensor = column_mean(pools, amount=amount, round=round, fraction=fraction)
    return counts


@schedules.register(
    summary="as many as score below a value",
    paper="with pivoted_qr, the given error of Chee et al., NeurIPS 2022",
    adaptive=True,
    scores=True,
)
def score_below(
    pools: Pools,
    *,
    amount: float,
    round: int,
    value: Annotated[float, Between(above=True, under=True)] = 0.01,
) -> Tensor:
    """The living whose score is below `value`, on the criterion's own scale.

    With `pivoted_qr(relative=True)` that is interpolation to a given error: channel k + 1 and those after
    it leave where |R_k+1,k+1| / |R_11| is below `value`, so that widths follow from the data.
    """
    return _as_many(pools.scores < value, pools, amount)


def _below(pools: Pools, limit: Tensor, amount: float) -> Tensor:
    return _as_many(pools.values < limit[:, None], pools, amount)


def _as_many(low: Tensor, pools: Pools, amount: float) -> Tensor:
    """int64 [P]: how many of the living are `low`, the amount being the ceiling."""
    return torch.minimum((low & pools.alive).sum(1), remaining(pools, amount))


def in_passes(count: Count, passes: int) -> list[Count]:
    """`count` in several passes, between which the scores may be taken anew.

    What the first pass finds to be due is spread geometrically: a pool that is to shrink from a to b
    has a (b / a)^(k / n) after pass k of n.
    """
    if passes == 1:
        return [count]
    plan: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    def due(pools: Pools, *, part: float) -> Tensor:
        if pools.names not in plan:
            plan[pools.names] = pools.living, (pools.living - count(pools)).clamp(min=0)
        start, end = plan[pools.names]
        kept = start * (end.double() / start.clamp(min=1)) ** part
        return (pools.living - (kept + 0.5).floor().long()).clamp(min=0)

    return [partial(due, part=k / passes) for k in range(1, passes + 1)]
