"""Plan a space: every trial once, shared trainings, exclusions with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.config import DenseConfig, Device, EarlyStopping, Numerics, Precision, TrialConfig
from orchestrator.errors import SpaceError
from orchestrator.keys import ADDED_LATER
from orchestrator.planning.amounts import check_patterns
from orchestrator.planning.constraints import model_conflict
from orchestrator.planning.equality import plain_key
from orchestrator.planning.expansion import Exclusion, Params, PlannedTrial, SampledPoint, expand
from orchestrator.planning.fingerprints import clear_caches
from orchestrator.space.space import Space, grid_lists
from orchestrator.space.stopping_rules import pruners, trials_needed
from orchestrator.space.values import listed_values
from orchestrator.trial.params import params
from orchestrator.trial.run import measured_rounds

__all__ = [
    "Exclusion",
    "Plan",
    "PlannedTrial",
    "SearchPoint",
    "extended",
    "make_plan",
    "with_expected_points",
]
DRAWN_AGAIN = "drawn again"


@dataclass(frozen=True)
class SearchPoint:
    """A point of a search: its values by axis or METHOD.OPTION, and the keys of its trials."""

    params: Params
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The trials of a space.

    `dense` are the trainings that they share, each once, in the order in which they are needed. `points` are
    those of a search, in order, each with a trial for every seed; a grid has none, and the plan of tpe grows
    while results come in. `exhausted`: the space has no other point. `gpu_bytes` is what a trial has of a
    GPU's memory, None where that is not known: it decides the micro-batches.
    """

    space: Space
    trials: tuple[PlannedTrial, ...]
    dense: tuple[DenseConfig, ...]
    excluded: tuple[Exclusion, ...]
    points: tuple[SearchPoint, ...] = ()
    numerics: Numerics = Numerics()  # noqa: RUF009  frozen
    exhausted: bool = False
    gpu_bytes: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the search needs no further point."""
        return self.exhausted or len(self.points) >= self.space.search.points


def make_plan(
    space: Space,
    *,
    device: Device = "cpu",
    precision: Precision = "fp32",
    threads: int = 1,
    gpu_bytes: int | None = None,
    fast: bool = False,
    compile: bool = False,
    devices: int = 1,
    sync_batch_norm: bool = False,
) -> Plan:
    """Return the plan of a space; of data sets with options of their own, names and headers are read.

    The plan of `random` has all its points; that of `tpe` is empty, and grows while results come in. `fast`
    is for a GPU, and nothing on a CPU; `devices` share each batch of a training, and without several
    `sync_batch_norm` is nothing. Raises DataError where data sets are missing or bad, and SpaceError
    where a model fits none of the data sets, or amounts by layer none of the models.
    """
    clear_caches()
    _check_models(space)
    fast = fast and device != "cpu"
    numerics = Numerics(
        device,
        precision,
        threads,
        tf32=fast,
        fast=fast,
        compile=compile,
        devices=devices,
        sync_batch_norm=sync_batch_norm and devices > 1,
    )
    if space.search.method == "grid":
        expansion = expand(space, grid_lists(space), numerics, gpu_bytes=gpu_bytes)
        trials, dense, excluded = expansion.trials, expansion.dense, expansion.excluded
        return Plan(space, trials, dense, excluded, numerics=numerics, gpu_bytes=gpu_bytes)
    plan = Plan(space, (), (), (), numerics=numerics, gpu_bytes=gpu_bytes)
    return plan if space.search.method == "tpe" else _with_random_points(plan, space.search.points)


def with_expected_points(plan: Plan, *, points: int | None = None) -> Plan:
    """Return the plan of a search as it may become: its future points are random ones.

    `points` is their total number; by default that of the search.
    """
    if plan.space.search.method != "tpe" or plan.exhausted:
        return plan
    search = plan.space.search.model_copy(update={"method": "random"})
    random_plan = replace(plan, space=plan.space.model_copy(update={"search": search}))
    return replace(_with_random_points(random_plan, points or search.points), space=plan.space)


def extended(plan: Plan, samples: Sequence[SampledPoint]) -> Plan:
    """Return the plan with sampled points; exhausted where one of them has no expansion."""
    expansions = [(sample, sample.expansion) for sample in samples if sample.expansion is not None]
    points = [SearchPoint(s.params, tuple(trial.key for trial in e.trials)) for s, e in expansions]
    longer = replace(
        plan,
        trials=(*plan.trials, *(trial for _, expansion in expansions for trial in expansion.trials)),
        dense=tuple(dict.fromkeys((*plan.dense, *(dense for _, e in expansions for dense in e.dense)))),
        excluded=_with_conflicts(plan.excluded, samples),
        points=(*plan.points, *points),
    )
    if len(expansions) == len(samples):
        return longer
    missing = Exclusion("no other point was found", longer.space.search.points - len(longer.points))
    return replace(longer, excluded=(*longer.excluded, missing), exhausted=True)


def _with_conflicts(
    excluded: tuple[Exclusion, ...], samples: Sequence[SampledPoint]
) -> tuple[Exclusion, ...]:
    """Count all draws that cannot be run in one entry: with continuous axes hardly two reasons are equal."""
    conflicts = [reason for sample in samples for reason in sample.conflicts]
    if not conflicts:
        return excluded
    entry = next((item for item in excluded if item.reason.startswith(DRAWN_AGAIN)), None)
    if entry is None:
        return (*excluded, Exclusion(f"{DRAWN_AGAIN}, as for {conflicts[0]}", len(conflicts)))
    longer = Exclusion(entry.reason, entry.count + len(conflicts))
    return tuple(longer if item is entry else item for item in excluded)


def _with_random_points(plan: Plan, points: int) -> Plan:
    """Return the plan with that many points, or with all that the space has."""
    from orchestrator.planning.sampling import next_point  # only a search imports optuna

    planned_keys = {plain_key(trial.config) for trial in plan.trials}
    samples: list[SampledPoint] = []
    while len(plan.points) + len(samples) < points and (not samples or samples[-1].expansion is not None):
        number = len(plan.points) + len(samples)
        sample = next_point(
            plan.space,
            plan.numerics,
            number=number,
            observed=(),
            planned_keys=planned_keys,
            gpu_bytes=plan.gpu_bytes,
        )
        trials = sample.expansion.trials if sample.expansion else ()
        planned_keys.update(plain_key(trial.config) for trial in trials)
        samples.append(sample)
    return extended(plan, samples)


def _check_models(space: Space) -> None:
    for model in space.axes.model:
        conflicts = [model_conflict(model, dataset) for dataset in space.axes.dataset]
        if all(conflicts):
            raise SpaceError(f"{space.name}: {conflicts[0]}")
    check_patterns(listed_values(space.axes.amount), space.axes.model, space.axes.dataset)


def group_of(config: TrialConfig, group_by: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values that compared trials share: those of the axes `group_by`, and the seed."""
    values = {**ADDED_LATER, **params(config)}
    values["allocate"] = values.get("scope")  # which is the same
    return (*(str(values[axis]) for axis in group_by), str(config.dense.seed))


