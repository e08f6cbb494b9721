"""Schedules: how many units to prune at each round.

A schedule is called once a round with the pools of competing units and returns, for each pool, how many more
of its units to prune: int64 [P]. `amount` is the fraction of all units, pruned ones included, that is to be
pruned in the end. A schedule of several rounds has a hyper-parameter `rounds`.

Traits: `target` is a function of the amount and the fraction of the rounds that are done, for the fraction
that is to be pruned by then; schedules that `lands` reach the amount exactly in their last round, whatever
was before; `adaptive` ones look at the values, and the amount is only their ceiling; those with `scores` as
well look at the scores instead; `during` schedules prune while the network trains.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from pruning.hyperparameters import Between
from pruning.mask_selection import Count, Pools, target_count
from pruning.pq_index import RANGES, check_pq_options, sap_counts
from pruning.registry import Method, Registry

schedules = Registry("schedule", positional=("pools",), keywords=("amount", "round"))
Rounds = Annotated[int, Between(1, 10_000)]


def rounds_of(schedule: Method) -> int:
    """Return how many rounds of prune and recover a schedule takes."""
    return int(schedule.options.get("rounds", 1))


def target_after(schedule: Method, *, amount: float, round: int) -> float | None:
    """Return the fraction of all units that is to be pruned after a round, counted from 1.

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


def count_to_prune(pools: Pools, amount: float) -> Tensor:
    """Return int64 [P]: how many more units of each pool to prune until `amount` of all its units are."""
    target = target_count(amount, pools.alive.shape[1])
    return (target - pools.alive.shape[1] + pools.alive_counts).clamp(min=0)


remaining = count_to_prune  # its former name, which plug-ins import


@schedules.register(summary="everything at once")
def one_shot(pools: Pools, *, amount: float, round: int) -> Tensor:
    """All of the amount in the first round."""
    return count_to_prune(pools, amount)


def geometric_target(amount: float, progress: float) -> float:
    """Return 1 - (1 - amount)^progress, with `progress` the fraction of the rounds that are done."""
    return float(1.0 - (1.0 - amount) ** progress)


def cubic_target(amount: float, progress: float) -> float:
    """Return amount (1 - (1 - progress)^3), with `progress` the fraction of the rounds that are done."""
    return amount * (1.0 - (1.0 - progress) ** 3)


@schedules.register(
    summary="the same fraction of the survivors at every round",
    paper="Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019",
    target=geometric_target,
    lands=True,
)
def iterative(pools: Pools, *, amount: float, round: int, rounds: Rounds = 5) -> Tensor:
    """After round t of n the density is (1 - amount)^(t / n); the last lands on the amount exactly."""
    return count_to_prune(pools, amount if round >= rounds else geometric_target(amount, round / rounds))


@schedules.register(
    summary="fast first, slower as little is left",
    paper="Zhu & Gupta, To prune, or not to prune, 2017",
    during=True,
    target=cubic_target,
    lands=True,
)
def cubic(pools: Pools, *, amount: float, round: int, rounds: Rounds = 10) -> Tensor:
    """After round t of n the sparsity is amount (1 - (1 - t / n)^3); the last lands on the amount exactly.

    The paper's may start from another sparsity than 0.
    """
    return count_to_prune(pools, amount if round >= rounds else cubic_target(amount, round / rounds))


@schedules.register(
    "pq_index",
    summary="as much as the PQ index says is compressible",
    paper="Diao et al., SAP, ICLR 2023",
    adaptive=True,
    check=check_pq_options,
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
    return torch.minimum(counts, count_to_prune(pools, amount))


def check_threshold(*, value: float, unit: str) -> None:
    """Raise ValueError for a unit that is neither `std` nor `absolute`."""
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
    value: Annotated[float, Between(0, open_high=True)] = 1.0,
    unit: str = "std",
) -> Tensor:
    """The alive units below `value`, or below `value` standard deviations of those in their pool.

    The deviation is about zero, sqrt(mean v^2): that of weights with mean zero, of which the pool has
    the absolute values. The paper's is a quality parameter times the layer's standard deviation.
    """
    squares = pools.values.square().masked_fill(~pools.alive, 0.0).sum(1)
    scale = (squares / pools.alive_counts.clamp(min=1)).sqrt() if unit == "std" else torch.ones_like(squares)
    return _count_low(pools.values < (value * scale)[:, None], pools, amount)


@schedules.register(summary="units below a fraction of their pool's mean", adaptive=True)
def column_mean(
    pools: Pools,
    *,
    amount: float,
    round: int,
    fraction: Annotated[float, Between(0, open_high=True)] = 0.5,
) -> Tensor:
    """The alive units whose value is below `fraction` times the mean of those in their pool.

    Meant for units and channels, whose values are 2-norms: columns where a framework stores a
    unit's weights in one, rows here.
    """
    total = pools.values.masked_fill(~pools.alive, 0.0).sum(1)
    limit = fraction * total / pools.alive_counts.clamp(min=1)
    return _count_low(pools.values < limit[:, None], pools, amount)


@schedules.register(summary="units below their mean, once the layer has settled", adaptive=True, during=True)
def mean_norm(
    pools: Pools,
    *,
    amount: float,
    round: int,
    fraction: Annotated[float, Between(0, open_high=True)] = 0.5,
    tolerance: Annotated[float, Between(0, open_low=True)] = 0.05,
) -> Tensor:
    """`column_mean` in those layers whose mean unit norm changed by less than `tolerance` in an epoch.

    The change is relative. The training loop finds the layers that have settled and calls this for them
    alone. When, where and how much to prune then follow from the training itself.
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
    value: Annotated[float, Between(open_low=True, open_high=True)] = 0.01,
) -> Tensor:
    """The alive units whose score is below `value`, on the criterion's own scale.

    With `pivoted_qr(relative=True)` that is interpolation to a given error: channel k + 1 and those after
    it are pruned where |R_k+1,k+1| / |R_11| is below `value`, so that widths follow from the data.
    """
    return _count_low(pools.scores < value, pools, amount)


def _count_low(low: Tensor, pools: Pools, amount: float) -> Tensor:
    """Return int64 [P]: how many alive units are `low`, bool [P, n]; the amount is the ceiling."""
    return torch.minimum((low & pools.alive).sum(1), count_to_prune(pools, amount))


def split_into_passes(count: Count, passes: int) -> list[Count]:
    """Return `count` split into several passes, between which the scores may be computed anew.

    What `count` asks for in the first pass is spread geometrically: a pool that is to shrink from a to b
    units has a (b / a)^(k / n) after pass k of n.
    """
    if passes == 1:
        return [count]
    plan: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # pool names -> sizes before and after all passes

    def pass_count(pools: Pools, *, progress: float) -> Tensor:
        if pools.names not in plan:
            plan[pools.names] = pools.alive_counts, (pools.alive_counts - count(pools)).clamp(min=0)
        start, end = plan[pools.names]
        target = start * (end.double() / start.clamp(min=1)) ** progress
        return (pools.alive_counts - (target + 0.5).floor().long()).clamp(min=0)

    return [partial(pass_count, progress=k / passes) for k in range(1, passes + 1)]
