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
from orchestrator.tracking import TAG_LENGTH, ActiveRun, RunRecord, Tracker, Value
from orchestrator.tracking.checkpoint_store import MlflowCheckpointStore
from orchestrator.tracking.delivery import deliver_all, deliver_run
from orchestrator.trial.task import Task, WorkerSettings

DIED = "its worker died"


class RunSession:
    """Use it in a `with`, and `send` what is to be recorded; an error that leaves the block is sent itself.

    `run` is the one that the store shows as RUNNING, None if the store did not answer; `keeper` has its
    checkpoints, and those that earlier runs of the point left. With `done` there is nothing left to do.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox, opening: RunStart) -> None:
        self.tracker = tracker
        self.outbox = outbox
        self.start = opening
        self.id = new_pending_id(opening.point)
        self.run: ActiveRun | None = None
        self.existing: RunRecord | None = None
        self.params_logged = False
        self.is_written = False
        self.checkpoints = MlflowCheckpointStore(tracker, None, ())
        self._since = monotonic()

    def __enter__(self) -> RunSession:
        with suppress(StoreUnavailableError), self.tracker.translating_errors():
            self._begin()
        return self

    def _begin(self) -> None:
        tracker, opening = self.tracker, self.start
        earlier = [self._closed(row) for row in tracker.runs_of_task(opening.point)]
        self.existing = next((row for row in earlier if self._is_whole(row)), None)
        if self.existing is not None:
            return
        tags = {**opening.tags, "parcel": self.id}
        self.run = tracker.start(
            opening.kind, opening.name, parent=opening.parent, tags=tags, start_ms=opening.start_ms
        )
        self.checkpoints = MlflowCheckpointStore(tracker, self.run.run_id, earlier)
        self.run.log(params=opening.params)
        self.run.log_dataset(opening.data.name, opening.data.digest, opening.data.sizes)
        self.params_logged = True

    def _is_whole(self, row: RunRecord) -> bool:
        """Whether a worker of this sweep brought the point to its end, and died before it could say so."""
        ours = row.tags.get("mlflow.parentRunId") == self.start.parent
        whole = row.status == "FINISHED" and row.tags.get("key") == self.start.point
        return ours and whole and "invalid" not in row.tags

    def _closed(self, row: RunRecord) -> RunRecord:
        """A run of the same point; this sweep, which runs a point once at a time, has left none RUNNING."""
        if row.status != "RUNNING" or row.tags.get("mlflow.parentRunId") != self.start.parent:
            return row
        self.tracker.close(row.run_id, DIED)
        return replace(row, status="KILLED")

    def finish(self, fill: Callable[[Path, int], RunEnd]) -> None:
        """Pack a run's files, which `fill(folder, end_ms)` writes, and deliver them if the store answers."""
        # The clock may have been set meanwhile: no run ends before it began.
        end_ms = self.start.start_ms + round(1000 * (monotonic() - self._since))
        packed = self.outbox.write(
            self.id,
            self.start,
            lambda folder: self._with_tags(fill(folder, end_ms)),
            params_logged=self.params_logged,
        )
        with suppress(StoreUnavailableError):
            with packed as parcel:
                self.is_written = True
                deliver_run(self.tracker, self.outbox, parcel, run=self.run if self.params_logged else None)
            deliver_all(self.tracker.uri, self.outbox)

    def _with_tags(self, closing: RunEnd) -> RunEnd:
        """With what there is to say of checkpoints; a result, even a diverged one, needs none any more."""
        result = closing.status == "FINISHED" or "diverged" in closing.tags
        emptied = tuple(self.checkpoints.runs()) if result else ()
        return replace(closing, tags={**closing.tags, **self.checkpoints.tags()}, emptied=emptied)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.is_written:
            return
        if isinstance(error, Exception) and not isinstance(error, DiskFullError):
            self.finish(partial(_failure, error=error))
        elif self.run is not None:
            with suppress(StoreError), self.tracker.translating_errors():
                self.tracker.close(self.run.run_id, _reason(error))


def make_run_start(
    task: Task, settings: WorkerSettings, *, params: dict[str, Value], data: DataInput
) -> RunStart:
    """How the run of a point begins, now."""
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
    """FAILED with the reason; an error that nobody foresaw leaves its traceback."""
    if not isinstance(error, OrchestrateError):
        write_file(folder / "traceback.txt", redact("".join(format_exception(error))))
    tags = {"reason": _reason(error)} | ({"diverged": "true"} if isinstance(error, DivergedError) else {})
    return RunEnd("FAILED", end_ms, tags)


def _reason(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {error}")[:TAG_LENGTH]
