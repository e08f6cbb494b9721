"""A configuration as flat dotted names, for MLflow's params and for tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import models
from orchestrator.config import ADDED_LATER, DenseConfig, Json, TrialConfig, flat, method_text
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_a_round, recoveries
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Registry, parse
from pruning.schedules import schedules


def params(config: DenseConfig | TrialConfig) -> dict[str, Json]:
    """Every field of a configuration by its flat dotted name; equal for equal configurations."""
    if isinstance(config, TrialConfig):
        own = {**vars(config), **vars(config.prune), "protect": ",".join(config.prune.protect)}
        del own["dense"], own["prune"]
        own = {name: value for name, value in own.items() if ADDED_LATER.get(name, ...) != value}
        return {**params(config.dense), **_with_methods(own)}
    return _with_methods(dict(flat(config)))


def amount_text(config: TrialConfig) -> str:
    """The amount as tables and names show it: `50%`; `by pq_index` where the schedule says how much.

    Of nothing pruned it tells whether the network is still the dense one, or was trained further.
    """
    amount, schedule = config.prune.amount, schedules.get(config.prune.schedule)
    text = f"{100 * amount:.4g}%"
    if amount == 0:
        return f"{text} ({training})" if (training := _further_training(config)) else text
    if schedule.traits.get("adaptive"):
        return f"by {schedule.name}" + ("" if amount == 1 else f", at most {text}")
    return text


def _further_training(config: TrialConfig) -> str:
    """What was trained beside the dense network, or after it; nothing where its weights stay."""
    recovery, train = recoveries.get(config.recover), config.dense.train
    trains = epochs_a_round(config.recover, train) > 0
    if config.when == "init" and not trains:
        return "not trained"
    if config.when != "after" or recovery.traits.get("again"):
        return "trained again"
    return "trained on" if trains or config.prepare != "none" else ""


def without_defaults(axis: str, text: str) -> str:
    """The text of a method without the options that have their default value."""
    name, options = parse(text)
    defaults = _defaults(axis, name)
    return method_text(name, {key: value for key, value in options.items() if value != defaults.get(key)})


def _with_methods(values: Mapping[str, Json]) -> dict[str, Json]:
    described: dict[str, Json] = {}
    for axis, value in values.items():
        if axis in DEFAULTS:
            described[axis] = _short(axis, value)
            described |= {f"{axis}.{key}": str(option) for key, option in _options(axis, value).items()}
        else:
            described[axis] = value
    return described


@cache
def _short(axis: str, text: str) -> str:
    return without_defaults(axis, text)


@cache
def _options(axis: str, text: str) -> dict[str, Json]:
    return parse(text)[1]


@cache
def _defaults(axis: str, name: str) -> dict[str, Json]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in DEFAULTS[axis](name).items()}


def _registered(registry: Registry) -> Callable[[str], Mapping[str, Json]]:
    return lambda name: registry.get(name).options


DEFAULTS: dict[str, Callable[[str], Mapping[str, Json]]] = {
    "model": lambda name: models.resolve(name)[1],
    "dataset": lambda name: {},
    "criterion": _registered(criteria),
    "granularity": _registered(granularities),
    "schedule": _registered(schedules),
    "recover": _registered(recoveries),
    "prepare": _registered(preparations),
    "distill": _registered(distillations),
}
