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
from orchestrator.storage.outbox import Outbox, PendingRun, RunEnd
from orchestrator.storage.uri import outbox_folder
from orchestrator.system.console import print_line
from orchestrator.system.signals import received_signal
from orchestrator.tracking import COOLDOWN_SECONDS, TAG_LENGTH, ActiveRun, Tracker, breaker_for
from orchestrator.tracking.checkpoint_store import delete_checkpoints
from orchestrator.trial.task import SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame


LOCK, LOCK_SECONDS = ".key.lock", 60.0


@lru_cache(maxsize=8)
def tracker_of(uri: str, experiment: str) -> Tracker:
    """One tracker for all of this process: what it learns of a store that is away, all know."""
    return Tracker(uri, experiment)


def deliver_run(
    tracker: Tracker, outbox: Outbox, parcel: PendingRun, *, run: ActiveRun | None = None
) -> None:
    """All of a parcel that this process holds: files before the key, the key before the end.

    `run` is the one that was opened for it just now, if there is one; else it is looked for. AwayError,
    DiskFullError or StoreError leave the parcel where it is.
    """
    with tracker.translating_errors():
        _write(tracker, parcel, run)
    outbox.remove(parcel)


def deliver_all(
    uri: str, outbox: Outbox, *, on_delivered: Callable[[PendingRun], None] | None = None
) -> Mapping[str, str]:
    """Everything that waits and that no other process is delivering; what is refused, and why, by name.

    AwayError and DiskFullError come at the first one that meets them.
    """
    refused: dict[str, str] = {}
    for parcel in outbox.pending_runs():
        with outbox.locked(parcel) as mine:
            if not mine:
                continue
            try:
                deliver_run(tracker_of(uri, parcel.start.experiment), outbox, parcel)
            except (StoreUnavailableError, DiskFullError):
                raise
            except StoreError as error:
                refused[parcel.start.name] = str(error)
            else:
                if on_delivered is not None:
                    on_delivered(parcel)
    return refused


def _write(tracker: Tracker, parcel: PendingRun, run: ActiveRun | None) -> None:
    opening, closing = parcel.start, parcel.end
    begun = parcel.params_logged and run is not None
    if run is None:
        row = tracker.run_of_pending(parcel.id)
        if row is not None and (row.status, row.end_ms) == (closing.status, closing.end_ms):
            return  # all of it is there, and only the parcel was not removed
        if row is not None and "reason" in row.tags:
            tracker.delete_tag(row.run_id, "reason")  # it was given up, and closed
        run = _begin(tracker, parcel) if row is None else tracker.attach(row)
    if not begun:
        run.log(params=opening.params)
        run.log_data(opening.data.name, opening.data.digest, opening.data.sizes)
    run.log_folder(parcel.files)
    kept = delete_checkpoints(tracker, closing.emptied)
    tags = {**closing.tags, **({"checkpoints_left_in": ", ".join(kept)[:TAG_LENGTH]} if kept else {})}
    with store_lock(tracker.uri, LOCK, seconds=LOCK_SECONDS, error=StoreUnavailableError):
        tags |= _key(tracker, run, closing)
        run.log(metrics=closing.metrics, tags=tags, at_ms=closing.end_ms)
        run.end(closing.status, end_ms=closing.end_ms)


def _begin(tracker: Tracker, parcel: PendingRun) -> ActiveRun:
    opening = parcel.start
    return tracker.start(
        opening.kind,
        opening.name,
        parent=opening.parent,
        tags={**opening.tags, "parcel": parcel.id},
        start_ms=opening.start_ms,
    )


def _key(tracker: Tracker, run: ActiveRun, closing: RunEnd) -> dict[str, str]:
    """The tag by which a whole run is found; a run whose key another has by now says which one that is."""
    if closing.key is None:
        return {}
    other = tracker.finished_one(closing.key)
    taken = other is not None and other.run_id != run.run_id
    return {"duplicate_of": other.run_id} if other and taken else {"key": closing.key}


