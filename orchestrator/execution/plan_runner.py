"""Execute a plan: connect, lease, find the remaining work, write the plan, run, publish."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.analysis.results import results_frame
from orchestrator.config import EarlyStopping
from orchestrator.data import paths
from orchestrator.errors import ClusterError, DiskFullError, StoreError, StoreUnavailableError
from orchestrator.execution.cached_summary import REQUEST_SHA256, request_of
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.summary import Summary
from orchestrator.execution.sweep_artifacts import preload_plotting, publish_results, reproduce_command
from orchestrator.planning.changes import find_changes
from orchestrator.planning.estimate import check_disk_space, disk_space_message
from orchestrator.planning.fingerprints import check_data
from orchestrator.planning.plan import Plan, needed_data, with_expected_points
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
from orchestrator.storage.runs import COMMAND, LAST_ASKED, newest_first
from orchestrator.storage.uri import custom_state_dir, outbox_folder, store_folder
from orchestrator.system.console import print_line
from orchestrator.system.provenance import environment
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import RunRecord, Tracker, breaker_for
from orchestrator.tracking.delivery import (
    check_all_delivered,
    deliver_in_background,
    deliver_pending,
    finish_with_retries,
)
from orchestrator.tracking.lease import acquire_lease, heartbeat
from orchestrator.tracking.source_models import upload_source_model
from orchestrator.trial.task import SweepOutcome, Task, WorkerSettings
from pruning.user_code import stored_code

if TYPE_CHECKING:
    from orchestrator.planning.search_source import SearchSource


def execute_plan(
    plan: Plan, options: SweepOptions, stop: EarlyStopping | None, signals: SignalHandler, *, uri: str
) -> Summary:
    """Run what the store does not hold of a plan, and record the comparison of all its trials.

    DataError, ClusterError and StoreError come before any training.
    """
    tracking.initialise(uri)
    deliver_pending(uri)
    session = SweepSession(Tracker(uri, plan.space.name), options, stop, signals)
    tracker = session.tracker
    with tracker.translating_errors():
        earlier = find_previous_sweep(tracker, plan, stop)
        work = session.find_remaining_work(plan, earlier)
        session.print_changes(work)
    datasets = session.check_disk_and_data(work)
    # Nothing is left to run or to publish: neither Ray nor the lease is needed.
    if earlier is not None and not work.tasks and work.plan.complete and earlier.status == "FINISHED":
        session.record_request(plan.space, earlier)
        session.make_latest(earlier)
        return Summary.of_plan(
            work.plan, earlier, results_frame(tracker, earlier), SweepOutcome(()), work.reused
        )
    with session.connect(datasets):
        check_data(datasets)  # the digests in the keys are of the data on this machine
        with acquire_lease(tracker, digest(plan, stop), name=plan.space.name) as run, heartbeat(tracker, run):
            with tracker.translating_errors():
                sweep = tracker.get_run(run.run_id)
                # Again, under the lease: another process may have finished tasks since.
                work = session.find_remaining_work(plan, sweep)
                session.write_plan(work.plan, sweep)
                sweep = tracker.get_run(run.run_id)  # with the tags that were just set
                source = session.make_search_source(work, sweep)
            outcome = session.run(work, sweep, source)
            run.status = "KILLED" if outcome.signal else "FINISHED"
            return session.publish(work, sweep, source, outcome)


@dataclass(frozen=True)
class RemainingWork:
    """A plan as far as it is known, its tasks that are to run, and all tasks that may still come."""

    plan: Plan
    tasks: Sequence[Task]
    reused: int
    expected_tasks: Sequence[Task]


@dataclass(frozen=True)
class SweepSession:
    """The steps of one sweep: how its tasks are run, where they are recorded, and what stops them."""

    tracker: Tracker
    options: SweepOptions
    stop: EarlyStopping | None
    signals: SignalHandler

    def find_remaining_work(self, plan: Plan, sweep: RunRecord | None) -> RemainingWork:
        """Return what is to run of a plan, of which `sweep` may have recorded more points."""
        plan, retry = with_recorded_points(plan, self.tracker, sweep), self.options.retry_failed
        tasks, reused = remaining_tasks(plan, self.tracker, retry_failed=retry, stop=self.stop)
        expected = tasks
        if plan.space.search.method == "tpe":  # it will ask for more points
            expected, _ = remaining_tasks(
                with_expected_points(plan), self.tracker, retry_failed=False, stop=self.stop
            )
        return RemainingWork(plan, tasks, reused, expected)

    def print_changes(self, work: RemainingWork) -> None:
        """Print why trials whose configuration is in the store are run all the same."""
        open_keys = {task.key for task in work.tasks}
        done = {trial.key for trial in work.plan.trials} - open_keys
        if line := find_changes(work.plan, self.tracker, done=done).line():
            print_line(f"{work.plan.space.name}: {line}", error=True)

    def check_disk_and_data(self, work: RemainingWork) -> list[str]:
        """Return the data sets that the work needs. DataError or DiskFullError if they or the disk fail."""
        check_disk_space(work.expected_tasks, store_folder(self.tracker.uri))
        datasets = needed_data(work.plan, [task.dense for task in work.tasks])
        if self.options.address is None:  # the nodes of a cluster check theirs
            check_data(datasets)
        return datasets

    @contextmanager
    def connect(self, datasets: Sequence[str]) -> Iterator[None]:
        """Join the cluster of --address within the block; without one do nothing: `run` starts Ray here.

        ClusterError, or StoreError if its nodes do not reach the store, or DataError if they lack a data set.
        """
        options, tracker = self.options, self.tracker
        if options.address is None:
            yield
            return
        from orchestrator.execution.ray_cluster import NodeRequirements, cluster_for_sweep

        requirements = NodeRequirements(
            options.code(),
            tracker.uri,
            tracker.artifact_root,
            tuple(datasets),
            options.data_dir(),
            str(paths.base()),
            stored_code.dump(
                [code for name in datasets for code in stored_code.codes_in(name)], with_base=True
            ),
        )
        with cluster_for_sweep(options.resources(), requirements, self.signals):
            yield

    def record_request(self, space: Space, sweep: RunRecord) -> None:
        """Tag the sweep with its request, so that the same one is answered at once when all is done."""
        request = request_of(space, self.options)
        sha256 = None if request is None else request.sha256()
        if sha256 is not None and sweep.tags.get(REQUEST_SHA256) != sha256:
            self.tracker.try_set_tag(sweep.run_id, REQUEST_SHA256, sha256)

    def make_latest(self, sweep: RunRecord) -> None:
        """Tag the sweep as the latest of its name, which other commands mean by it, unless it is."""
        first, *_ = newest_first([*self.tracker.search("tags.kind = 'sweep'"), sweep])
        if first.run_id != sweep.run_id:
            self.tracker.try_set_tag(sweep.run_id, LAST_ASKED, str(int(1000 * time.time())))

    def write_plan(self, plan: Plan, sweep: RunRecord) -> None:
        """Record what is going to run, where and by which command."""
        self.tracker.set_tag(sweep.run_id, COMMAND, reproduce_command(plan.space, self.options))
        facts = json.dumps(environment(), indent=1, sort_keys=True)
        self.tracker.upload(
            sweep.run_id,
            {"space.yaml": plan.space.text, "environment.json": facts, **_own_sources(plan.space)},
        )
        self.tracker.replace_text(sweep, PLAN, plan_text(plan, stop=self.stop))
        self.record_request(plan.space, sweep)
        self.make_latest(sweep)
        if plan.space.source_model is not None:
            upload_source_model(self.tracker, sweep, plan.space.source_model)

    def make_search_source(self, work: RemainingWork, sweep: RunRecord) -> SearchSource | None:
        """Return what asks for the points of a search as results come in; None for other plans."""
        if work.plan.space.search.method != "tpe":
            return None
        from orchestrator.planning.search_source import SearchSource  # Optuna, which a grid does not need

        retry = self.options.retry_failed
        source = SearchSource(
            work.plan, self.tracker, sweep, self.signals, retry_failed=retry, stop=self.stop
        )
        source.load_finished(work.tasks)
        return source

    def run(self, work: RemainingWork, sweep: RunRecord, source: SearchSource | None) -> SweepOutcome:
        """Run the tasks, and those that the source gives later on, each in a run below the sweep's."""
        if not work.tasks and (source is None or source.exhausted):
            return SweepOutcome(())
        preload_plotting()
        from orchestrator.execution.tune_experiment import run_experiment

        tracker, options, stop = self.tracker, self.options, self.stop
        settings = WorkerSettings(
            uri=tracker.uri,
            experiment=tracker.experiment,
            sweep_run=sweep.run_id,
            data_dir=options.data_dir(),
            code=options.code(),
            stop=stop,
            state_dir=custom_state_dir(),
            own_code=stored_code.dump(stored_code.codes_in(str(work.plan.space.choices())), with_base=True),
            folder=str(paths.base()),
            gpu_share=options.gpus_per_trial,
        )
        previous = () if stop is None else tuple(previous_trials(work.plan, tracker, stop))
        with deliver_in_background(tracker.uri, self.signals), self.closing_runs(sweep.run_id):
            return run_experiment(
                work.tasks,
                settings,
                options.resources(),
                self.signals,
                reused=work.reused,
                reused_dense=len(work.plan.dense) - sum(task.parent is None for task in work.tasks),
                previous_trials=previous,
                source=source,
                planned_trials=0 if source is None else work.plan.space.points,
                on_task_lost=partial(record_lost_task, tracker, sweep.run_id),
            )

    @contextmanager
    def closing_runs(self, sweep_run: str) -> Iterator[None]:
        """Close the runs that workers leave open if Ray is lost, and the workers with it."""
        tracker = self.tracker

        def close(reason: str) -> None:
            breaker_for(tracker.uri).reset()  # the store may be back since a worker could not reach it
            with suppress(StoreUnavailableError), tracker.translating_errors():
                tracker.close_children(sweep_run, reason)

        def close_sweep(reason: str) -> None:
            close(reason)
            with suppress(StoreUnavailableError), tracker.translating_errors():
                tracker.close(sweep_run, reason, status="FAILED")

        with self.signals.closing_at_end(close_sweep):
            try:
                yield
            except ClusterError as error:
                close(str(error))
                raise

    def publish(
        self, work: RemainingWork, sweep: RunRecord, source: SearchSource | None, outcome: SweepOutcome
    ) -> Summary:
        """Deliver all results, publish the comparison, and return the summary. DiskFullError, StoreError."""
        tracker, space = self.tracker, work.plan.space
        raise_if_disk_full(tracker, sweep.run_id, outcome, work.expected_tasks)
        publish = partial(publish_results, tracker, sweep, space, outcome)
        results = finish_with_retries(tracker.uri, sweep.run_id, outcome, publish)
        if self.options.address is not None:
            check_all_delivered(results, outcome)
        if source is None:
            return Summary.of_plan(work.plan, sweep, results, outcome, work.reused)
        return Summary.of_plan(source.plan, sweep, results, outcome, work.reused + source.reused)


