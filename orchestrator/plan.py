"""A space -> its plan: every trial once, the dense trainings they share, and what is left out and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, cast

from orchestrator import techniques
from orchestrator.axes import Exclude
from orchestrator.config import (
    TRAIN_FIELDS,
    Control,
    DenseConfig,
    Device,
    Numerics,
    Precision,
    Prune,
    Train,
    TrialConfig,
    When,
    micro_batch_of,
)
from orchestrator.errors import SpaceError
from orchestrator.refusals import (
    amount_refusal,
    criterion_refusal,
    model_refusal,
    order_refusal,
    protect_refusal,
    scope_refusal,
    score_refusal,
    train_size,
)
from orchestrator.space import Space
from pruning.registry import parse

Point = dict[str, Any]  # an axis's name and its value, of the axis's own type


@dataclass(frozen=True)
class PlannedTrial:
    """`config` has the effective batch size, never above the training set; here is the one asked for."""

    config: TrialConfig
    key: str
    requested_batch_size: int


@dataclass(frozen=True)
class Exclusion:
    """`count` points that are not run, and why."""

    reason: str
    count: int


@dataclass(frozen=True)
class Plan:
    """`dense`: the trainings that the trials share, each once, in the order in which they are needed."""

    space: Space
    trials: tuple[PlannedTrial, ...]
    dense: tuple[DenseConfig, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True)
class _Base:
    """What a dense training is of; `ruled` are the numbers of the exclude entries that may hold for it."""

    dense: DenseConfig
    requested: int
    refusal: str | None
    ruled: frozenset[int]


@dataclass(frozen=True)
class _Branch:
    """What is done with a dense network; the same for every one of them."""

    prune: Prune
    fields: Point
    refusal: str | None
    ruled: frozenset[int]


def make_plan(
    space: Space, *, device: Device = "cpu", precision: Precision = "fp32", threads: int = 1
) -> Plan:
    """The plan of a space; no data set is needed. SpaceError where a model fits none of the data sets."""
    _check_models(space)
    trials: dict[str, PlannedTrial] = {}
    dense: dict[DenseConfig, DenseConfig] = {}
    left_out: dict[str, int] = {}
    branches = list(_branches(space))
    for base in _bases(space, device, precision, threads):
        config = dense.get(base.dense, base.dense)
        needed = False
        for branch in branches:
            trial = TrialConfig(config, branch.prune, **branch.fields)
            reason = _refusal(space, base, branch)
            if reason is None:
                key = trial.key()
                reason = _twice(trials[key], base) if key in trials else None
            if reason is None:
                trials[key] = PlannedTrial(trial, key, base.requested)
                needed = True
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
        if needed:
            dense.setdefault(config, config)
    excluded = tuple(Exclusion(reason, count) for reason, count in left_out.items())
    return Plan(space, tuple(trials.values()), tuple(dense), excluded)


def _check_models(space: Space) -> None:
    for model in space.axes.model:
        refusals = [model_refusal(model, dataset) for dataset in space.axes.dataset]
        if all(refusals):
            raise SpaceError(f"{space.name}: {refusals[0]}")


def _bases(space: Space, device: Device, precision: Precision, threads: int) -> Iterator[_Base]:
    axes = space.axes
    for model, dataset in product(axes.model, axes.dataset):
        numerics = Numerics(device, precision, threads, micro_batch_of(model))
        for requested, (train, asked), seed in product(axes.batch_size, _recipes(space), axes.seed):
            size = min(requested, train_size(dataset))
            point = {"model": model, "dataset": dataset, "batch_size": requested, "seed": seed, **asked}
            yield _Base(
                DenseConfig(model, dataset, size, seed, train, numerics),
                requested,
                model_refusal(model, dataset) or _recipe_refusal(train),
                _ruled(space.exclude, point),
            )


def _recipes(space: Space) -> list[tuple[Train, Point]]:
    """Every recipe, and its values by the names of their axes."""
    given = space.axes.given()
    base = space.train.model_dump()
    varied = [given.get(f"train.{name}", (base[name],)) for name in TRAIN_FIELDS]
    names = [f"train.{name}" for name in TRAIN_FIELDS]
    return [(Train(*values), dict(zip(names, values, strict=True))) for values in product(*varied)]


def _recipe_refusal(train: Train) -> str | None:
    if train.nesterov and train.optimizer == "sgd" and not train.momentum:
        return "nesterov needs a momentum above 0"
    return None


def _branches(space: Space) -> Iterator[_Branch]:
    axes = space.axes
    pruned = product(_techniques(space), axes.schedule, axes.amount, axes.control)
    trained = list(product(space.recoveries, axes.when, axes.prepare, axes.distill))
    for (technique, schedule, amount, control), values in product(pruned, trained):
        label, criterion, granularity, scope = technique
        prune = Prune(criterion, granularity, scope, schedule, amount, space.protect, cast(Control, control))
        fields = dict(zip(("recover", "when", "prepare", "distill"), values, strict=True))
        fields["technique"] = label
        refusal = (
            scope_refusal(granularity, scope)
            or score_refusal(criterion, granularity)
            or amount_refusal(granularity, amount)
            or order_refusal(prune, cast(When, fields["when"]), fields["prepare"], fields["recover"])
        )
        yield _Branch(prune, fields, refusal, _ruled(space.exclude, {**vars(prune), **fields}))


def _techniques(space: Space) -> list[tuple[str, str, str, str]]:
    """(label, criterion, granularity, scope), by the technique axis or by the three others."""
    axes = space.axes
    if axes.criterion or axes.granularity or axes.scope:
        triples = product(
            axes.criterion or ("magnitude",), axes.granularity or ("weight",), axes.scope or ("global",)
        )
        return [(techniques.label(*triple), *triple) for triple in triples]
    found = []
    for text in axes.technique or ("weight",):
        known = techniques.resolve(*parse(text))
        found.append((text, known.criterion, known.granularity, known.scope))
    return found


def _ruled(rules: Collection[Exclude], point: Point) -> frozenset[int]:
    return frozenset(number for number, rule in enumerate(rules) if rule.matches(point))


def _refusal(space: Space, base: _Base, branch: _Branch) -> str | None:
    """Why a point is not run: the space says so, or it cannot be."""
    if rules := base.ruled & branch.ruled:
        return _rule_text(space.exclude[min(rules)])
    if base.refusal or branch.refusal:
        return base.refusal or branch.refusal
    model, dataset, prune = base.dense.model, base.dense.dataset, branch.prune
    return protect_refusal(model, dataset, prune.granularity, prune.protect) or criterion_refusal(
        model, dataset, prune.criterion, prune.granularity, prune.protect
    )


@lru_cache(maxsize=256)
def _rule_text(rule: Exclude) -> str:
    said = ", ".join(f"{name}: {' or '.join(map(str, values))}" for name, values in rule.given().items())
    return f"exclude {{{said}}}"


def _twice(first: PlannedTrial, base: _Base) -> str:
    if first.requested_batch_size == base.requested:
        return "the same point is in the space more than once: planned once"
    return (
        f"batch size {base.requested} and {first.requested_batch_size} are both the full batch of "
        f"{base.dense.batch_size} images: planned once"
    )
