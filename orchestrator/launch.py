"""From a space to its results: plan, reuse what is in the store, run the rest, record the comparison."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator import tracking
from orchestrator.address import exists
from orchestrator.claim import beating, claim
from orchestrator.compare import markdown, tables
from orchestrator.config import DenseConfig, Device, Precision
from orchestrator.data import path as data_path
from orchestrator.dataset_files import check
from orchestrator.environment import environment
from orchestrator.errors import DeviceError, SpaceError, UsageError
from orchestrator.figures import accuracy_against_sparsity
from orchestrator.outcome import Ended, Past
from orchestrator.plan import make_plan
from orchestrator.point import Point, Settings
from orchestrator.records import PLAN, frame
from orchestrator.remainder import _stopped, missing_points, past_trials, plan_text
from orchestrator.space import Space
from orchestrator.stops import Stop, stops
from orchestrator.summary import PICTURE, TABLES, Preview, Summary
from orchestrator.tracking import Tracker
from orchestrator.values import method
from pruning.registry import parse


@dataclass(frozen=True)
class Options:
    """How to run a sweep; none of it changes a result on one kind of device."""

    device: Device = "cpu"
    precision: Precision = "fp32"
    gpus_per_trial: float = 1.0
    max_concurrent: int | None = None
    address: str | None = None
    retry_failed: bool = False
    stop: str | None = None  # as --stop says it; None leaves it to the space


def resolve_device(wanted: str) -> Device:
    """`auto` is cuda where there is one. DeviceError for cuda where there is none."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise DeviceError(
            "--device cuda: torch sees no CUDA device; use --device cpu, or install a CUDA build"
        )
    return "cpu"


def stop_rule(space: Space, wanted: str | None = None) -> Stop | None:
    """How a sweep stops trials: as `wanted` says, else as its space does; `none` is not at all.

    UsageError, with the nearest names, for what is no way of stopping.
    """
    if wanted is None:
        return None if space.stop is None else Stop(space.stop, space.stop_within)
    try:
        return None if wanted.strip() == "none" else Stop(method(wanted, stops), space.stop_within)
    except ValueError as error:
        raise UsageError(f"--stop {wanted[:80]}: {error}") from error


def preview(space: Space, *, device: Device, precision: Precision, uri: str) -> Preview:
    """The plan, what the store has of it, and an estimate for the rest. Writes nothing."""
    from orchestrator.estimate import estimate

    plan = make_plan(space, device=device, precision=precision)
    done: set[str] = set()
    if exists(uri):
        tracker = Tracker(uri, space.name)
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.finished()) | _stopped(tracker, keys, stop_rule(space))
    return Preview(plan, estimate(plan, finished=done, concurrency=_concurrency(device)))


def launch(space: Space, options: Options, *, uri: str) -> Summary:
    """Run what the store does not hold yet. DataError and StoreError come before any training."""
    plan = make_plan(space, device=options.device, precision=options.precision)
    if not plan.trials:
        raise SpaceError(f"{space.name}: no trial is left: {plan.excluded[0].reason}; see `orchestrate plan`")
    stop = stop_rule(space, options.stop)
    if not exists(uri):  # nothing is written where the data are missing
        _check_data(plan.dense)
    tracking.initialise(uri)
    tracker = Tracker(uri, space.name)
    points, reused = missing_points(plan, tracker, retry_failed=options.retry_failed, stop=stop)
    _check_data([point.dense for point in points])
    text = plan_text(plan, stop=stop)
    digest = hashlib.sha256(text.encode()).hexdigest()
    before = next(iter(tracker.search(f"tags.kind = 'sweep' and tags.plan_sha256 = '{digest}'")), None)
    if before is not None and not points and before.status == "FINISHED":
        return Summary(plan, before, frame(tracker, before), Ended(()), reused)
    with claim(tracker, digest, name=space.name) as run, beating(tracker, run):
        points, reused = missing_points(plan, tracker, retry_failed=options.retry_failed, stop=stop)
        facts = json.dumps(environment(), indent=1, sort_keys=True)
        tracker.upload(run.run_id, {PLAN: text, "space.yaml": space.text, "environment.json": facts})
        ended = Ended(())
        if points:
            past = () if stop is None else tuple(past_trials(plan, tracker, stop))
            ended = _run(points, tracker, run.run_id, options, reused=reused, stop=stop, past=past)
        sweep = tracker.row(run.run_id)
        results = frame(tracker, sweep)
        run.status = "KILLED" if ended.signal else "FINISHED"
        if ended.signal:
            tracker.close_children(run.run_id, "interrupted")
        if (results["status"] == "finished").any():
            table = markdown(tables(results))
            picture = accuracy_against_sparsity(results, title=space.name)
            tracker.upload(run.run_id, {PICTURE: picture, TABLES: table})
            tracker.set_tag(run.run_id, tracking.NOTE, note(run.run_id, space.about, table))
    return Summary(plan, sweep, results, ended, reused)


def note(run_id: str, about: str, table: str) -> str:
    """The description of a sweep's page: what it is, its picture, and as much of the tables as fits."""
    picture = f"![accuracy against sparsity](/get-artifact?path={PICTURE}&run_uuid={run_id})"
    head = f"{about}\n\n{picture}\n\n"
    if len(head) + len(table) <= tracking.NOTE_LENGTH:
        return head + table
    rest = f"\n\nThe rest is in the artifact {TABLES}."
    whole_lines = table[: tracking.NOTE_LENGTH - len(head) - len(rest)].rpartition("\n")[0]
    return head + whole_lines + rest


def _check_data(trainings: Iterable[DenseConfig]) -> None:
    for name in sorted({parse(training.dataset)[0] for training in trainings}):
        check(name)


def _run(
    points: list[Point],
    tracker: Tracker,
    sweep_run: str,
    options: Options,
    *,
    reused: int,
    stop: Stop | None,
    past: Sequence[Past],
) -> Ended:
    import models
    from orchestrator.sweep import Resources, run_points

    cores = os.cpu_count() or 1
    gpus = _gpus() if options.device == "cuda" else 0
    fit = int(gpus / options.gpus_per_trial) if gpus else cores
    resources = Resources(
        cpus=max(cores, fit),
        gpus=gpus,
        gpus_per_trial=options.gpus_per_trial,
        concurrent=min(options.max_concurrent or fit, len(points)),
        address=options.address,
    )
    place = str(data_path())
    settings = Settings(tracker.uri, tracker.experiment, sweep_run, place, models.__file__, stop)
    return run_points(points, settings, resources, reused=reused, past=past)


def _concurrency(device: Device) -> int:
    return (_gpus() if device == "cuda" else os.cpu_count()) or 1


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
