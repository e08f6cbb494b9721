"""Why a combination of values cannot be run.

Every `x_conflict` returns the reason, or None where there is no conflict.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

import models
from orchestrator.config import Prune, Start, Train, When, method_name
from orchestrator.data.augmentation import augmentation_conflict
from orchestrator.data.datasets import info, parse_dataset, split_sizes
from orchestrator.errors import SpaceError
from orchestrator.training.lr_schedules import schedule_conflict
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries, trains_cut
from orchestrator.trial.stages import SAMPLES_PER_CLASS
from orchestrator.trial.structure import (
    channels_of,
    check_weights,
    flow_of,
    heads_of,
    layers_protected,
    size_conflict,
    units_of,
)
from orchestrator.trial.weight_transfer import SourceModelInfo, TensorMapping, classes_of, match_tensors
from pruning.accumulation import is_accumulated
from pruning.criteria import criteria
from pruning.granularity import granularities, resolve_amount
from pruning.layer_names import is_pattern
from pruning.masking import prunable_layers
from pruning.prune import check_criterion_fits, check_invert, make_groups, prune
from pruning.registry import Method
from pruning.schedules import rounds_of, schedules
from pruning.user_code import own_code

Shape = tuple[int, int, int]


def shape_of(dataset: str) -> tuple[Shape, int]:
    """Return (input shape, number of classes) of a data set in canonical text."""
    name, options = parse_dataset(dataset)
    facts = info(name)
    return facts.input_shape, len(options["classes"]) if "classes" in options else facts.num_classes


def split_sizes_of(dataset: str) -> tuple[int, int, int]:
    """Return the images for (train, validation, test); with options an estimate, save for `digits`."""
    name, options = parse_dataset(dataset)
    return split_sizes(name, **options)


def train_size(dataset: str) -> int:
    """Return the number of training images, as `split_sizes_of` does."""
    return split_sizes_of(dataset)[0]


def model_conflict(model: str, dataset: str) -> str | None:
    """Check that the model takes the images of the data set and fits into this machine's memory."""
    reason = size_conflict((model, *shape_of(dataset)))  # options are any literal: torch refuses some
    return None if reason is None else own_code.shown(f"{model} on {dataset}: {reason}")


@lru_cache(maxsize=1024)
def start_conflict(
    start: Start, model: str, dataset: str, source_model: SourceModelInfo | None
) -> str | None:
    """Check that training can start from the source model. SpaceError where the start needs one."""
    if start == "scratch":
        return None
    if source_model is None:
        raise SpaceError(f"start {start} needs a network to start from: give --from MODEL, or start scratch")
    if start == "masked" and not source_model.pruned:
        return "start masked: nothing of the source model is pruned; start weights is the same"
    try:
        mapping = match_source_model(model, dataset, source_model)
    except ValueError as error:
        return own_code.shown(f"start {start}, {dataset}: {error}")
    if len(mapping.replaced) == len(mapping.names):
        text = f"start {start}, {dataset}: no tensor of the source model fits, all would be re-initialised"
        return own_code.shown(text)
    return None


@lru_cache(maxsize=1024)
def match_source_model(model: str, dataset: str, source_model: SourceModelInfo) -> TensorMapping:
    """Match the source model's tensors with those of the model on the data set; ValueError where none can."""
    built = (model, *shape_of(dataset))
    return match_tensors(
        meta_model(*built),
        source_model.shapes,
        flow=flow_of(built),
        source_classes=source_model.classes,
        target_classes=classes_of(dataset),
    )


@lru_cache(maxsize=4096)
def protected_names(
    model: str, dataset: str, protect: tuple[str, ...], only: tuple[str, ...]
) -> tuple[str, ...]:
    """Return `protect` as a trial records it; SpaceError for what the model does not have.

    Names, `input` and `output` stay as they are. A pattern, or `only`, gives the names of all layers that are
    left whole: a record says what was protected, and equal choices have one key.
    """
    built = (model, *shape_of(dataset))
    net = meta_model(*built)
    if not prunable_layers(net) or not (only or any(is_pattern(net, name) for name in protect)):
        return protect
    try:
        return layers_protected(built, protect, only)
    except ValueError as error:
        raise SpaceError(f"{method_name(model)}: {error}") from error


