"""Deliver pending runs from the outbox to the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.storage.locks import store_lock
from orchestrator.storage.outbox import Outbox, PendingRun, RunEnd, RunStart
from orchestrator.storage.uri import outbox_folder
from orchestrator.system.console import print_line
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import COOLDOWN_SECONDS, TAG_LENGTH, ActiveRun, Tracker, breaker_for
from orchestrator.tracking.checkpoint_store import delete_checkpoints
from orchestrator.trial.task import SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame

KEY_LOCK, KEY_LOCK_SECONDS = ".key.lock", 60.0
WAIT_SECONDS = 60.0  # for a store that cannot be reached when a sweep ends
HELD_SECONDS = 180.0  # for another process, or a thread of this one, that is delivering the same runs
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.3, 3.0  # each pause is twice the one before
COMMAND = "`orchestrate deliver`"
T = TypeVar("T")


@lru_cache(maxsize=8)
def shared_tracker(uri: str, experiment: str) -> Tracker:
    """Return the tracker that all of this process uses for an experiment."""
    return Tracker(uri, experiment)


def start_run(tracker: Tracker, run_start: RunStart, pending_id: str) -> ActiveRun:
    """Create the run in the store, tagged with the id of its pending run; with its start, if it can be."""
    return tracker.start(
        run_start.kind,
        run_start.name,
        parent=run_start.parent,
        tags={**run_start.tags, "parcel": pending_id},
        start_ms=run_start.start_ms,
        params=run_start.params,
        data=run_start.data,
    )


def log_run_start(run: ActiveRun, run_start: RunStart) -> None:
    """Log the params and the data set of a run, unless it was created with them."""
    if not run.has_start:
        run.log(params=run_start.params, data=run_start.data)


def deliver_run(
    tracker: Tracker, outbox: Outbox, pending_run: PendingRun, *, run: ActiveRun | None = None
) -> None:
    """Write a pending run, which this process has locked, to the store, and remove it from the outbox.

    `run` is the store's run if this process has started it; otherwise it is searched for, and created if it
    is missing. StoreUnavailableError, DiskFullError and StoreError leave the pending run in the outbox.
    """
    with tracker.translating_errors():
        _write(tracker, pending_run, run)
    outbox.remove(pending_run)


def deliver_all(
    uri: str, outbox: Outbox | None = None, *, on_delivered: Callable[[PendingRun], None] | None = None
) -> Mapping[str, str]:
    """Deliver every pending run that no other process is delivering; return run name -> reason if refused.

    StoreUnavailableError and DiskFullError are raised at the first run that meets them.
    """
    outbox = outbox or Outbox(outbox_folder(uri))
    refused: dict[str, str] = {}
    for pending_run in outbox.pending_runs():
        with outbox.locked(pending_run) as is_locked:
            if not is_locked:
                continue
            try:
                deliver_run(shared_tracker(uri, pending_run.start.experiment), outbox, pending_run)
            except (StoreUnavailableError, DiskFullError):
                raise
            except StoreError as error:
                refused[pending_run.start.name] = str(error)
            else:
                if on_delivered is not None:
                    on_delivered(pending_run)
    return refused


def _write(tracker: Tracker, pending_run: PendingRun, run: ActiveRun | None) -> None:
    """Write the files before the key, and the key before the end: a run that has a key is whole."""
    run_start, run_end = pending_run.start, pending_run.end
    is_logged = pending_run.params_logged and run is not None
    if run is None:
        row = tracker.run_of_pending(pending_run.id)
        if row is not None and (row.status, row.end_ms) == (run_end.status, run_end.end_ms):
            return  # an earlier delivery died between the end of the run and `outbox.remove`
        if row is not None and "reason" in row.tags:
            tracker.delete_tag(row.run_id, "reason")  # the run was closed as lost, and is not lost
        run = start_run(tracker, run_start, pending_run.id) if row is None else tracker.attach(row)
    if not is_logged:
        log_run_start(run, run_start)
    run.log_folder(pending_run.files)
    undeleted = delete_checkpoints(tracker, run_end.emptied)
    tags = dict(run_end.tags)
    if undeleted:
        tags["checkpoints_left_in"] = ", ".join(undeleted)[:TAG_LENGTH]
    # The lock keeps two processes from giving one key to two runs.
    with store_lock(tracker.uri, KEY_LOCK, seconds=KEY_LOCK_SECONDS, error=StoreUnavailableError):
        tags |= _key_tag(tracker, run, run_end)
        run.log(metrics=run_end.metrics, tags=tags, at_ms=run_end.end_ms, end=run_end.status)


def _key_tag(tracker: Tracker, run: ActiveRun, run_end: RunEnd) -> dict[str, str]:
    """Return the tag `key`, or `duplicate_of` where another finished run has the key already."""
    if run_end.key is None:
        return {}
    finished = tracker.find_finished(run_end.key)
    if finished is not None and finished.run_id != run.run_id:
        return {"duplicate_of": finished.run_id}
    return {"key": run_end.key}


def deliver_pending(uri: str) -> None:
    """Deliver what earlier sweeps left in the outbox, and print what the store refuses.

    StoreUnavailableError, DiskFullError.
    """
    for name, reason in deliver_all(uri).items():
        print_line(f"not delivered: {name}: {reason}", error=True)


@contextmanager
def deliver_in_background(uri: str, signals: SignalHandler) -> Iterator[None]:
    """Within the block, a thread delivers what workers leave in the outbox: a worker may have died since."""
    stop = Event()

    def deliver() -> None:
        while not stop.wait(COOLDOWN_SECONDS):
            with suppress(StoreError):
                deliver_all(uri)

    thread = Thread(target=deliver, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        if not signals.received:  # an interrupted sweep waits for no store
            thread.join(timeout=COOLDOWN_SECONDS)


def finish_with_retries(uri: str, sweep_run: str, outcome: SweepOutcome, publish: Callable[[], T]) -> T:
    """Deliver all pending runs, then return `publish()`; try both again while the store is unavailable.

    After WAIT_SECONDS, or HELD_SECONDS if another process holds runs of the sweep: StoreUnavailableError,
    which says where the results wait. StoreError for results that the store refuses. A sweep that a signal
    ended tries once, and raises KeyboardInterrupt if the store is unavailable.
    """
    if outcome.signal:
        return _finish_interrupted(uri, publish)
    start, pause = monotonic(), FIRST_RETRY_SECONDS
    while True:
        breaker_for(uri).reset()  # within its cooldown it would refuse without asking the store
        try:
            for name, reason in deliver_all(uri).items():
                raise StoreError(f"{name}: {reason}; {_waiting_note(uri, sweep_run)}")
            if not _count_pending(uri, sweep_run):
                with breaker_for(uri).translating_errors():
                    return publish()
            problem = StoreUnavailableError("another process is delivering results of this sweep")
            limit = HELD_SECONDS
        except StoreUnavailableError as error:
            problem, limit = error, WAIT_SECONDS
        if monotonic() > start + limit:
            raise StoreUnavailableError(f"{problem}; {_waiting_note(uri, sweep_run)}") from problem
        if pause == FIRST_RETRY_SECONDS:  # say so once
            print_line(f"{problem}; trying for {limit:.0f} s", error=True)
        sleep(pause)
        pause = min(2 * pause, LAST_RETRY_SECONDS)


def _finish_interrupted(uri: str, publish: Callable[[], T]) -> T:
    """Try once: the next sweep delivers what cannot be delivered now."""
    with suppress(StoreError):
        deliver_all(uri)
    try:
        with breaker_for(uri).translating_errors():
            return publish()
    except StoreUnavailableError as error:
        raise KeyboardInterrupt("interrupted") from error


def check_all_delivered(results: DataFrame, outcome: SweepOutcome) -> None:
    """Raise StoreError if results wait in outboxes of other nodes, which could not reach the store."""
    keys = {result.task.key for result in outcome.results if result.metrics is not None}
    count = int(((results["status"] == "missing") & results["key"].isin(keys)).sum())
    if count and not outcome.signal:
        raise StoreError(
            f"{count_waiting(count)} on other nodes of the cluster, which did not reach the store; "
            f"run {COMMAND} there once they reach it, or the same command again"
        )


def _count_pending(uri: str, sweep_run: str) -> int:
    pending_runs = Outbox(outbox_folder(uri)).pending_runs()
    return sum(pending_run.start.parent == sweep_run for pending_run in pending_runs)


def _waiting_note(uri: str, sweep_run: str) -> str:
    """Say how many results of the sweep wait, where, and which command delivers them."""
    count = _count_pending(uri, sweep_run)
    if not count:
        return f"every result is stored, and {COMMAND} writes the comparison"
    return f"{count_waiting(count)} in {outbox_folder(uri)}, and {COMMAND} delivers them"


def count_waiting(count: int) -> str:
    """Return `1 result waits` or `2 results wait`."""
    return f"{count} results wait" if count > 1 else "1 result waits"
