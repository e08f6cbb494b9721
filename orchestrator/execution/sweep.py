"""Run a sweep, or preview it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from orchestrator.config import DenseConfig, Device, EarlyStopping, Precision
from orchestrator.data.files import check
from orchestrator.errors import SpaceError, UsageError
from orchestrator.execution.options import SweepOptions, local_resources
from orchestrator.execution.progress import waiting
from orchestrator.execution.summary import Preview
from orchestrator.planning.changes import Changes, find_changes
from orchestrator.planning.constraints import shape_of
from orchestrator.planning.estimate import estimate
from orchestrator.planning.fingerprints import missing_data
from orchestrator.planning.plan import Plan, early_stopping_conflict, make_plan, with_expected_points
from orchestrator.planning.resume import find_previous_sweep, stopped_keys, with_recorded_points
from orchestrator.space.pruners import pruners
from orchestrator.space.space import Space
from orchestrator.space.values import canonical_method
from orchestrator.storage.uri import exists
from orchestrator.trial.structure import unpruned_of
from pruning.registry import parse

if TYPE_CHECKING:
    from orchestrator.execution.options import SweepOptions
    from orchestrator.execution.summary import Summary


@contextmanager
def start_ray_early(plan: Plan, options: SweepOptions, *, uri: str) -> Iterator[None]:
    """Where there is no store yet all is to be run: Ray starts while MLflow is imported and makes one.

    Nothing where there is a store, or a cluster to join. DataError before anything is written.
    """
    if exists(uri) or options.address is not None:
        yield
        return
    check_data(needed_data(plan, plan.dense))
    from orchestrator.execution.ray_local import local_ray

    most = len(plan.trials) or plan.space.points
    with ThreadPoolExecutor(1) as beside, ExitStack() as ray:
        with waiting("starting Ray, making the store"):
            store = beside.submit(_make_store, uri)
            resources = options.resources()
            ray.enter_context(local_ray(resources, ready=resources.initial_workers(most)))
            store.result()
        yield


def _make_store(uri: str) -> None:
    from orchestrator import tracking
    from orchestrator.execution import tune_experiment  # noqa: F401  all that a sweep imports later on

    tracking.initialise(uri)


def needed_data(plan: Plan, trainings: Iterable[DenseConfig]) -> list[str]:
    """The names of the data sets that are needed; of a search that asks as it goes, all that it may."""
    searched = plan.space.search.method == "tpe"
    texts = plan.space.axes.dataset if searched else [training.dataset for training in trainings]
    return sorted({parse(text)[0] for text in texts})


def check_data(datasets: Iterable[str]) -> None:
    for name in datasets:
        check(name)


def preview(space: Space, *, device: Device, precision: Precision, uri: str) -> Preview:
    """The plan, what the store has of it, and an estimate for the rest. Writes nothing."""
    plan, stop = make_plan(space, device=device, precision=precision), stop_rule(space)
    check_can_stop(plan, stop)
    tracker = None
    if exists(uri):
        from orchestrator.tracking import (
            has_store,
            open_store,  # MLflow takes a second
        )

        tracker = open_store(uri, space.name) if has_store(uri) else None
    if tracker is not None:
        plan = with_recorded_points(plan, tracker, find_previous_sweep(tracker, plan, stop))
    asked, plan, done, changed = len(plan.points), with_expected_points(plan), set[str](), Changes()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.find_all_finished()) | stopped_keys(tracker, keys, stop)
        changed = find_changes(plan, tracker, done=done)
    cost = estimate(plan, finished=done, concurrency=local_resources(device).concurrent)
    to_run = {trial.config.dense.dataset for trial in plan.trials if trial.key not in done}
    return Preview(plan, cost, asked, changed, _unpruned(plan), missing_data(to_run))


def _unpruned(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Model -> what of it has weights and is not pruned, for the models that have such layers."""
    kinds = dict.fromkeys(
        (trial.config.dense.model, trial.config.dense.dataset, trial.config.prune.granularity)
        for trial in plan.trials
    )
    names: dict[str, dict[str, None]] = {}
    for model, dataset, granularity in kinds:
        found = unpruned_of((model, *shape_of(dataset)), granularity)
        names.setdefault(model, {}).update(dict.fromkeys(found))
    return {model: tuple(layers) for model, layers in names.items() if layers}


def run_sweep(space: Space, options: SweepOptions, *, uri: str) -> Summary:
    """Run what the store does not hold yet. DataError and StoreError come before any training."""
    plan = make_plan(space, device=options.device, precision=options.precision)
    _check_something_to_run(plan)
    stop = stop_rule(space, options.stop)
    check_can_stop(plan, stop)
    with start_ray_early(plan, options, uri=uri):
        from orchestrator.execution.plan_runner import execute_plan  # and MLflow with it

        return execute_plan(plan, options, stop, uri=uri)


def _check_something_to_run(plan: Plan) -> None:
    """SpaceError for a space without a trial; for a search that asks as it goes, without a first point."""
    plan = with_expected_points(plan, points=1)
    if not plan.trials:
        reason = plan.excluded[0].reason
        raise SpaceError(f"{plan.space.name}: no trial is left: {reason}; see `orchestrate plan`")


def check_can_stop(plan: Plan, stop: EarlyStopping | None) -> None:
    """SpaceError where the rule could stop no trial of the plan: what is asked for would not happen."""
    reason = None if stop is None else early_stopping_conflict(plan, stop)
    if reason is not None:
        raise SpaceError(f"{plan.space.name}: {reason}")


def stop_rule(space: Space, wanted: str | None = None) -> EarlyStopping | None:
    """How a sweep stops trials: as `wanted` says, else as its space does; `none` is not at all.

    UsageError, with the nearest names, for what is no way of stopping.
    """
    if wanted is None:
        return None if space.stop is None else EarlyStopping(space.stop, space.stop_within)
    try:
        return (
            None
            if wanted.strip() == "none"
            else EarlyStopping(canonical_method(wanted, pruners), space.stop_within)
        )
    except ValueError as error:
        raise UsageError(f"--stop {wanted[:80]}: {error}") from error
