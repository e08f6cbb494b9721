"""The run of one task: start, reuse, record, fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from traceback import format_exception
from types import TracebackType

from orchestrator.errors import (
    DiskFullError,
    DivergedError,
    OrchestrateError,
    StoreError,
    StoreUnavailableError,
)
from orchestrator.redaction import redact
from orchestrator.storage.outbox import DataInput, Outbox, RunEnd, RunStart, new_pending_id
from orchestrator.system.files import write_file
from orchestrator.tracking import ActiveRun, RunRecord, Tracker, Value
from orchestrator.tracking.checkpoint_store import MlflowCheckpointStore
from orchestrator.tracking.delivery import deliver_all, deliver_run, log_run_start, start_run
from orchestrator.tracking.run_writer import failure_reason
from orchestrator.trial.task import Task, WorkerSettings

DIED = "its worker died"


class RunSession:
    """The run of one task, from its start to its result; use it in a `with`, and call `finish` once.

    An error that leaves the block is recorded as the run's end. `run` is the store's RUNNING run, or None if
    the store did not answer. `checkpoints` holds the run's checkpoints, and those of earlier runs of the
    task. `existing` is a finished run of the task: with it there is nothing to do.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox, run_start: RunStart) -> None:
        self.tracker = tracker
        self.outbox = outbox
        self.start = run_start
        self.id = new_pending_id(run_start.point)
        self.run: ActiveRun | None = None
        self.existing: RunRecord | None = None
        self.params_logged = False
        self.is_written = False
        self.checkpoints = MlflowCheckpointStore(tracker, None, ())
        self._start_seconds = monotonic()

    def __enter__(self) -> RunSession:
        with suppress(StoreUnavailableError), self.tracker.translating_errors():
            self._start()
        return self

    def _start(self) -> None:
        earlier = [self._close_if_running(row) for row in self.tracker.runs_of_task(self.start.point)]
        self.existing = next((row for row in earlier if self._is_result(row)), None)
        if self.existing is not None:
            return
        self.run = start_run(self.tracker, self.start, self.id)
        self.checkpoints = MlflowCheckpointStore(self.tracker, self.run.run_id, earlier)
        log_run_start(self.run, self.start)
        self.params_logged = True

    def _is_result(self, row: RunRecord) -> bool:
        """Whether a worker of this sweep stored the task's result, and died before it could report it."""
        is_of_sweep = row.tags.get("mlflow.parentRunId") == self.start.parent
        is_whole = row.status == "FINISHED" and row.tags.get("key") == self.start.point
        return is_of_sweep and is_whole and "invalid" not in row.tags

    def _close_if_running(self, row: RunRecord) -> RunRecord:
        """Close a RUNNING run of the task and sweep: a sweep runs a task once at a time, so it is dead."""
        if row.status != "RUNNING" or row.tags.get("mlflow.parentRunId") != self.start.parent:
            return row
        self.tracker.close(row.run_id, DIED)
        return replace(row, status="KILLED")

    def finish(self, fill: Callable[[Path, int], RunEnd]) -> None:
        """Write the files to the outbox by `fill(folder, end_ms)`; deliver them if the store answers."""
        # Not the wall clock: it may have been set back meanwhile, and no run ends before it starts.
        end_ms = self.start.start_ms + round(1000 * (monotonic() - self._start_seconds))
        write = self.outbox.write(
            self.id,
            self.start,
            lambda folder: self._with_checkpoint_tags(fill(folder, end_ms)),
            params_logged=self.params_logged,
        )
        with suppress(StoreUnavailableError):
            with write as pending_run:
                self.is_written = True
                # Without it the run is found by its pending id, and its params are logged anew.
                run = self.run if self.params_logged else None
                deliver_run(self.tracker, self.outbox, pending_run, run=run)
            deliver_all(self.tracker.uri, self.outbox)  # what waits from before: the store answers now

    def _with_checkpoint_tags(self, run_end: RunEnd) -> RunEnd:
        """Add tags on checkpoints; a result, even a diverged one, makes earlier checkpoints obsolete."""
        has_result = run_end.status == "FINISHED" or "diverged" in run_end.tags
        tags = {**run_end.tags, **self.checkpoints.tags()}
        return replace(
            run_end, tags=tags, emptied=tuple(self.checkpoints.obsolete_runs()) if has_result else ()
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.is_written:
            return
        # A full disk takes no failure in the outbox, and an interruption is none: the run is KILLED.
        if isinstance(error, Exception) and not isinstance(error, DiskFullError):
            self.finish(partial(_failure, error=error))
        elif self.run is not None:
            with suppress(StoreError), self.tracker.translating_errors():
                self.tracker.close(self.run.run_id, failure_reason(error))


def make_run_start(
    task: Task, settings: WorkerSettings, *, params: dict[str, Value], data: DataInput
) -> RunStart:
    """Return the start of a task's run, at the present time."""
    return RunStart(
        experiment=settings.experiment,
        kind="trial" if task.parent else "dense",
        name=task.name,
        parent=settings.sweep_run,
        point=task.key,
        tags={**(task.tags or {}), "point": task.key},
        params=params,
        data=data,
        start_ms=int(time.time() * 1000),
    )


def _failure(folder: Path, end_ms: int, *, error: Exception) -> RunEnd:
    """End the run as FAILED with the reason; an unexpected error also leaves its traceback."""
    if not isinstance(error, OrchestrateError):
        write_file(folder / "traceback.txt", redact("".join(format_exception(error))))
    tags = {"reason": failure_reason(error)} | (
        {"diverged": "true"} if isinstance(error, DivergedError) else {}
    )
    return RunEnd("FAILED", end_ms, tags)
