"""A configuration as flat dotted names, for MLflow's params and for tables."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate

import models
from orchestrator.config import DenseConfig, Json, Prune, TrialConfig, flat, method_text
from orchestrator.keys import ADDED_LATER, OTHER_AMOUNTS
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_per_round, recoveries
from pruning.amounts import amounts_text, read_amounts
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Registry, parse_method
from pruning.schedules import schedules
from pruning.user_code import own_code

MAX_LENGTH = 6000  # characters of a param: MLflow's limit. config.json of a run has all of it
MAX_LABEL = 80  # characters of amounts by layer in names of runs and in tables
HASH_LENGTH = 8  # hexadecimal digits


def params(config: DenseConfig | TrialConfig) -> dict[str, Json]:
    """Return every field of a configuration by its flat dotted name; equal for equal configurations."""
    if isinstance(config, TrialConfig):
        values = {**vars(config), **vars(config.prune), "protect": _names_text(config.prune.protect)}
        if config.prune.layer_amounts:
            values["amount"] = _amounts_text(config.prune, MAX_LENGTH)
        if config.prune.limits:
            values["amount"] = config.prune.amount_label
        for name in ("dense", "prune", *OTHER_AMOUNTS):
            del values[name]
        # Without a later field at its default: params are equal to those of runs from before it was added.
        values = {name: value for name, value in values.items() if ADDED_LATER.get(name, ...) != value}
        return {**params(config.dense), **_with_options(values)}
    return _with_options(dict(flat(config)))


def amount_columns(config: TrialConfig) -> dict[str, Json]:
    """Return the columns of a table on the amount: a number, its text, and amounts by layer, or a target.

    The number of amounts by layer is their mean, weighted by the layers' numbers of weights, and that of a
    target the largest part of a quantity that is to go.
    """
    is_text = config.prune.layer_amounts or config.prune.limits
    by_layer = {"amounts": params(config)["amount"]} if is_text else {}
    return {"amount": config.prune.amount, "amount_text": amount_text(config), **by_layer}


def _names_text(names: Sequence[str]) -> str:
    return _shortened(names, ",", MAX_LENGTH)


def _amounts_text(prune: Prune, length: int) -> str:
    entries = [
        amounts_text({name: amount})[1:-1] for name, amount in read_amounts(prune.amount_label).items()
    ]
    return f"{{{_shortened(entries, ', ', length - 2)}}}"


def _shortened(texts: Sequence[str], separator: str, length: int) -> str:
    """Return texts joined; above a length the first of them, how many follow, and a hash that tells apart."""
    whole = separator.join(texts)
    if len(whole) <= length:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:HASH_LENGTH]
    room = length - len(f"… and {len(texts)} more #{digest}") - len(separator)
    count = bisect_right(list(accumulate(len(text) + len(separator) for text in texts)), room)
    return separator.join([*texts[:count], f"… and {len(texts) - count} more #{digest}"])


def amount_text(config: TrialConfig) -> str:
    """Return the amount as tables and names show it: `50%`; `by pq_index` where the schedule decides it.

    An amount of 0 says how the network was trained further, unless it is still the dense one.
    """
    if config.prune.layer_amounts:
        return _amounts_text(config.prune, MAX_LABEL)
    if config.prune.limits:
        return config.prune.amount_label[1:-1].replace(": ", " ")
    amount, schedule = config.prune.amount, schedules.get(config.prune.schedule)
    text = f"{100 * amount:.4g}%"
    if amount == 0:
        training = _further_training(config)
        return f"{text} ({training})" if training else text
    if schedule.traits.get("adaptive"):
        return f"by {own_code.shown(schedule.name)}" + ("" if amount == 1 else f", at most {text}")
    return text


def _further_training(config: TrialConfig) -> str:
    """Return how the network was trained beside the dense one, or after it; empty if its weights stay."""
    recovery, train = recoveries.get(config.recover), config.dense.train
    is_trained = epochs_per_round(config.recover, train) > 0
    if config.when == "init" and not is_trained:
        return "not trained"
    if config.when != "after" or recovery.traits.get("retrains"):
        return "trained again"
    return "trained on" if is_trained or config.prepare != "none" else ""


def without_defaults(axis: str, text: str) -> str:
    """Return the text of a method without the options that have their default value."""
    name, options = parse_method(text)
    defaults = _defaults(axis, name)
    name = own_code.shown(name)
    return method_text(name, {key: value for key, value in options.items() if value != defaults.get(key)})


def _with_options(values: Mapping[str, Json]) -> dict[str, Json]:
    """Add the options of every method as `axis.option`, and shorten its text."""
    named: dict[str, Json] = {}
    for axis, value in values.items():
        named |= _method_params(axis, value) if axis in DEFAULTS else {axis: value}
    return named


@cache
def _method_params(axis: str, text: str) -> dict[str, Json]:
    options = {f"{axis}.{key}": str(option) for key, option in parse_method(text)[1].items()}
    return {axis: without_defaults(axis, text), **options}


@cache
def _defaults(axis: str, name: str) -> dict[str, Json]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in DEFAULTS[axis](name).items()}


def _model_defaults(name: str) -> Mapping[str, Json]:
    try:
        return models.resolve(name)[1]
    except ValueError:  # a recorded model of a package that is not installed here
        return {}


def _registered(registry: Registry) -> Callable[[str], Mapping[str, Json]]:
    return lambda name: registry.get(name).options


DEFAULTS: dict[str, Callable[[str], Mapping[str, Json]]] = {
    "model": _model_defaults,
    "dataset": lambda name: {},
    "criterion": _registered(criteria),
    "granularity": _registered(granularities),
    "schedule": _registered(schedules),
    "recover": _registered(recoveries),
    "prepare": _registered(preparations),
    "distill": _registered(distillations),
}