WAIT_SECONDS = 60.0  # for a store that is away as a sweep ends
HELD_SECONDS = 180.0  # for another process, or a thread of this one, that is delivering at the time
TRY_SECONDS = 3.0
COMMAND = "`orchestrate deliver`"
T = TypeVar("T")


class _HeldError(StoreUnavailableError):
    """Results that another process has taken up, and not delivered yet."""


def deliver_pending(uri: str) -> None:
    """Deliver what an earlier sweep had to leave. AwayError, DiskFullError."""
    for name, reason in deliver_all(uri, Outbox(outbox_folder(uri))).items():
        print_line(f"not delivered: {name}: {reason}", error=True)


@contextmanager
def deliver_in_background(uri: str) -> Iterator[None]:
    """Deliver now and then what workers had to leave: one may have died since."""
    done = Event()

    def deliver() -> None:
        while not done.wait(COOLDOWN_SECONDS):
            with suppress(StoreError):
                deliver_all(uri, Outbox(outbox_folder(uri)))

    thread = Thread(target=deliver, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        if not received_signal():  # who was interrupted waits for no store
            thread.join(timeout=COOLDOWN_SECONDS)


def finish_with_retries(uri: str, sweep_run: str, ended: SweepOutcome, conclude: Callable[[], T]) -> T:
    """Deliver all that waits, then `conclude`; both again for a while where the store is away.

    AwayError or StoreError say where the results wait. A sweep that a signal ended is left as it is:
    KeyboardInterrupt where the store is away.
    """
    if ended.signal:
        return _interrupted(uri, conclude)
    start, told = monotonic(), False
    while True:
        try:
            breaker_for(uri).reset()
            _deliver(uri, sweep_run)
            with breaker_for(uri).translating_errors():
                return conclude()
        except StoreUnavailableError as error:
            if monotonic() > start + (HELD_SECONDS if isinstance(error, _HeldError) else WAIT_SECONDS):
                raise StoreUnavailableError(f"{error}; {_waiting(uri, sweep_run)}") from error
            if not told:
                print_line(f"{error}; trying for {WAIT_SECONDS:.0f} s", error=True)
            told = True
            sleep(TRY_SECONDS)


def check_all_delivered(results: DataFrame, ended: SweepOutcome) -> None:
    """StoreError for results of a cluster's nodes that did not reach the store: they wait there."""
    done = {outcome.task.key for outcome in ended.results if outcome.metrics is not None}
    count = int(((results["status"] == "missing") & results["key"].isin(done)).sum())
    if count and not ended.signal:
        raise StoreError(
            f"{results_wait(count)} on other nodes of the cluster, which did not reach the store; "
            f"{COMMAND} there delivers them once they do, or the same command"
        )


def _interrupted(uri: str, conclude: Callable[[], T]) -> T:
    """One try each: what cannot be delivered now, the next sweep delivers."""
    with suppress(StoreError):
        deliver_all(uri, Outbox(outbox_folder(uri)))
    try:
        with breaker_for(uri).translating_errors():
            return conclude()
    except StoreUnavailableError as error:
        raise KeyboardInterrupt("interrupted") from error


def _deliver(uri: str, sweep_run: str) -> None:
    refused = deliver_all(uri, Outbox(outbox_folder(uri)))
    for name, reason in refused.items():
        raise StoreError(f"{name}: {reason}; {_waiting(uri, sweep_run)}")
    if _left(uri, sweep_run):
        raise _HeldError("another process is delivering results of this sweep")


def _left(uri: str, sweep_run: str) -> int:
    return sum(parcel.start.parent == sweep_run for parcel in Outbox(outbox_folder(uri)).pending_runs())


def _waiting(uri: str, sweep_run: str) -> str:
    folder, count = outbox_folder(uri), _left(uri, sweep_run)
    if not count:
        return f"every result is stored, and {COMMAND} writes the comparison"
    return f"{results_wait(count)} in {folder}, and {COMMAND} delivers them"


def results_wait(count: int) -> str:
    return f"{count} results wait" if count > 1 else "1 result waits"
