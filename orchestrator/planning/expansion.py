"""Lists of values -> trials: every combination once, the trainings they share, what is left out and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, cast

from orchestrator.config import (
    TRAIN_FIELDS,
    Control,
    DenseConfig,
    Numerics,
    Prune,
    Start,
    Train,
    TrialConfig,
    When,
    micro_batch_of,
)
from orchestrator.planning.choices import Lists
from orchestrator.planning.constraints import (
    amount_conflict,
    criterion_conflict,
    model_conflict,
    order_conflict,
    protect_conflict,
    scope_conflict,
    score_conflict,
    start_conflict,
    structure_conflict,
    train_size,
)
from orchestrator.planning.equality import plain_key, same
from orchestrator.planning.fingerprints import data_sha256, dense_code, trial_code
from orchestrator.space import hyperparameters, techniques
from orchestrator.space.overrides import TECHNIQUE_AXES
from orchestrator.space.schema import Exclude
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Value, listed_values
from orchestrator.trial.params import without_defaults
from pruning.registry import parse

Point = dict[str, Any]  # an axis's name and its value, of the axis's own type
Params = Mapping[str, Value]  # what was chosen, by the names of axes and of METHOD.OPTION
TRAINED = ("recover", "when", "prepare", "distill")


@dataclass(frozen=True)
class PlannedTrial:
    """`config` has the effective batch size, never above the training set; here is the one asked for."""

    config: TrialConfig
    key: str
    requested_batch_size: int


@dataclass(frozen=True)
class Exclusion:
    """`count` points that are not run, and why.

    Where they are equal by definition to points of the plan: the axis, its value here and theirs.
    """

    reason: str
    count: int
    axis: str = ""
    left_out: str = ""
    planned: str = ""


@dataclass(frozen=True)
class Expansion:
    """`dense`: the trainings that the trials share, each once, in the order in which they are needed."""

    trials: tuple[PlannedTrial, ...]
    dense: tuple[DenseConfig, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True)
class SampledPoint:
    """A point, or no expansion where no new one was found; why the draws before it could not be run."""

    params: Params
    expansion: Expansion | None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class DenseVariant:
    """What a dense training is of; `ruled` are the numbers of the exclude entries that may hold for it."""

    dense: DenseConfig
    requested: int
    refusal: str | None
    ruled: frozenset[int]


@dataclass(frozen=True)
class PruningVariant:
    """What is done with a dense network; the same for every one of them."""

    prune: Prune
    fields: Point
    refusal: str | None
    ruled: frozenset[int]


def expand(space: Space, lists: Lists, numerics: Numerics) -> Expansion:
    """The trials of all combinations of the lists; the micro-batch is planned model by model."""
    trials: dict[str, PlannedTrial] = {}  # by the keys of what they are by definition
    dense: dict[DenseConfig, DenseConfig] = {}
    left_out: dict[Exclusion, int] = {}
    branches = list(_branches(space, lists))
    for base in _bases(space, lists, numerics):
        config = dense.get(base.dense, base.dense)
        needed = False
        for branch in branches:
            trial = TrialConfig(config, branch.prune, **branch.fields)
            reason = _refusal(space, base, branch)
            exclusion = None if reason is None else Exclusion(reason, 0)
            if exclusion is None:
                key = plain_key(trial)
                exclusion = _duplicate_reason(trials[key], trial, base) if key in trials else None
            if exclusion is None:
                trials[key] = PlannedTrial(trial, trial.key(), base.requested)
                needed = True
            else:
                left_out[exclusion] = left_out.get(exclusion, 0) + 1
        if needed:
            dense.setdefault(config, config)
    excluded = tuple(replace(item, count=count) for item, count in left_out.items())
    return Expansion(tuple(trials.values()), tuple(dense), excluded)


def _bases(space: Space, lists: Lists, numerics: Numerics) -> Iterator[DenseVariant]:
    for model, dataset in product(lists["model"], lists["dataset"]):
        planned = replace(numerics, micro_batch=micro_batch_of(model))
        starts = lists.get("start", ("scratch",))
        trained = product(lists["batch_size"], _recipes(space, lists), starts, lists["seed"])
        for requested, (train, asked), start, seed in trained:
            size = min(requested, train_size(dataset))
            point = {"model": model, "dataset": dataset, "batch_size": requested, "seed": seed, **asked}
            parts = (_ancestor(space, start), data_sha256(dataset), dense_code(model, dataset))
            yield DenseVariant(
                DenseConfig(model, dataset, size, seed, train, planned, start, *parts),
                requested,
                model_conflict(model, dataset)
                or _recipe_refusal(train)
                or start_conflict(start, model, dataset, space.ancestor),
                _ruled(space.exclude, {**point, "start": start}),
            )


def _ancestor(space: Space, start: Start) -> str:
    return "" if start == "scratch" or space.ancestor is None else space.ancestor.sha256


def _recipes(space: Space, lists: Lists) -> list[tuple[Train, Point]]:
    """Every recipe, and its values by the names of their axes."""
    base = space.train.model_dump()
    varied = [lists.get(f"train.{name}", (base[name],)) for name in TRAIN_FIELDS]
    names = [f"train.{name}" for name in TRAIN_FIELDS]
    return [(Train(*values), dict(zip(names, values, strict=True))) for values in product(*varied)]


def _recipe_refusal(train: Train) -> str | None:
    if train.nesterov and train.optimizer == "sgd" and not train.momentum:
        return "nesterov needs a momentum above 0"
    return None


def _branches(space: Space, lists: Lists) -> Iterator[PruningVariant]:
    pruned = product(_techniques(space, lists), lists["schedule"], lists["amount"], lists["control"])
    trained = list(product(*(lists[axis] for axis in TRAINED)))
    for (technique, schedule, amount, control), values in product(pruned, trained):
        label, criterion, granularity, scope = technique
        prune = Prune(criterion, granularity, scope, schedule, amount, space.protect, cast(Control, control))
        fields = {**dict(zip(TRAINED, values, strict=True)), "technique": label}
        point = {**vars(prune), **fields}
        fields["trial_code"] = _code_of_trial(prune, fields)
        yield PruningVariant(
            prune, fields, _branch_refusal(prune, fields, point), _ruled(space.exclude, point)
        )


def _code_of_trial(prune: Prune, fields: Point) -> str:
    trained = {name: fields[name] for name in ("recover", "prepare", "distill")}
    return trial_code(prune, **trained)


def _branch_refusal(prune: Prune, fields: Point, point: Point) -> str | None:
    tuned = (hyperparameters.option_conflict(axis, point[axis]) for axis in hyperparameters.METHOD_REGISTRIES)
    return (
        next(filter(None, tuned), None)
        or scope_conflict(prune.granularity, prune.scope)
        or score_conflict(prune.criterion, prune.granularity)
        or amount_conflict(prune.granularity, prune.amount)
        or order_conflict(prune, cast(When, fields["when"]), fields["prepare"], fields["recover"])
    )


def _techniques(space: Space, lists: Lists) -> list[tuple[str, str, str, str]]:
    """(label, criterion, granularity, scope), by the technique axis or by the three others.

    The label is in the space's own words: a technique's name, or the criterion's, and beside it the
    granularity and the scope where the space has several.
    """
    if "technique" not in lists:
        several = [axis for axis in ("granularity", "scope") if len(listed_values(space.choices()[axis])) > 1]
        triples = product(*(lists[axis] for axis in TECHNIQUE_AXES))
        return [
            (_label(dict(zip(TECHNIQUE_AXES, triple, strict=True)), several), *triple) for triple in triples
        ]
    found = []
    for text in lists["technique"]:
        known = techniques.resolve(*parse(text))
        found.append((text, known.criterion, known.granularity, known.scope))
    return found


def _label(triple: Mapping[str, str], several: Collection[str]) -> str:
    return "/".join(
        without_defaults(axis, triple[axis]) if axis != "scope" else triple[axis]
        for axis in ("criterion", *several)
    )


def _ruled(rules: Collection[Exclude], point: Point) -> frozenset[int]:
    return frozenset(number for number, rule in enumerate(rules) if rule.matches(point))


def _refusal(space: Space, base: DenseVariant, branch: PruningVariant) -> str | None:
    """Why a point is not run: the space says so, or it cannot be."""
    if rules := base.ruled & branch.ruled:
        return _rule_text(space.exclude[min(rules)])
    if base.refusal or branch.refusal:
        return base.refusal or branch.refusal
    model, dataset, prune = base.dense.model, base.dense.dataset, branch.prune
    if base.dense.start == "masked" and prune.control == "shuffle":
        return "control shuffle deals the masks out anew: start masked, whose masks stay, cannot have it"
    methods = (branch.fields["recover"], branch.fields["prepare"])
    return (
        protect_conflict(model, dataset, prune.granularity, prune.protect)
        or structure_conflict(model, dataset, prune.granularity, prune.protect, *methods)
        or criterion_conflict(model, dataset, prune.criterion, prune.granularity, prune.protect)
    )


@lru_cache(maxsize=256)
def _rule_text(rule: Exclude) -> str:
    said = ", ".join(f"{name}: {_either(chosen)}" for name, chosen in rule.non_empty().items())
    return f"exclude {{{said}}}"


def _either(chosen: Choice) -> str:
    return " or ".join(map(str, chosen)) if isinstance(chosen, tuple) else str(chosen)


def _duplicate_reason(first: PlannedTrial, trial: TrialConfig, base: DenseVariant) -> Exclusion:
    if first.key != trial.key():
        found = same(trial, first.config)
        return Exclusion(found.reason, 0, found.axis, found.left_out, found.planned)
    if first.requested_batch_size == base.requested:
        return Exclusion("the same point is in the space more than once: planned once", 0)
    return Exclusion(
        f"batch size {base.requested} and {first.requested_batch_size} are both the full batch of "
        f"{base.dense.batch_size} images: planned once",
        0,
    )
