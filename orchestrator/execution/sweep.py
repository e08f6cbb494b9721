"""Run a sweep, or preview it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from orchestrator.config import Device, EarlyStopping
from orchestrator.errors import SpaceError, UsageError
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.progress import waiting
from orchestrator.execution.resources import local_resources, share_of_memory, trials_per_gpu
from orchestrator.execution.summary import Preview
from orchestrator.planning.changes import Changes, find_changes
from orchestrator.planning.constraints import shape_of
from orchestrator.planning.estimate import estimate
from orchestrator.planning.fingerprints import check_data, missing_data
from orchestrator.planning.micro_batches import find_norm_images
from orchestrator.planning.plan import (
    Plan,
    early_stopping_conflict,
    make_plan,
    needed_data,
    with_expected_points,
)
from orchestrator.planning.resume import find_previous_sweep, stopped_keys, with_recorded_points
from orchestrator.planning.stacks import summarize_stacks
from orchestrator.planning.step_times import NO_CALIBRATION, Calibration
from orchestrator.space.space import Space
from orchestrator.space.stopping_rules import pruners
from orchestrator.space.values import canonical_method
from orchestrator.storage.uri import store_exists
from orchestrator.system.machine import gpus
from orchestrator.system.signals import SignalHandler
from orchestrator.trial.structure import unpruned_of

if TYPE_CHECKING:
    from orchestrator.execution.summary import Summary


@contextmanager
def start_ray_early(plan: Plan, options: SweepOptions, signals: SignalHandler, *, uri: str) -> Iterator[None]:
    """Start Ray while MLflow makes a new store: without a store everything is to be run.

    With a store, or a cluster to join, this does nothing. DataError comes before anything is written.
    """
    if store_exists(uri) or options.address is not None:
        yield
        return
    check_data(needed_data(plan, plan.dense))
    from orchestrator.execution.ray_start import local_ray

    trials = len(plan.trials) or plan.space.points
    with ThreadPoolExecutor(1) as thread, ExitStack() as ray:
        with waiting("starting Ray, making the store"):
            # The store in the thread, and Ray here: Python installs signal handlers in the main thread alone.
            store = thread.submit(_make_store, uri)
            resources = options.resources()
            ray.enter_context(local_ray(resources, signals, ready=resources.initial_workers(trials)))
            store.result()
        yield


def _make_store(uri: str) -> None:
    from orchestrator import tracking
    from orchestrator.execution import tune_experiment  # noqa: F401  all that a sweep imports later on

    tracking.initialise(uri)


def preview(
    space: Space, options: SweepOptions, *, uri: str, calibration: Calibration = NO_CALIBRATION
) -> Preview:
    """Return the plan, what the store has of it, and an estimate for the rest. Writes nothing.

    On a machine without a GPU a calibration stands for one.
    """
    memory, is_calibrated = options.gpu_bytes(), options.device == "cuda" and not gpus()
    if is_calibrated and calibration.gpu_bytes is not None:
        memory = share_of_memory(calibration.gpu_bytes, options.gpus_per_trial)
    plan = plan_of(space, options, gpu_bytes=memory)
    stop = stop_rule(space)
    check_can_stop(plan, stop)
    tracker = None
    if store_exists(uri):
        from orchestrator.tracking import has_store, open_store

        tracker = open_store(uri, space.name) if has_store(uri) else None
    if tracker is not None:
        plan = with_recorded_points(plan, tracker, find_previous_sweep(tracker, plan, stop))
    proposed, plan, done, changed = len(plan.points), with_expected_points(plan), set[str](), Changes()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.find_all_finished()) | stopped_keys(tracker, keys, stop)
        changed = find_changes(plan, tracker, done=done)
    concurrency = _concurrency(options.device, options.gpus_per_trial)
    cost = estimate(plan, finished=done, concurrency=concurrency, calibration=calibration)
    to_run = [trial.config for trial in plan.trials if trial.key not in done]
    dense_keys = {config.dense.key() for config in to_run} - done
    dense = [config for config in plan.dense if config.key() in dense_keys]
    stacks = summarize_stacks([*dense, *to_run], competes=stop is not None)
    return Preview(
        plan,
        cost,
        proposed,
        changed,
        _unpruned(plan),
        missing_data({config.dense.dataset for config in to_run}),
        find_norm_images(plan.dense),
        stacks if options.stack > 1 else [],
        options.stack,
    )


def _concurrency(device: Device, gpus_per_trial: float) -> int:
    """Return how many trials run at once on this machine, or on one GPU where it has none."""
    if device == "cuda" and not gpus():
        return trials_per_gpu(gpus_per_trial)
    return local_resources(device, gpus_per_trial=gpus_per_trial).concurrent


def _unpruned(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return model -> its layers with weights that are never pruned, for the models that have such."""
    networks = dict.fromkeys(
        (trial.config.dense.model, trial.config.dense.dataset, trial.config.prune.granularity)
        for trial in plan.trials
    )
    names: dict[str, dict[str, None]] = {}
    for model, dataset, granularity in networks:
        layers = unpruned_of((model, *shape_of(dataset)), granularity)
        names.setdefault(model, {}).update(dict.fromkeys(layers))
    return {model: tuple(all_layers) for model, all_layers in names.items() if all_layers}


