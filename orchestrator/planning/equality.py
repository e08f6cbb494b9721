"""Configurations that are equal by definition: another text for the same computation."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from orchestrator.config import DenseConfig, Prune, Train, TrialConfig, method_name, method_text
from orchestrator.planning.constraints import meta_model, shape_of
from orchestrator.training.lengths import epochs_of, parse_length, parse_position
from orchestrator.trial.params import without_defaults
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.structure import flow_of, layers_protected
from pruning.criteria import criteria, representative
from pruning.hyperparameters import hyperparameters
from pruning.masking import prunable_layers
from pruning.schedules import schedules

ONE_LINEAR_LAYER = "slp"


@dataclass(frozen=True)
class Duplicate:
    """Why a point is planned already: the axis, its value in this point and in the planned one."""

    reason: str
    axis: str
    left_out: str
    planned: str


def plain_key(config: TrialConfig) -> Hashable:
    """Return a value that all configurations that are equal by definition share, and no others."""
    return (*plain_values(config).values(), config.when, config.trial_code)


def plain_values(config: TrialConfig) -> dict[str, Any]:
    """Return the fields of the configuration that stands for all that compute the same."""
    train = config.dense.train
    return {
        "dense": _plain_dense(config.dense),
        "prune": _plain_prune(config.prune, config.dense.model, config.dense.dataset),
        "recover": _plain_recovery(config.recover, train),
        "prepare": _plain_preparation(config.prepare, train),
        "distill": "none" if _trains_nothing(config) else config.distill,
    }


def explain_duplicate(config: TrialConfig, first: TrialConfig) -> Duplicate:
    """Explain why `config` equals `first`, which is planned: both have one plain configuration."""
    (axis, left_out, planned, why), *further = _differences(config, first)
    if config.technique != first.technique:
        axis, left_out, planned = "technique", config.technique, first.technique
    reasons = "; ".join([why, *(difference[-1] for difference in further)])
    names = f"{left_out} and {planned}: " if axis == "technique" else ""
    return Duplicate(f"{names}{reasons}: planned once", axis, left_out, planned)


@lru_cache(maxsize=4096)  # one object for all trials of a training, which then finds its key once
def _plain_dense(config: DenseConfig) -> DenseConfig:
    train = _plain_recipe(config.train)
    return config if train == config.train else replace(config, train=train)


@lru_cache(maxsize=1024)
def _plain_recipe(train: Train) -> Train:
    """Return the recipe without what its optimizer does not read: Adam and AdamW have no momentum."""
    return train if train.optimizer == "sgd" else replace(train, momentum=0.0, nesterov=False)


@lru_cache(maxsize=65536)
def _plain_prune(prune: Prune, model: str, dataset: str) -> Prune:
    schedule = schedules.get(prune.schedule)
    granularity, scope = prune.granularity, prune.scope
    if granularity == "channel" and _layer_count(model, dataset) == 1:
        granularity = "unit"
    competitors = _competing_layers(model, dataset, method_name(prune.granularity), prune.protect)
    if method_name(granularity) == "nm" or (scope != "unit" and competitors == 1):
        scope = "layer"
    # Scores over costs compare layers by the values of the scores, not by their order.
    by_order = not schedule.traits.get("scores") and scope != "per_mac"
    criterion = prune.criterion
    if method_name(model) == ONE_LINEAR_LAYER:
        criterion = criteria.get(criterion).traits.get("of_linear", criterion)
    # Inverted, equal weights of a layer no longer go by index for a score that orders these, too.
    in_layer = scope not in ("global", "per_mac") and prune.control != "invert"
    has_one_round = bool(schedule.traits.get("lands")) and schedule.options == {"rounds": 1}
    return replace(
        prune,
        criterion=representative(criterion, method_name(granularity), by_order=by_order, in_layer=in_layer),
        granularity=granularity,
        scope=scope,
        schedule="one_shot" if has_one_round else prune.schedule,
        amount_label="",  # the text in the space of amounts that have been read
    )


@lru_cache(maxsize=1024)
def _layer_count(model: str, dataset: str) -> int:
    return len(prunable_layers(meta_model(model, *shape_of(dataset))))


@lru_cache(maxsize=1024)
def _competing_layers(model: str, dataset: str, granularity: str, protect: tuple[str, ...]) -> int:
    """Return how many layers have something to remove; 0 where only a trace of the network could tell."""
    built = (model, *shape_of(dataset))
    layers = set(prunable_layers(meta_model(*built)))
    if granularity in ("channel", "head") and len(layers) > 1:
        return 0
    outputs = flow_of(built).outputs if granularity == "unit" and len(layers) > 1 else ()
    return len(layers - set(outputs) - set(layers_protected(built, protect)))


@lru_cache(maxsize=4096)
def _plain_recovery(recover: str, train: Train) -> str:
    """Return the recovery with its length in epochs: `10%` of 10 epochs is 1."""
    method = recoveries.get(recover)
    lengths = [
        name
        for name, option in hyperparameters(method.function).items()
        if option.converter is not None and option.converter.convert in (parse_length, parse_position)
    ]
    total = method.traits.get("length")
    if len(lengths) != 1 or total is None:
        return recover
    options = method.text_options(method.options)
    return method_text(method.name, {**options, lengths[0]: total(train, **method.options)})


@lru_cache(maxsize=4096)
def _plain_preparation(prepare: str, train: Train) -> str:
    method = preparations.get(prepare)
    length = method.options.get("epochs")
    if length is None:
        return prepare
    return method_text(method.name, {**method.options, "epochs": epochs_of(length, train)})


def _trains_nothing(config: TrialConfig) -> bool:
    """Whether no training follows that could be distilled from the dense network."""
    return config.when != "during" and recoveries.get(config.recover).traits.get("trains") is False


def _differences(config: TrialConfig, first: TrialConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield (axis, value in `config`, value in `first`, why both are equal) for every axis that differs."""
    prune, first_prune = config.prune, first.prune
    layer = f"{method_name(config.dense.model)} has one layer to prune"
    granularity = without_defaults("granularity", prune.granularity)
    pruning_reasons = {
        "criterion": _equal_criteria(prune.criterion, first_prune.criterion, granularity),
        "granularity": "are both the inputs of the only layer",
        "scope": "are one within blocks"
        if method_name(prune.granularity) == "nm"
        else f"are one where {layer}",
        "schedule": "are both one round",
    }
    for axis, why in pruning_reasons.items():
        if getattr(prune, axis) != getattr(first_prune, axis):
            yield _difference(axis, getattr(prune, axis), getattr(first_prune, axis), why)
    epochs = f"are as many epochs of {config.dense.train.epochs}"
    training_reasons = {
        "recover": epochs,
        "prepare": epochs,
        "distill": "are one where nothing is trained afterwards",
    }
    for axis, why in training_reasons.items():
        if getattr(config, axis) != getattr(first, axis):
            yield _difference(axis, getattr(config, axis), getattr(first, axis), why)
    for field in fields(Train):
        value, first_value = (getattr(c.dense.train, field.name) for c in (config, first))
        if value != first_value:
            unread = f"are one: {config.dense.train.optimizer} reads no {field.name}"
            yield _difference(f"train.{field.name}", str(value), str(first_value), unread)


def _equal_criteria(criterion: str, first_criterion: str, granularity: str) -> str:
    """Return why two criteria choose the same."""
    traits = {name for text in (criterion, first_criterion) for name in criteria.get(text).traits}
    if "of_linear" in traits:
        return "choose the same of one Linear layer"
    within = " within a layer" if "orders_like_in_layer" in traits else ""
    return f"choose the same{within} at granularity {granularity}"


def _difference(axis: str, value: str, first_value: str, why: str) -> tuple[str, str, str, str]:
    if "." not in axis and axis != "scope":
        value, first_value = without_defaults(axis, value), without_defaults(axis, first_value)
    return axis, value, first_value, f"{axis} {value} and {first_value} {why}"