def _own_sources(space: Space) -> dict[str, str]:
    """Return path -> text of the user's own files that a space names: kept to be read by people."""
    codes = stored_code.codes_in(str(space.choices()))
    return {f"code/{code.pin}/{name}": text for code in codes for name, text in code.sources.items()}


def record_lost_task(tracker: Tracker, sweep_run: str, task: Task, reason: str) -> None:
    """Close the run that a dead worker left open as FAILED. A task that had no run yet gets one."""
    with suppress(StoreUnavailableError), tracker.translating_errors():
        runs = [
            row.run_id
            for row in tracker.runs_of_task(task.key)
            if row.status == "RUNNING" and row.tags.get("mlflow.parentRunId") == sweep_run
        ]
        if not runs:
            kind, tags = "trial" if task.parent else "dense", {**(task.tags or {}), "point": task.key}
            runs = [tracker.start(kind, task.name, parent=sweep_run, tags=tags).run_id]
        for run_id in runs:
            tracker.close(run_id, reason, status="FAILED")


def raise_if_disk_full(
    tracker: Tracker, sweep_run: str, outcome: SweepOutcome, tasks: Sequence[Task]
) -> None:
    """Raise DiskFullError if a full disk ended a sweep of these tasks, and close the runs it left open."""
    if not outcome.disk_full or outcome.signal:
        return
    with suppress(StoreError), tracker.translating_errors():
        tracker.close_children(sweep_run, "no room was left")
    done = {result.task.key for result in outcome.results}
    folder = store_folder(tracker.uri) or outbox_folder(tracker.uri)
    remaining = [task for task in tasks if task.key not in done]
    reason = outcome.disk_full.partition(": ")[2]
    raise DiskFullError(f"{reason}; {disk_space_message(remaining, folder)}")