def plan_of(space: Space, options: SweepOptions, *, gpu_bytes: int | None) -> Plan:
    """Return the plan of a space for the options of a sweep, and GPUs of which a trial has `gpu_bytes`."""
    return make_plan(
        space,
        device=options.device,
        precision=options.precision,
        gpu_bytes=gpu_bytes,
        fast=options.fast,
        compile=options.compile,
        devices=options.devices,
        sync_batch_norm=options.sync_batch_norm,
    )


def run_sweep(
    space: Space, options: SweepOptions, *, uri: str, signals: SignalHandler | None = None
) -> Summary:
    """Run what the store does not hold yet, and return what became of all trials.

    `signals` handles those of the command that runs the sweep; without one the sweep handles its own.
    DataError and StoreError come before any training.
    """
    plan = plan_of(space, options, gpu_bytes=options.gpu_bytes())
    return run_plan(plan, options, uri=uri, signals=signals)


def run_plan(plan: Plan, options: SweepOptions, *, uri: str, signals: SignalHandler | None = None) -> Summary:
    """Run what the store does not hold of a plan; see `run_sweep`."""
    _check_something_to_run(plan)
    stop = stop_rule(plan.space, options.stop)
    check_can_stop(plan, stop)
    signals = signals or SignalHandler()
    with start_ray_early(plan, options, signals, uri=uri):
        from orchestrator.execution.plan_runner import execute_plan  # and MLflow with it

        return execute_plan(plan, options, stop, signals, uri=uri)


def _check_something_to_run(plan: Plan) -> None:
    """Raise SpaceError for a space without a trial, or a search without a first point."""
    plan = with_expected_points(plan, points=1)
    if not plan.trials:
        reason = plan.excluded[0].reason
        raise SpaceError(f"{plan.space.name}: no trial is left: {reason}; see `orchestrate plan`")


def check_can_stop(plan: Plan, stop: EarlyStopping | None) -> None:
    """Raise SpaceError if the rule could stop no trial of the plan."""
    reason = None if stop is None else early_stopping_conflict(plan, stop)
    if reason is not None:
        raise SpaceError(f"{plan.space.name}: {reason}")


def stop_rule(space: Space, stop: str | None = None) -> EarlyStopping | None:
    """Return how a sweep stops trials: by `stop` as --stop gives it, else by its space; `none` is never.

    UsageError, with the nearest names, for an unknown pruner.
    """
    if stop is None:
        return None if space.stop is None else EarlyStopping(space.stop, space.stop_within)
    try:
        return (
            None
            if stop.strip() == "none"
            else EarlyStopping(canonical_method(stop, pruners), space.stop_within)
        )
    except ValueError as error:
        raise UsageError(f"--stop {stop[:80]}: {error}") from error
