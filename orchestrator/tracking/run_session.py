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

from orchestrator.errors import AwayError, DiskFullError, DivergedError, OrchestrateError, StoreError
from orchestrator.redaction import redacted
from orchestrator.storage.outbox import Closing, DataInput, Opening, Outbox, new_id
from orchestrator.system.files import write
from orchestrator.tracking import TAG_LENGTH, OpenRun, RunRow, Tracker, Value
from orchestrator.tracking.checkpoint_store import RunKeeper
from orchestrator.tracking.delivery import deliver, deliver_all
from orchestrator.trial.task import Point, Settings

DIED = "its worker died"


class Entry:
    """Use it in a `with`, and `send` what is to be recorded; an error that leaves the block is sent itself.

    `run` is the one that the store shows as RUNNING, None if the store did not answer; `keeper` has its
    checkpoints, and those that earlier runs of the point left. With `done` there is nothing left to do.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox, opening: Opening) -> None:
        self.tracker = tracker
        self.outbox = outbox
        self.opening = opening
        self.id = new_id(opening.point)
        self.run: OpenRun | None = None
        self.done: RunRow | None = None
        self.begun = False
        self.packed = False
        self.keeper = RunKeeper(tracker, None, ())
        self._since = monotonic()

    def __enter__(self) -> Entry:
        with suppress(AwayError), self.tracker.reaching():
            self._begin()
        return self

    def _begin(self) -> None:
        tracker, opening = self.tracker, self.opening
        earlier = [self._closed(row) for row in tracker.of_point(opening.point)]
        self.done = next((row for row in earlier if self._is_whole(row)), None)
        if self.done is not None:
            return
        tags = {**opening.tags, "parcel": self.id}
        self.run = tracker.start(
            opening.kind, opening.name, parent=opening.parent, tags=tags, start_ms=opening.start_ms
        )
        self.keeper = RunKeeper(tracker, self.run.run_id, earlier)
        self.run.log(params=opening.params)
        self.run.log_data(opening.data.name, opening.data.digest, opening.data.sizes)
        self.begun = True

    def _is_whole(self, row: RunRow) -> bool:
        """Whether a worker of this sweep brought the point to its end, and died before it could say so."""
        ours = row.tags.get("mlflow.parentRunId") == self.opening.parent
        whole = row.status == "FINISHED" and row.tags.get("key") == self.opening.point
        return ours and whole and "invalid" not in row.tags

    def _closed(self, row: RunRow) -> RunRow:
        """A run of the same point; this sweep, which runs a point once at a time, has left none RUNNING."""
        if row.status != "RUNNING" or row.tags.get("mlflow.parentRunId") != self.opening.parent:
            return row
        self.tracker.close(row.run_id, DIED)
        return replace(row, status="KILLED")

    def send(self, fill: Callable[[Path, int], Closing]) -> None:
        """Pack a run's files, which `fill(folder, end_ms)` writes, and deliver them if the store answers."""
        # The clock may have been set meanwhile: no run ends before it began.
        end_ms = self.opening.start_ms + round(1000 * (monotonic() - self._since))
        packed = self.outbox.packed(
            self.id, self.opening, lambda folder: self._with_tags(fill(folder, end_ms)), begun=self.begun
        )
        with suppress(AwayError):
            with packed as parcel:
                self.packed = True
                deliver(self.tracker, self.outbox, parcel, run=self.run if self.begun else None)
            deliver_all(self.tracker.uri, self.outbox)

    def _with_tags(self, closing: Closing) -> Closing:
        """With what there is to say of checkpoints; a result, even a diverged one, needs none any more."""
        result = closing.status == "FINISHED" or "diverged" in closing.tags
        emptied = tuple(self.keeper.runs()) if result else ()
        return replace(closing, tags={**closing.tags, **self.keeper.tags()}, emptied=emptied)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.packed:
            return
        if isinstance(error, Exception) and not isinstance(error, DiskFullError):
            self.send(partial(_failure, error=error))
        elif self.run is not None:
            with suppress(StoreError), self.tracker.reaching():
                self.tracker.close(self.run.run_id, _reason(error))


def opening_of(point: Point, settings: Settings, *, params: dict[str, Value], data: DataInput) -> Opening:
    """How the run of a point begins, now."""
    return Opening(
        experiment=settings.experiment,
        kind="trial" if point.parent else "dense",
        name=point.name,
        parent=settings.sweep_run,
        point=point.key,
        tags={**(point.tags or {}), "point": point.key},
        params=params,
        data=data,
        start_ms=int(time.time() * 1000),
    )


def _failure(folder: Path, end_ms: int, *, error: Exception) -> Closing:
    """FAILED with the reason; an error that nobody foresaw leaves its traceback."""
    if not isinstance(error, OrchestrateError):
        write(folder / "traceback.txt", redacted("".join(format_exception(error))))
    tags = {"reason": _reason(error)} | ({"diverged": "true"} if isinstance(error, DivergedError) else {})
    return Closing("FAILED", end_ms, tags)


def _reason(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {error}")[:TAG_LENGTH]