def early_stopping_conflict(plan: Plan, stop: EarlyStopping) -> str | None:
    """Return why the rule can stop no trial of the plan, and what to do; None where it can."""
    configs = [trial.config for trial in with_expected_points(plan).trials]
    several_rounds = [config for config in configs if measured_rounds(config) > 1]
    if configs and not several_rounds:
        return (
            f"{pruners.get(stop.text)} would stop nothing: trials are stopped between rounds, and each here "
            "has one; give a schedule of several, such as iterative(rounds=5), or --stop none"
        )
    largest = max(Counter(group_of(config, stop.group_by) for config in several_rounds).values(), default=0)
    needed = trials_needed(stop.text)
    if not several_rounds or largest >= needed:
        return None
    shared = ", ".join(axis for axis in stop.group_by if not axis.startswith("train."))
    fewer = f"n_startup_trials={largest - 1}, " if largest > 1 else ""
    return (
        f"{pruners.get(stop.text)} would stop nothing: settings compete at one seed"
        f"{f' and equal {shared}' if shared else ''}, {needed} are needed, and there are {largest} at most; "
        f"give {fewer}more settings, fewer axes in stop_within, or --stop none"
    )


def needed_data(plan: Plan, trainings: Iterable[DenseConfig]) -> list[str]:
    """Return the data sets that are needed, as texts; a search may need every one of its space."""
    is_open_ended = plan.space.search.method == "tpe"
    texts = plan.space.axes.dataset if is_open_ended else [training.dataset for training in trainings]
    return sorted(set(texts))
