"""Expand lists of values into trials: every combination once, shared trainings, exclusions with reasons."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any, cast

import models
from orchestrator.config import (
    TRAIN_FIELDS,
    Control,
    DenseConfig,
    Numerics,
    Prune,
    Train,
    TrialConfig,
    When,
)
from orchestrator.planning.allocation_scopes import (
    ALLOCATED,
    allocation_conflict,
    allocation_point,
    start_allocation_conflict,
    techniques_of,
)
from orchestrator.planning.amounts import layer_amounts_conflict, of_model, with_protected_layers
from orchestrator.planning.constraints import (
    amount_conflict,
    criterion_conflict,
    model_conflict,
    order_conflict,
    protect_conflict,
    recipe_conflict,
    scope_conflict,
    score_conflict,
    shape_of,
    start_conflict,
    structure_conflict,
    train_size,
    width_conflict,
)
from orchestrator.planning.equality import explain_duplicate, plain_key
from orchestrator.planning.fingerprints import data_sha256, dense_code, trial_code
from orchestrator.planning.micro_batches import planned_micro_batch
from orchestrator.space import hyperparameters
from orchestrator.space.hyperparameters import METHOD_REGISTRIES
from orchestrator.space.schema import Exclude
from orchestrator.space.space import Lists, Space
from orchestrator.space.values import Choice, Value, canonical_text
from orchestrator.trial.recovery import network_conflict, recoveries

Point = dict[str, Any]  # an axis's name and its value, of the axis's own type
Params = Mapping[str, Value]  # the values of a point, by the names of axes and of METHOD.OPTION
TRAINING_AXES = ("recover", "when", "prepare", "distill")


@dataclass(frozen=True)
class PlannedTrial:
    """A trial. Its `config` has the effective batch size, which is never above the training set."""

    config: TrialConfig
    key: str
    requested_batch_size: int


@dataclass(frozen=True)
class Exclusion:
    """`count` points that are not run, and why.

    Where they equal planned points by definition: the axis, its value in them and in the planned points.
    """

    reason: str
    count: int
    axis: str = ""
    left_out: str = ""
    planned: str = ""


@dataclass(frozen=True)
class Expansion:
    """`dense` are the trainings that the trials share, each once, in the order in which they are needed."""

    trials: tuple[PlannedTrial, ...]
    dense: tuple[DenseConfig, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True)
class SampledPoint:
    """A point of a search; no `expansion` where no new point exists.

    `conflicts` are the reasons of the draws before it that could not be run.
    """

    params: Params
    expansion: Expansion | None
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DenseVariant:
    """A dense training. `rules` are the indices of the `exclude` entries that its axes match."""

    dense: DenseConfig
    requested_batch_size: int
    conflict: str | None
    rules: frozenset[int]


@dataclass(frozen=True)
class PruningVariant:
    """A way to prune and recover, the same for every dense network; `fields` are those of TrialConfig."""

    prune: Prune
    fields: Point
    conflict: str | None
    rules: frozenset[int]


def expand(space: Space, lists: Lists, numerics: Numerics, *, gpu_bytes: int | None = None) -> Expansion:
    """Return the trials of all combinations of the lists.

    The micro-batch depends on the model, and on a GPU on what a trial has of its memory, `gpu_bytes`.
    """
    trials: dict[Hashable, PlannedTrial] = {}  # by plain key: what is equal by definition is planned once
    dense: dict[DenseConfig, DenseConfig] = {}
    excluded: dict[Exclusion, int] = {}
    pruning_variants = list(_pruning_variants(space, lists))
    for dense_variant in _dense_variants(space, lists, numerics, gpu_bytes):
        config = dense.get(dense_variant.dense, dense_variant.dense)
        is_needed = False
        for pruning_variant in pruning_variants:
            reason = _conflict(space, dense_variant, pruning_variant)
            exclusion = None if reason is None else Exclusion(reason, 0)
            if exclusion is None:
                prune = of_model(space, config, pruning_variant.prune)
                trial = TrialConfig(config, prune, **pruning_variant.fields)
                key = plain_key(trial)
                exclusion = _duplicate(trials[key], trial, dense_variant) if key in trials else None
            if exclusion is None:
                trials[key] = PlannedTrial(trial, trial.key(), dense_variant.requested_batch_size)
                is_needed = True
            else:
                excluded[exclusion] = excluded.get(exclusion, 0) + 1
        if is_needed:
            dense.setdefault(config, config)
    exclusions = tuple(replace(item, count=count) for item, count in excluded.items())
    return Expansion(tuple(trials.values()), tuple(dense), exclusions)


def _dense_variants(
    space: Space, lists: Lists, numerics: Numerics, gpu_bytes: int | None
) -> Iterator[DenseVariant]:
    source_model = space.source_model
    for model, dataset in product(lists["model"], lists["dataset"]):
        settled = _settled(model, dataset)
        micro_batch = partial(planned_micro_batch, settled, dataset, numerics=numerics, gpu_bytes=gpu_bytes)
        starts = lists.get("start", ("scratch",))
        variants = product(lists["batch_size"], _recipes(space, lists), starts, lists["seed"])
        for batch_size, (train, recipe), start, seed in variants:
            point = {"model": model, "dataset": dataset, "batch_size": batch_size, "seed": seed, **recipe}
            effective = min(batch_size, train_size(dataset))
            config = DenseConfig(
                model=settled,
                dataset=dataset,
                batch_size=effective,
                seed=seed,
                train=train,
                numerics=replace(numerics, micro_batch=micro_batch(effective)),
                start=start,
                ancestor_sha256="" if start == "scratch" or source_model is None else source_model.sha256,
                data_sha256=data_sha256(dataset),
                dense_code=dense_code(settled, dataset, train.augment, train.schedule),
            )
            conflict = (
                model_conflict(settled, dataset)
                or recipe_conflict(train, dataset)
                or start_conflict(start, settled, dataset, source_model)
            )
            rules = _matching_rules(space.exclude, {**point, "start": start})
            yield DenseVariant(config, batch_size, conflict, rules)


@lru_cache(maxsize=1024)
def _settled(model: str, dataset: str) -> str:
    """Return the text of a model for the images of a data set: keys and params name the stem that it has."""
    return canonical_text(*models.settle(model, shape_of(dataset)[0]))


def _recipes(space: Space, lists: Lists) -> list[tuple[Train, Point]]:
    """Return every recipe, and its values by the names of their axes."""
    base = space.train.model_dump()
    names = [f"train.{name}" for name in TRAIN_FIELDS]
    choices = [lists.get(f"train.{name}", (base[name],)) for name in TRAIN_FIELDS]
    return [(Train(*values), dict(zip(names, values, strict=True))) for values in product(*choices)]


def _pruning_variants(space: Space, lists: Lists) -> Iterator[PruningVariant]:
    prunings = product(techniques_of(space, lists), lists["schedule"], lists["amount"], lists["control"])
    trainings = list(product(*(lists[axis] for axis in TRAINING_AXES)))
    for (technique, schedule, amount, control), values in product(prunings, trainings):
        label, criterion, granularity, scope = technique
        number, by_layer = (0.0, amount) if isinstance(amount, str) else (amount, "")
        prune = Prune(
            criterion,
            granularity,
            scope,
            schedule,
            number,  # of amounts by layer a model's layers decide it
            space.protect,
            cast(Control, control),
            amount_label=by_layer,
            round_to=space.round_to,
        )
        fields = {**dict(zip(TRAINING_AXES, values, strict=True)), "technique": label}
        point = {**vars(prune), "amount": amount, **allocation_point(scope), **fields}
        methods = {axis: fields[axis] for axis in ("recover", "prepare", "distill")}
        fields["trial_code"] = trial_code(prune, **methods)
        conflict = _pruning_conflict(prune, fields, point)
        yield PruningVariant(prune, fields, conflict, _matching_rules(space.exclude, point))


def _pruning_conflict(prune: Prune, fields: Point, point: Point) -> str | None:
    conflicts = (hyperparameters.option_conflict(axis, point[axis]) for axis in METHOD_REGISTRIES)
    return (
        next(filter(None, conflicts), None)
        or allocation_conflict(prune, fields["when"], fields["prepare"])
        or scope_conflict(prune.granularity, "global" if prune.scope in ALLOCATED else prune.scope)
        or score_conflict(prune.criterion, prune.granularity)
        or (None if prune.amount_label else amount_conflict(prune.granularity, prune.amount))
        or width_conflict(prune.granularity, prune.round_to)
        or network_conflict(fields["recover"], prune.granularity)
        or order_conflict(prune, cast(When, fields["when"]), fields["prepare"], fields["recover"])
    )


def _matching_rules(rules: Collection[Exclude], point: Point) -> frozenset[int]:
    return frozenset(number for number, rule in enumerate(rules) if rule.matches(point))


def _conflict(space: Space, dense: DenseVariant, pruning: PruningVariant) -> str | None:
    """Return why a point is not run: the space excludes it, or it cannot be run."""
    if rules := dense.rules & pruning.rules:
        return _rule_text(space.exclude[min(rules)])
    if dense.conflict or pruning.conflict:
        return dense.conflict or pruning.conflict
    model, dataset, prune = dense.dense.model, dense.dense.dataset, pruning.prune
    if dense.dense.start == "masked" and prune.control == "shuffle":
        return "control shuffle permutes the masks: start masked, whose masks stay, cannot have it"
    recovery = recoveries.get(pruning.fields["recover"])
    if dense.dense.start == "masked" and recovery.traits.get("regrows"):
        return f"recover {recovery.name} brings weights back: start masked, whose masks stay, cannot have it"
    if reason := start_allocation_conflict(prune, dense.dense.start):
        return reason
    methods = (pruning.fields["recover"], pruning.fields["prepare"])
    if reason := protect_conflict(model, dataset, prune.granularity, space.protect, space.only):
        return reason
    prune = with_protected_layers(space, dense.dense, prune)
    return (
        structure_conflict(model, dataset, prune.granularity, prune.protect, *methods)
        or criterion_conflict(model, dataset, prune.criterion, prune.granularity, prune.protect)
        or layer_amounts_conflict(model, dataset, prune)
    )


@lru_cache(maxsize=256)
def _rule_text(rule: Exclude) -> str:
    axes = ", ".join(f"{axis}: {_choice_text(choice)}" for axis, choice in rule.non_empty().items())
    return f"exclude {{{axes}}}"


def _choice_text(choice: Choice) -> str:
    return " or ".join(map(str, choice)) if isinstance(choice, tuple) else str(choice)


def _duplicate(first: PlannedTrial, trial: TrialConfig, dense: DenseVariant) -> Exclusion:
    if first.key != trial.key():
        duplicate = explain_duplicate(trial, first.config)
        return Exclusion(duplicate.reason, 0, duplicate.axis, duplicate.left_out, duplicate.planned)
    if first.requested_batch_size == dense.requested_batch_size:
        return Exclusion("the same point is in the space more than once: planned once", 0)
    return Exclusion(
        f"batch size {dense.requested_batch_size} and {first.requested_batch_size} are both the full batch "
        f"of {dense.dense.batch_size} images: planned once",
        0,
    )
