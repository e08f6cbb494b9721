"""Configurations that are equal by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from orchestrator.config import DenseConfig, Prune, Train, TrialConfig, method_name, method_text
from orchestrator.planning.constraints import _skeleton, shape_of
from orchestrator.trial.params import without_defaults
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_of, recoveries
from orchestrator.trial.structure import flow_of, layers_protected
from pruning.criteria import criteria, representative
from pruning.masking import prunable_layers
from pruning.registry import hyperparameters
from pruning.schedules import schedules

ONE_LINEAR_LAYER = "slp"


@dataclass(frozen=True)
class Same:
    """Why a point is planned already; `axis`, and its values on both sides, as tables name them."""

    reason: str
    axis: str
    left_out: str
    planned: str


def plain_key(config: TrialConfig) -> str:
    """The key of the plain configuration: equal for points that are equal by definition."""
    return plain(config).key()


def plain(config: TrialConfig) -> TrialConfig:
    """The configuration that stands for all that compute the same; itself, where that is this one."""
    train = config.dense.train
    found = replace(
        config,
        dense=_plain_dense(config.dense),
        prune=_plain_prune(config.prune, config.dense.model, config.dense.dataset),
        recover=_plain_recovery(config.recover, train),
        prepare=_plain_preparation(config.prepare, train),
        distill="none" if _teaches_nothing(config) else config.distill,
    )
    return config if found == config else found


def same(config: TrialConfig, first: TrialConfig) -> Same:
    """Why `config` is `first`, which is planned: both have one plain configuration."""
    (axis, left_out, planned, why), *more = _differences(config, first)
    if config.technique != first.technique:
        axis, left_out, planned = "technique", config.technique, first.technique
    reasons = "; ".join([why, *(other[-1] for other in more)])
    names = f"{left_out} and {planned}: " if axis == "technique" else ""
    return Same(f"{names}{reasons}: planned once", axis, left_out, planned)


def _plain_dense(config: DenseConfig) -> DenseConfig:
    train = _plain_recipe(config.train)
    return config if train == config.train else replace(config, train=train)


@lru_cache(maxsize=1024)
def _plain_recipe(train: Train) -> Train:
    """Adam and AdamW read no momentum."""
    return train if train.optimizer == "sgd" else replace(train, momentum=0.0, nesterov=False)


@lru_cache(maxsize=65536)
def _plain_prune(prune: Prune, model: str, dataset: str) -> Prune:
    schedule = schedules.get(prune.schedule)
    granularity, scope = prune.granularity, prune.scope
    if granularity == "channel" and _layers(model, dataset) == 1:
        granularity = "unit"
    if method_name(granularity) == "nm" or (scope != "unit" and _competitors(prune, model, dataset) == 1):
        scope = "layer"
    by_order = not schedule.traits.get("scores")
    criterion = prune.criterion
    if method_name(model) == ONE_LINEAR_LAYER:
        criterion = criteria.get(criterion).traits.get("of_linear", criterion)
    once = bool(schedule.traits.get("lands")) and schedule.options == {"rounds": 1}
    return replace(
        prune,
        criterion=representative(criterion, method_name(granularity), by_order=by_order),
        granularity=granularity,
        scope=scope,
        schedule="one_shot" if once else prune.schedule,
    )


@lru_cache(maxsize=1024)
def _layers(model: str, dataset: str) -> int:
    return len(prunable_layers(_skeleton(model, *shape_of(dataset))))


def _competitors(prune: Prune, model: str, dataset: str) -> int:
    """How many layers have something to remove; 0 where that takes a trace of the network."""
    return _competing_layers(model, dataset, method_name(prune.granularity), prune.protect)


@lru_cache(maxsize=1024)
def _competing_layers(model: str, dataset: str, granularity: str, protect: tuple[str, ...]) -> int:
    built = (model, *shape_of(dataset))
    layers = set(prunable_layers(_skeleton(*built)))
    if granularity == "channel" and len(layers) > 1:
        return 0
    outputs = flow_of(built).outputs if granularity == "unit" and len(layers) > 1 else ()
    return len(layers - set(outputs) - set(layers_protected(built, protect)))


@lru_cache(maxsize=4096)
def _plain_recovery(recover: str, train: Train) -> str:
    """The length in epochs: `10%` of 10 epochs is 1."""
    method = recoveries.get(recover)
    lengths = [name for name, known in hyperparameters(method.function).items() if known.form is not None]
    total = method.traits.get("length")
    if len(lengths) != 1 or total is None:
        return recover
    return method_text(method.name, {**method.options, lengths[0]: total(train, **method.options)})


@lru_cache(maxsize=4096)
def _plain_preparation(prepare: str, train: Train) -> str:
    method = preparations.get(prepare)
    length = method.options.get("epochs")
    if length is None:
        return prepare
    return method_text(method.name, {**method.options, "epochs": epochs_of(length, train)})


def _teaches_nothing(config: TrialConfig) -> bool:
    """Whether nothing is trained that could learn from the dense network."""
    return config.when != "during" and recoveries.get(config.recover).traits.get("trains") is False


def _differences(config: TrialConfig, first: TrialConfig) -> Iterator[tuple[str, str, str, str]]:
    """(axis, its value here, its value there, why both are the same) wherever the two differ."""
    prune, other = config.prune, first.prune
    layer = f"{method_name(config.dense.model)} has one layer to prune"
    where = without_defaults("granularity", prune.granularity)
    linear = {"of_linear"} & {name for p in (prune, other) for name in criteria.get(p.criterion).traits}
    because = {
        "criterion": "choose the same of one Linear layer"
        if linear
        else f"choose the same at granularity {where}",
        "granularity": "are both the inputs of the only layer",
        "scope": "are one within blocks"
        if method_name(prune.granularity) == "nm"
        else f"are one where {layer}",
        "schedule": "are both one round",
    }
    for axis, why in because.items():
        if getattr(prune, axis) != getattr(other, axis):
            yield _difference(axis, getattr(prune, axis), getattr(other, axis), why)
    epochs = f"are as many epochs of {config.dense.train.epochs}"
    trained = {"recover": epochs, "prepare": epochs, "distill": "are one where nothing is trained afterwards"}
    for axis, why in trained.items():
        if getattr(config, axis) != getattr(first, axis):
            yield _difference(axis, getattr(config, axis), getattr(first, axis), why)
    for field in fields(Train):
        ours, theirs = (getattr(one.dense.train, field.name) for one in (config, first))
        if ours != theirs:
            unread = f"are one: {config.dense.train.optimizer} reads no {field.name}"
            yield _difference(f"train.{field.name}", str(ours), str(theirs), unread)


def _difference(axis: str, ours: str, theirs: str, why: str) -> tuple[str, str, str, str]:
    ours, theirs = (
        text if "." in axis or axis == "scope" else without_defaults(axis, text) for text in (ours, theirs)
    )
    return axis, ours, theirs, f"{axis} {ours} and {theirs} {why}"