@lru_cache(maxsize=4096)
def protect_conflict(
    model: str, dataset: str, granularity: str, protect: tuple[str, ...], only: tuple[str, ...] = ()
) -> str | None:
    """Check that unprotected layers can be pruned. SpaceError for a layer that the model does not have."""
    built = (model, *shape_of(dataset))
    layers = list(prunable_layers(meta_model(*built)))
    if not layers:
        return f"{method_name(model)} has no Linear or convolution layer: there is nothing to prune"
    try:
        protected = layers_protected(built, protect, only)
    except ValueError as error:
        raise SpaceError(f"{method_name(model)}: {error}") from error
    removable = set(layers)
    if method_name(granularity) in ("unit", "channel", "head") and len(layers) > 1:
        # The output layer's rows are classes, and stay; a single layer loses input features instead.
        try:
            removable -= set(flow_of(built).outputs)
        except ValueError as error:
            return f"{granularity} of {method_name(model)}: {error}"
    if removable - set(protected):
        return None
    choice = " and ".join(
        f"{key} [{', '.join(names)}]" for key, names in (("only", only), ("protect", protect)) if names
    )
    return f"{choice} leaves no {granularity} of {method_name(model)} to prune"


@lru_cache(maxsize=4096)
def structure_conflict(
    model: str, dataset: str, granularity: str, protect: tuple[str, ...], recover: str, prepare: str
) -> str | None:
    """Check on a fresh network that weights, units or channels can be removed exactly.

    Some recoveries and preparations work on channels, whatever is pruned.
    """
    built = (model, *shape_of(dataset))
    try:
        check_weights(built, protect)
        if method_name(granularity) == "unit":
            units_of(built, protect)
        needs_channels = recoveries.get(recover).traits.get("channels") or trains_cut(recover)
        if needs_channels or method_name(granularity) == "channel":
            channels_of(built, protect)
        if method_name(granularity) == "head":
            heads_of(built, protect)
        if preparations.get(prepare).traits.get("channels"):
            channels_of(built, ())
    except ValueError as error:
        return f"{granularity} of {method_name(model)}: {error}"
    return None


@lru_cache(maxsize=4096)
def scope_conflict(granularity: str, scope: str) -> str | None:
    """Check the pair by pruning a network of three layers."""
    net, batch = _three_layers()
    try:
        prune(net, amount=0.0, granularity=granularity, scope=scope, example_input=batch)
    except ValueError as error:
        return str(error)
    return None


def width_conflict(granularity: str, multiple: int) -> str | None:
    """Check that whole units go where a multiple of them is to be left."""
    name = method_name(granularity)
    if multiple == 1 or name in ("unit", "channel", "head"):
        return None
    return f"round_to is for units, channels and heads, and granularity {name} removes weights"


@lru_cache(maxsize=4096)
def score_conflict(criterion: str, granularity: str) -> str | None:
    """Check that the criterion can rank what the granularity removes."""
    net, batch = _three_layers()
    method, removed = criteria.get(criterion), granularities.get(granularity)
    try:
        check_criterion_fits(method, removed, make_groups(net, removed, example_input=batch))
    except ValueError as error:
        return str(error)
    return None


