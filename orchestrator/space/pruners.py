"""Rules of early stopping by name: Optuna's pruners and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pruning.phases import DELTA, PATIENCE
from pruning.registry import Between, Registry

pruners = Registry("stop")
Make = Callable[..., Any]  # of optuna's classes, which carry no types
Count = Annotated[int, Between(0, 1_000_000)]
Positive = Annotated[int, Between(1, 1_000_000)]
Factor = Annotated[int, Between(2, 1_000)]
Fraction = Annotated[float, Between(0, 1)]
FIRST = 1  # the first round; Optuna's warm-up and intervals take steps for counted from 0


def trials_needed(text: str) -> int:
    """How many trials a group must have before one of them can be stopped; 1 for what looks at it alone."""
    method = pruners.get(text)
    if method.name == "patient":
        return trials_needed(method.options["wrapped"])
    if method.traits.get("alone"):
        return 1
    return 1 + max(1, int(method.options.get("n_startup_trials", 1)))


@pruners.register(summary="worse than the median of the finished trials at the same round")
def median(
    make: Make,
    *,
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> object:
    """Not before `n_startup_trials` of the group are finished, nor in the first `n_warmup_steps` rounds.

    The round after those is the first at which a trial may be stopped, then every `interval_steps`-th.
    """
    return make(
        "MedianPruner",
        n_startup_trials=n_startup_trials,
        n_warmup_steps=FIRST + n_warmup_steps,
        interval_steps=interval_steps,
        n_min_trials=n_min_trials,
    )


@pruners.register(summary="outside the best `percentile` of the finished trials at the same round")
def percentile(
    make: Make,
    *,
    percentile: Annotated[float, Between(0, 100)] = 25.0,
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> object:
    """As `median`, with another share than the better half."""
    return make(
        "PercentilePruner",
        percentile=percentile,
        n_startup_trials=n_startup_trials,
        n_warmup_steps=FIRST + n_warmup_steps,
        interval_steps=interval_steps,
        n_min_trials=n_min_trials,
    )


@pruners.register(summary="not among the best at a rung", paper="Li et al., MLSys 2020")
def halving(
    make: Make,
    *,
    min_resource: Positive = 1,
    reduction_factor: Factor = 4,
    min_early_stopping_rate: Count = 0,
    bootstrap_count: Count = 0,
) -> object:
    """Successive halving as trials come: of those at a rung of rounds one in `reduction_factor` goes on."""
    return make(
        "SuccessiveHalvingPruner",
        min_resource=min_resource,
        reduction_factor=reduction_factor,
        min_early_stopping_rate=min_early_stopping_rate,
        bootstrap_count=bootstrap_count,
    )


def _check_hyperband(*, min_resource: int, max_resource: int, **others: object) -> None:
    if 0 < max_resource < min_resource:
        raise ValueError(f"max_resource is {max_resource}; it must be 0 or at least {min_resource} rounds")


@pruners.register(
    summary="halving, in brackets of several lengths", paper="Li et al., JMLR 2018", check=_check_hyperband
)
def hyperband(
    make: Make,
    *,
    min_resource: Positive = 1,
    max_resource: Count = 0,
    reduction_factor: Factor = 3,
    bootstrap_count: Count = 0,
) -> object:
    """`max_resource` in rounds; 0 takes it from the first trial of the group that is finished."""
    return make(
        "HyperbandPruner",
        min_resource=min_resource,
        max_resource=max_resource or "auto",
        reduction_factor=reduction_factor,
        bootstrap_count=bootstrap_count,
    )


def _check_threshold(*, lower: float, upper: float, **others: object) -> None:
    if lower > upper:
        raise ValueError(f"lower is {lower} and upper is {upper}; lower must not be above upper")


@pruners.register(summary="a validation accuracy outside fixed bounds", check=_check_threshold, alone=True)
def threshold(
    make: Make,
    *,
    lower: Fraction = 0.0,
    upper: Fraction = 1.0,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
) -> object:
    """Compares a trial with nothing but the bounds, which let everything through unless one is given."""
    return make(
        "ThresholdPruner",
        lower=lower,
        upper=upper,
        n_warmup_steps=FIRST + n_warmup_steps,
        interval_steps=interval_steps,
    )


def _check_patient(*, wrapped: str, **others: object) -> None:
    if pruners.get(wrapped).name == "patient":
        raise ValueError(f"wrapped is {wrapped!r}; patient cannot wrap itself")


@pruners.register(summary="another one, once a trial has got no better for a while", check=_check_patient)
def patient(
    make: Make,
    *,
    wrapped: str = "median",
    patience: Count = 2,
    min_delta: Annotated[float, Between(0, under=True)] = 0.0,
) -> object:
    """Asks `wrapped` only once `patience` + 1 rounds lie more than `min_delta` below the best before."""
    return make("PatientPruner", pruners.get(wrapped)(make), patience=patience, min_delta=min_delta)


@pruners.register(summary="worse than the best finished trial by a signed-rank test over its rounds")
def wilcoxon(
    make: Make,
    *,
    p_threshold: Fraction = 0.1,
    n_startup_steps: Count = 2,
) -> object:
    """Wilcoxon's test of the rounds that both have; the trials must have measured the same rounds."""
    return make("WilcoxonPruner", p_threshold=p_threshold, n_startup_steps=n_startup_steps)


@pruners.register(
    summary="past the compressible phase and worse than the dense network",
    paper="Diao et al., ICLR 2023",
    alone=True,
)
def pq_index(
    make: Make,
    *,
    delta: Annotated[float, Between(0, under=True)] = DELTA,
    patience: Positive = PATIENCE,
    tolerance: Fraction = 0.01,
) -> object:
    """Compares a trial with its own dense network alone; without a turning point it stops nothing."""
    return make("PQIndexPruner", delta=delta, patience=patience, tolerance=tolerance)
