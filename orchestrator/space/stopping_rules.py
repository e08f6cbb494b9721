"""Early-stopping rules by name: Optuna's pruners, and one by the PQ index, as one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pruning.hyperparameters import Between
from pruning.pq_index import DELTA, PATIENCE
from pruning.registry import Registry

pruners = Registry("stop")
# (class name, keyword arguments) -> pruner. It is passed in, so that naming a rule does not import optuna.
MakePruner = Callable[..., Any]  # of optuna's classes, which carry no types
Options = Mapping[str, Any]  # name -> value, of the type that the table says

Count = Annotated[int, Between(0, 1_000_000)]
Positive = Annotated[int, Between(1, 1_000_000)]
Factor = Annotated[int, Between(2, 1_000)]
Fraction = Annotated[float, Between(0, 1)]
Percentage = Annotated[float, Between(0, 100)]
NotNegative = Annotated[float, Between(0, open_high=True)]


@dataclass(frozen=True)
class Rule:
    """A named pruner. `parameters`: name -> (type with its range, default), by Optuna's own names.

    `alone`: it compares a trial with no other trial. `check` raises ValueError for options that do not go
    together.
    """

    name: str
    class_name: str
    summary: str
    text: str
    parameters: Mapping[str, tuple[Any, Any]]
    paper: str = ""
    alone: bool = False
    check: Callable[[Options], None] = lambda options: None


def _check_hyperband(options: Options) -> None:
    low, high = options["min_resource"], options["max_resource"]
    if 0 < high < low:
        raise ValueError(f"max_resource is {high}; it must be 0 or at least {low} rounds")


def _check_threshold(options: Options) -> None:
    lower, upper = options["lower"], options["upper"]
    if lower > upper:
        raise ValueError(f"lower is {lower} and upper is {upper}; lower must not be above upper")


def _check_patient(options: Options) -> None:
    wrapped = options["wrapped"]
    if pruners.get(wrapped).name == "patient":
        raise ValueError(f"wrapped is {wrapped!r}; patient cannot wrap itself")


INTERVALS = {"n_warmup_steps": (Count, 0), "interval_steps": (Positive, 1)}
AMONG_FINISHED = {"n_startup_trials": (Count, 5), **INTERVALS, "n_min_trials": (Positive, 1)}
HALVING, BOOTSTRAP = {"min_resource": (Positive, 1)}, {"bootstrap_count": (Count, 0)}
RULES = (
    Rule(
        "median",
        "MedianPruner",
        "worse than the median of the finished trials at the same round",
        "Stops nothing before `n_startup_trials` of the group are finished, nor in the first "
        "`n_warmup_steps` rounds.\n\nThe round after those is the first at which a trial may be stopped, "
        "then every `interval_steps`-th.",
        AMONG_FINISHED,
    ),
    Rule(
        "percentile",
        "PercentilePruner",
        "outside the best `percentile` of the finished trials at the same round",
        "As `median`, with another share than the better half.",
        {"percentile": (Percentage, 25.0), **AMONG_FINISHED},
    ),
    Rule(
        "halving",
        "SuccessiveHalvingPruner",
        "not among the best at a rung",
        "Asynchronous successive halving: of the trials at a rung, one in `reduction_factor` goes on.",
        {**HALVING, "reduction_factor": (Factor, 4), "min_early_stopping_rate": (Count, 0), **BOOTSTRAP},
        paper="Li et al., MLSys 2020",
    ),
    Rule(
        "hyperband",
        "HyperbandPruner",
        "halving, in brackets of several lengths",
        "`max_resource` is in rounds; 0 takes it from the first trial of the group that finishes.",
        {**HALVING, "max_resource": (Count, 0), "reduction_factor": (Factor, 3), **BOOTSTRAP},
        paper="Li et al., JMLR 2018",
        check=_check_hyperband,
    ),
    Rule(
        "threshold",
        "ThresholdPruner",
        "a validation accuracy outside fixed bounds",
        "Compares a trial with the bounds alone; the default bounds stop nothing.",
        {"lower": (Fraction, 0.0), "upper": (Fraction, 1.0), **INTERVALS},
        alone=True,
        check=_check_threshold,
    ),
    Rule(
        "patient",
        "PatientPruner",
        "another one, once a trial has got no better for a while",
        "Asks `wrapped` only once `patience` + 1 rounds lie more than `min_delta` below the best before.",
        {"wrapped": (str, "median"), "patience": (Count, 2), "min_delta": (NotNegative, 0.0)},
        check=_check_patient,
    ),
    Rule(
        "wilcoxon",
        "WilcoxonPruner",
        "worse than the best finished trial by a signed-rank test over its rounds",
        "Wilcoxon's test on the rounds that both have; the trials must have measured the same rounds.",
        {"p_threshold": (Fraction, 0.1), "n_startup_steps": (Count, 2)},
    ),
    Rule(
        "pq_index",
        "PQIndexPruner",
        "past the compressible phase and worse than the dense network",
        "Compares a trial with its own dense network alone; without a turning point it stops nothing.",
        {"delta": (NotNegative, DELTA), "patience": (Positive, PATIENCE), "tolerance": (Fraction, 0.01)},
        paper="Diao et al., ICLR 2023",
        alone=True,
    ),
)


def trials_needed(text: str) -> int:
    """Return how many trials a group must have before the rule can stop one; 1 where it compares none."""
    method = pruners.get(text)
    if method.name == "patient":
        return trials_needed(method.options["wrapped"])
    return 1 if method.traits["alone"] else 1 + max(1, int(method.options.get("n_startup_trials", 1)))


def _optuna_arguments(options: Options, make_pruner: MakePruner) -> dict[str, Any]:
    """Return the options as Optuna's class takes them."""
    arguments = dict(options)
    if "n_warmup_steps" in arguments:
        arguments["n_warmup_steps"] += 1  # Optuna's steps count from 0, rounds from 1
    if arguments.get("max_resource") == 0:
        arguments["max_resource"] = "auto"
    if "wrapped" in arguments:
        arguments["wrapped_pruner"] = pruners.get(arguments.pop("wrapped"))(make_pruner)
    return arguments


def _register(rule: Rule) -> None:
    def pruner(make_pruner: MakePruner, **options: Any) -> Any:
        return make_pruner(rule.class_name, **_optuna_arguments(options, make_pruner))

    # The registry reads a method's options, types and defaults from its signature.
    pruner.__doc__ = rule.text
    pruner.__annotations__ = {name: hint for name, (hint, _) in rule.parameters.items()}
    pruner.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in rule.parameters.items()
        ]
    )
    pruners.register(
        rule.name,
        summary=rule.summary,
        paper=rule.paper,
        alone=rule.alone,
        check=lambda **options: rule.check(options),
    )(pruner)


for _rule in RULES:
    _register(_rule)