def _three_layers() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        layers = (nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    return nn.Sequential(*layers), torch.zeros(2, 2)


@lru_cache(maxsize=4096)
def amount_conflict(granularity: str, amount: float) -> str | None:
    """Check that the granularity can remove such an amount."""
    try:
        resolve_amount(granularities.get(granularity), amount)
    except ValueError as error:
        return f"{granularity}: {error}"
    return None


@lru_cache(maxsize=4096)
def criterion_conflict(
    model: str, dataset: str, criterion: str, granularity: str, protect: tuple[str, ...]
) -> str | None:
    """Check that the criterion can rank this model's units, and has enough images of this data set."""
    method = criteria.get(criterion)
    images = parse_dataset(dataset)[1].get("samples_per_class", SAMPLES_PER_CLASS)
    if method.traits.get("data") and images < SAMPLES_PER_CLASS:
        shown = own_code.shown(dataset)
        return f"{method.label} looks at {SAMPLES_PER_CLASS} images per class; {shown} has {images}"
    if method.traits.get("of_architecture"):
        granularity = "weight"  # which needs no trace: it scores single weights, whatever goes
        if passes := method.traits.get("passes"):
            method = criteria.get({**method.options, "method": method.name, passes: 1})
    elif not method.traits.get("norms"):
        return None
    shape, classes = shape_of(dataset)
    with torch.random.fork_rng(devices=[]):
        net = models.build(model, input_shape=shape, num_classes=classes)
    batch = torch.zeros((2, *shape))
    try:
        with warnings.catch_warnings(action="ignore"):  # that something is not pruned; the run says it
            prune(
                net,
                amount=0.0,
                criterion=method,
                granularity=granularity,
                protect=protect,
                example_input=batch,
                sample=(batch, torch.zeros(2, dtype=torch.int64)),
            )
    except ValueError as error:
        return f"{method_name(model)}: {error}"
    return None


@lru_cache(maxsize=64)
def meta_model(model: str, shape: Shape, num_classes: int) -> nn.Module:
    """Return a model on the meta device, which has shapes and no memory for weights."""
    with torch.device("meta"):
        return models.build(model, input_shape=shape, num_classes=num_classes)


def order_conflict(prune: Prune, when: When, prepare: str, recover: str) -> str | None:
    """Check that pruning, preparation and recovery fit the moment of pruning."""
    schedule = schedules.get(prune.schedule)
    if prune.control == "shuffle" and (rounds_of(schedule) > 1 or when == "during"):
        return "control shuffle permutes the masks: it needs a schedule of one round, not during training"
    if prune.control == "shuffle" and method_name(prune.granularity) != "weight":
        return "control shuffle is for granularity weight: shuffled units would no longer be units"
    try:
        check_invert(schedule, invert=prune.control == "invert")
    except ValueError as error:
        return f"control invert: {error}"
    if "tolerance" in schedule.options and when != "during":
        return f"schedule {schedule.label} waits for layers to settle: it needs when: during"
    criterion = criteria.get(prune.criterion)
    if is_accumulated(criterion) and when != "during":
        return f"criterion {criterion.label} sums over the steps of a training: it needs when: during"
    if prepare != "none" and when != "after":
        return "prepare continues the dense training: it needs when: after"
    method = recoveries.get(recover)
    if when == "init" and method.options.get("to"):
        return f"recover {method} goes back to a trained network: at init there is none"
    return _regrowth_conflict(prune, when, method) if method.traits.get("regrows") else None


def _regrowth_conflict(prune: Prune, when: When, recovery: Method) -> str | None:
    """Check that a recovery that brings weights back trains an untrained network, weight by weight."""
    if when != "init":
        return f"recover {recovery.name} trains a network that is sparse from the start: it needs when: init"
    if method_name(prune.granularity) != "weight":
        return f"recover {recovery.name} drops and grows single weights: it needs granularity weight"
    if prune.scope == "unit":
        return f"recover {recovery.name} keeps the count of each layer, not of each row: not scope unit"
    return None


def recipe_conflict(train: Train, dataset: str) -> str | None:
    """Return why a recipe cannot train on a data set, in text form; None where it can."""
    if train.nesterov and train.optimizer == "sgd" and not train.momentum:
        return "nesterov needs a momentum above 0"
    return schedule_conflict(train) or augmentation_conflict(train.augment, shape_of(dataset)[0])
