"""Which tasks of a plan a worker is given together: stacks of trainings, and short trials without any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.planning.constraints import Shape, meta_model, shape_of, split_sizes_of
from orchestrator.training.stack import stack_conflict
from orchestrator.training.stacked_network import uses_products_alone
from orchestrator.trial.recovery import epochs_per_round, recoveries, trains_cut
from pruning.accumulation import is_accumulated
from pruning.criteria import criteria
from pruning.schedules import rounds_of, schedules

# Of an evaluation's multiply-adds: beyond it a trial takes longer than it takes Ray Tune to hand it out.
MOST_EVALUATION_MACS = 4_000_000_000


def task_group(config: DenseConfig | TrialConfig, *, competes: bool = False) -> Hashable:
    """Return what tasks share that one worker may be given together; None for one by itself.

    These are the stacks of `stack_group`, and trials that train nothing: one after the other, they take less
    time than Ray Tune takes for each. Not where trials compete: the first ones would stop none.
    """
    if not (isinstance(config, TrialConfig) and _trains_nothing(config)):
        return stack_group(config, competes=competes)
    dense = config.dense
    macs = _evaluation_macs(dense.model, dense.dataset)
    return None if competes or macs > MOST_EVALUATION_MACS else (dense.model, dense.dataset, dense.key())


def _trains_nothing(config: TrialConfig) -> bool:
    return (config.when, config.prepare, config.recover) == ("after", "none", "none")


@lru_cache(maxsize=256)
def _evaluation_macs(model: str, dataset: str) -> float:
    """Return the multiply-adds of linear layers for all images that a trial measures; inf with others."""
    net = meta_model(model, *shape_of(dataset))
    if not uses_products_alone(net):
        return math.inf
    _, validation, test = split_sizes_of(dataset)
    weights = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear))
    return weights * (validation + test)


def stack_group(config: DenseConfig | TrialConfig, *, competes: bool = False) -> Hashable:
    """Return what the tasks of one stack share; None for one that runs by itself.

    Where trials compete, a stack has the seeds of one setting: a rule stops a trial by those that ended
    before it, and trials of one stack end together.

    What a worker finds to train at one time is decided there, by shapes: a group is what makes it likely.
    """
    dense = config.dense if isinstance(config, TrialConfig) else config
    if conflict_of(dense):
        return None
    shared = _without_seed(dense)
    if not isinstance(config, TrialConfig):
        return shared
    lengths = _lengths(config)
    if lengths is None:
        return None
    setting = replace(config, dense=shared) if competes else None
    return (shared, *lengths, setting)


@lru_cache(maxsize=4096)
def _without_seed(config: DenseConfig) -> DenseConfig:
    return replace(config, seed=0)


def _lengths(config: TrialConfig) -> tuple[Hashable, ...] | None:
    """Return when a trial trains and for how long; None where its trainings cannot be stacked."""
    is_plain = (config.distill, config.prepare) == ("none", "none") and not trains_cut(config.recover)
    traits = recoveries.get(config.recover).traits
    if config.when == "during":
        return (config.when, config.recover) if is_plain and not _sums_over_steps(config) else None
    if not is_plain or "length" not in traits or traits.get("regrows"):
        return None
    rounds = rounds_of(schedules.get(config.prune.schedule))
    return config.when, rounds, epochs_per_round(config.recover, config.dense.train)


def _sums_over_steps(config: TrialConfig) -> bool:
    return is_accumulated(criteria.get(config.prune.criterion))


def conflict_of(config: DenseConfig) -> str:
    """Return why trainings of a network run one by one; empty where they may run as one."""
    if config.numerics.compile:
        return "compiled networks train one by one"
    if config.numerics.devices > 1:
        return "several devices share each batch"
    images = min(config.batch_size, config.numerics.micro_batch)
    return _conflict(config.model, *shape_of(config.dataset), images, config.numerics.device)


@lru_cache(maxsize=256)
def _conflict(model: str, input_shape: Shape, num_classes: int, images: int, device: str) -> str:
    return stack_conflict(meta_model(model, input_shape, num_classes), images, device)


@dataclass(frozen=True)
class StackSummary:
    """How many trainings of a model may run in stacks, or why they run one by one."""

    model: str
    count: int
    total: int
    conflict: str


def summarize_stacks(
    configs: Iterable[DenseConfig | TrialConfig], *, competes: bool = False
) -> list[StackSummary]:
    """Return for each model how many of its tasks may run in stacks: those that another one goes with."""
    by_model: dict[str, list[DenseConfig | TrialConfig]] = {}
    for config in configs:
        dense = config.dense if isinstance(config, TrialConfig) else config
        by_model.setdefault(dense.model, []).append(config)
    return [_summarize(model, tasks, competes=competes) for model, tasks in by_model.items()]


def _summarize(model: str, configs: Sequence[DenseConfig | TrialConfig], *, competes: bool) -> StackSummary:
    groups = [stack_group(config, competes=competes) for config in configs]
    sizes = Counter(group for group in groups if group is not None)
    dense = dict.fromkeys(config.dense if isinstance(config, TrialConfig) else config for config in configs)
    conflict = next((text for config in dense if (text := conflict_of(config))), "")
    return StackSummary(model, sum(size for size in sizes.values() if size > 1), len(configs), conflict)
