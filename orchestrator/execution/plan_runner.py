"""Run what the store does not hold of a plan, and record the comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.analysis.results import results_frame
from orchestrator.config import EarlyStopping
from orchestrator.errors import ClusterError, DiskFullError, StoreError, StoreUnavailableError
from orchestrator.execution.fast_path import REQUEST_SHA256, request_of
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.publish import preload_plotting, publish_results, reproduce_command
from orchestrator.execution.summary import Summary
from orchestrator.execution.sweep import check_data, needed_data
from orchestrator.planning.changes import find_changes
from orchestrator.planning.estimate import check_disk_space, disk_space_message
from orchestrator.planning.plan import Plan, with_expected_points
from orchestrator.planning.plan_file import PLAN
from orchestrator.planning.resume import (
    digest,
    find_previous_sweep,
    plan_text,
    previous_trials,
    remaining_tasks,
    with_recorded_points,
)
from orchestrator.space.space import Space
from orchestrator.storage.runs import COMMAND
from orchestrator.storage.uri import chosen_state_dir, outbox_folder, store_folder
from orchestrator.system.console import print_line
from orchestrator.system.provenance import environment
from orchestrator.system.signals import closing_at_end
from orchestrator.tracking import ActiveRun, RunRecord, Tracker, breaker_for
from orchestrator.tracking.delivery import (
    check_all_delivered,
    deliver_in_background,
    deliver_pending,
    finish_with_retries,
)
from orchestrator.tracking.lease import acquire_lease, heartbeat
from orchestrator.tracking.source_models import upload_source_model
from orchestrator.trial.task import PreviousTrial, SweepOutcome, Task, WorkerSettings

if TYPE_CHECKING:
    from orchestrator.execution.searcher import TaskSource
    from orchestrator.planning.search_source import SearchSource
    from orchestrator.tracking import Tracker


def raise_if_disk_full(tracker: Tracker, sweep_run: str, ended: SweepOutcome, points: Sequence[Task]) -> None:
    """DiskFullError if that is what ended a sweep of these points; what its workers left open is closed."""
    if not ended.disk_full or ended.signal:
        return
    with suppress(StoreError), tracker.translating_errors():
        tracker.close_children(sweep_run, "no room was left")
    done = {outcome.task.key for outcome in ended.outcomes}
    folder = store_folder(tracker.uri) or outbox_folder(tracker.uri)
    left = [point for point in points if point.key not in done]
    raise DiskFullError(f"{ended.disk_full.partition(': ')[2]}; {disk_space_message(left, folder)}")


@contextmanager
def cluster(options: SweepOptions, tracker: Tracker, datasets: Sequence[str]) -> Iterator[None]:
    """The cluster of --address, joined and fit for the data sets; nothing where a sweep has its own Ray.

    ClusterError, or StoreError where its nodes do not reach the store.
    """
    if options.address is None:
        yield
        return
    from orchestrator.execution.ray_cluster import NodeRequirements, cluster_for_sweep

    needs = NodeRequirements(
        options.code(), tracker.uri, tracker.artifact_root, tuple(datasets), options.data_dir()
    )
    with cluster_for_sweep(options.resources(), needs):
        yield


def run_tasks(
    points: Sequence[Task],
    tracker: Tracker,
    sweep_run: str,
    options: SweepOptions,
    *,
    reused: int,
    reused_dense: int,
    stop: EarlyStopping | None,
    past: Sequence[PreviousTrial],
    source: TaskSource | None = None,
    planned: int = 0,
) -> SweepOutcome:
    """Run the points, each in a run below `sweep_run`, and those that the `source` gives later on."""
    from orchestrator.execution.tune_experiment import run_experiment

    settings = WorkerSettings(
        uri=tracker.uri,
        experiment=tracker.experiment,
        sweep_run=sweep_run,
        data_dir=options.data_dir(),
        code=options.code(),
        stop=stop,
        state_dir=chosen_state_dir(),
    )
    with deliver_in_background(tracker.uri), _closing(tracker, sweep_run):
        return run_experiment(
            points,
            settings,
            options.resources(),
            reused=reused,
            reused_dense=reused_dense,
            past=past,
            source=source,
            planned=planned,
            lost=partial(record_lost_task, tracker, sweep_run),
        )


@contextmanager
def _closing(tracker: Tracker, sweep_run: str) -> Iterator[None]:
    """Where Ray itself is lost, its workers are, too: the runs that they leave are closed."""

    def close(reason: str) -> None:
        breaker_for(tracker.uri).reset()  # it may be back since a worker found it away
        with suppress(StoreUnavailableError), tracker.translating_errors():
            tracker.close_children(sweep_run, reason)

    def close_sweep(reason: str) -> None:
        close(reason)
        with suppress(StoreUnavailableError), tracker.translating_errors():
            tracker.close(sweep_run, reason, status="FAILED")

    with closing_at_end(close_sweep):
        try:
            yield
        except ClusterError as error:
            close(str(error))
            raise


def record_lost_task(tracker: Tracker, sweep_run: str, point: Task, reason: str) -> None:
    """Close the run that a dead worker has left as FAILED; a point whose worker had no run yet gets one."""
    with suppress(StoreUnavailableError), tracker.translating_errors():
        left = [row.run_id for row in tracker.runs_of_task(point.key) if _open_below(row, sweep_run)]
        if not left:
            kind, tags = "trial" if point.parent else "dense", {**(point.tags or {}), "point": point.key}
            left = [tracker.start(kind, point.name, parent=sweep_run, tags=tags).run_id]
        for run_id in left:
            tracker.close(run_id, reason, status="FAILED")


def _open_below(row: RunRecord, sweep_run: str) -> bool:
    return row.status == "RUNNING" and row.tags.get("mlflow.parentRunId") == sweep_run


def execute_plan(plan: Plan, options: SweepOptions, stop: EarlyStopping | None, *, uri: str) -> Summary:
    """Run what the store does not hold of a plan yet, and record what came of it."""
    tracking.initialise(uri)
    deliver_pending(uri)
    tracker = Tracker(uri, plan.space.name)
    wanted = SweepSession(tracker, options, stop)
    with tracker.translating_errors():
        before = find_previous_sweep(tracker, plan, stop)
        left = wanted.remaining(plan, before)
        wanted.say_changes(left)
    check_disk_space(left.to_come, store_folder(uri))
    datasets = needed_data(left.plan, [point.dense for point in left.points])
    if options.address is None:  # the nodes of a cluster are asked for theirs
        check_data(datasets)
    if before is not None and not left.points and left.plan.complete and before.status == "FINISHED":
        wanted.remember(plan.space, before)
        return Summary.of_plan(
            left.plan, before, results_frame(tracker, before), SweepOutcome(()), left.reused
        )
    with cluster(options, tracker, datasets):
        check_data(datasets)  # the digests in the keys are of the data here
        with acquire_lease(tracker, digest(plan, stop), name=plan.space.name) as run, heartbeat(tracker, run):
            return _run_under_lease(plan, wanted, run)


@dataclass(frozen=True)
class RemainingWork:
    """A plan as far as it is known, its points that are to be run, and all that may still come."""

    plan: Plan
    points: Sequence[Task]
    reused: int
    to_come: Sequence[Task]


@dataclass(frozen=True)
class SweepSession:
    """How a plan's points are to be run, and where they are recorded."""

    tracker: Tracker
    options: SweepOptions
    stop: EarlyStopping | None

    def remaining(self, plan: Plan, sweep: RunRecord | None) -> RemainingWork:
        """What is left of a plan of which `sweep` may have recorded more."""
        plan, retry = with_recorded_points(plan, self.tracker, sweep), self.options.retry_failed
        points, reused = remaining_tasks(plan, self.tracker, retry_failed=retry, stop=self.stop)
        to_come = points
        if plan.space.search.method == "tpe":  # of which more will be asked for
            to_come, _ = remaining_tasks(
                with_expected_points(plan), self.tracker, retry_failed=False, stop=self.stop
            )
        return RemainingWork(plan, points, reused, to_come)

    def say_changes(self, left: RemainingWork) -> None:
        """Why trials whose configuration is in the store are run all the same."""
        open_keys = {point.key for point in left.points}
        done = {trial.key for trial in left.plan.trials} - open_keys
        if line := find_changes(left.plan, self.tracker, done=done).line():
            print_line(f"{left.plan.space.name}: {line}", error=True)

    def source(self, left: RemainingWork, sweep: RunRecord) -> SearchSource | None:
        """What asks for the points of a search as results come in."""
        if left.plan.space.search.method != "tpe":
            return None
        from orchestrator.planning.search_source import SearchSource  # optuna is for searches alone

        retry = self.options.retry_failed
        source = SearchSource(left.plan, self.tracker, sweep, retry_failed=retry, stop=self.stop)
        source.load_finished(left.points)
        return source

    def remember(self, space: Space, sweep: RunRecord) -> None:
        """Whose plan it is, so that the same request is answered at once when all of it is done."""
        request = request_of(space, self.options)
        asked = None if request is None else request.sha256()
        if asked is not None and sweep.tags.get(REQUEST_SHA256) != asked:
            self.tracker.try_tag(sweep.run_id, REQUEST_SHA256, asked)

    def write_down(self, plan: Plan, sweep: RunRecord) -> None:
        """What is going to be run, where and by which command."""
        self.tracker.set_tag(sweep.run_id, COMMAND, reproduce_command(plan.space, self.options))
        facts = json.dumps(environment(), indent=1, sort_keys=True)
        self.tracker.upload(sweep.run_id, {"space.yaml": plan.space.text, "environment.json": facts})
        self.tracker.rewrite(sweep, PLAN, plan_text(plan, stop=self.stop))
        self.remember(plan.space, sweep)
        if plan.space.source_model is not None:
            upload_source_model(self.tracker, sweep, plan.space.source_model)

    def run(self, left: RemainingWork, sweep: RunRecord, source: SearchSource | None) -> SweepOutcome:
        """Run what is left, if anything is, and what the source asks for."""
        if not left.points and (source is None or source.exhausted):
            return SweepOutcome(())
        preload_plotting()
        return run_tasks(
            left.points,
            self.tracker,
            sweep.run_id,
            self.options,
            reused=left.reused,
            reused_dense=len(left.plan.dense) - sum(point.parent is None for point in left.points),
            stop=self.stop,
            past=() if self.stop is None else tuple(previous_trials(left.plan, self.tracker, self.stop)),
            source=source,
            planned=0 if source is None else left.plan.space.points,
        )


def _run_under_lease(plan: Plan, wanted: SweepSession, run: ActiveRun) -> Summary:
    """Run what is left, as the one owner of the sweep's run, and record what came of it."""
    tracker = wanted.tracker
    with tracker.translating_errors():
        sweep = tracker.row(run.run_id)
        left = wanted.remaining(plan, sweep)
        wanted.write_down(left.plan, sweep)
        sweep = tracker.row(run.run_id)  # with what it says now
        source = wanted.source(left, sweep)
    ended = wanted.run(left, sweep, source)
    run.status = "KILLED" if ended.signal else "FINISHED"
    raise_if_disk_full(tracker, run.run_id, ended, left.to_come)
    shown = partial(publish_results, tracker, sweep, plan.space, ended)
    results = finish_with_retries(tracker.uri, run.run_id, ended, shown)
    if wanted.options.address is not None:
        check_all_delivered(results, ended)
    if source is None:
        return Summary.of_plan(left.plan, sweep, results, ended, left.reused)
    return Summary.of_plan(source.plan, sweep, results, ended, left.reused + source.reused)
