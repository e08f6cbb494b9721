"""Deliver pending runs from the outbox to the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import AwayError, DiskFullError, StoreError
from orchestrator.storage.locks import alone
from orchestrator.storage.outbox import Closing, Outbox, Parcel
from orchestrator.storage.uri import outbox_folder
from orchestrator.system.console import print_line
from orchestrator.system.signals import received
from orchestrator.tracking import REST_SECONDS, TAG_LENGTH, OpenRun, Tracker, line_to
from orchestrator.tracking.checkpoint_store import forget
from orchestrator.trial.task import Ended

if TYPE_CHECKING:
    from pandas import DataFrame


LOCK, LOCK_SECONDS = ".key.lock", 60.0


@lru_cache(maxsize=8)
def tracker_of(uri: str, experiment: str) -> Tracker:
    """One tracker for all of this process: what it learns of a store that is away, all know."""
    return Tracker(uri, experiment)


def deliver(tracker: Tracker, outbox: Outbox, parcel: Parcel, *, run: OpenRun | None = None) -> None:
    """All of a parcel that this process holds: files before the key, the key before the end.

    `run` is the one that was opened for it just now, if there is one; else it is looked for. AwayError,
    DiskFullError or StoreError leave the parcel where it is.
    """
    with tracker.reaching():
        _write(tracker, parcel, run)
    outbox.remove(parcel)


def deliver_all(
    uri: str, outbox: Outbox, *, on_delivered: Callable[[Parcel], None] | None = None
) -> Mapping[str, str]:
    """Everything that waits and that no other process is delivering; what is refused, and why, by name.

    AwayError and DiskFullError come at the first one that meets them.
    """
    refused: dict[str, str] = {}
    for parcel in outbox.parcels():
        with outbox.held(parcel) as mine:
            if not mine:
                continue
            try:
                deliver(tracker_of(uri, parcel.opening.experiment), outbox, parcel)
            except (AwayError, DiskFullError):
                raise
            except StoreError as error:
                refused[parcel.opening.name] = str(error)
            else:
                if on_delivered is not None:
                    on_delivered(parcel)
    return refused


def _write(tracker: Tracker, parcel: Parcel, run: OpenRun | None) -> None:
    opening, closing = parcel.opening, parcel.closing
    begun = parcel.begun and run is not None
    if run is None:
        row = tracker.of_parcel(parcel.id)
        if row is not None and (row.status, row.end_ms) == (closing.status, closing.end_ms):
            return  # all of it is there, and only the parcel was not removed
        if row is not None and "reason" in row.tags:
            tracker.delete_tag(row.run_id, "reason")  # it was given up, and closed
        run = _begin(tracker, parcel) if row is None else tracker.opened(row)
    if not begun:
        run.log(params=opening.params)
        run.log_data(opening.data.name, opening.data.digest, opening.data.sizes)
    run.log_folder(parcel.files)
    kept = forget(tracker, closing.emptied)
    tags = {**closing.tags, **({"checkpoints_left_in": ", ".join(kept)[:TAG_LENGTH]} if kept else {})}
    with alone(tracker.uri, LOCK, seconds=LOCK_SECONDS, otherwise=AwayError):
        tags |= _key(tracker, run, closing)
        run.log(metrics=closing.metrics, tags=tags, at_ms=closing.end_ms)
        run.end(closing.status, end_ms=closing.end_ms)


def _begin(tracker: Tracker, parcel: Parcel) -> OpenRun:
    opening = parcel.opening
    return tracker.start(
        opening.kind,
        opening.name,
        parent=opening.parent,
        tags={**opening.tags, "parcel": parcel.id},
        start_ms=opening.start_ms,
    )


def _key(tracker: Tracker, run: OpenRun, closing: Closing) -> dict[str, str]:
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


class _HeldError(AwayError):
    """Results that another process has taken up, and not delivered yet."""


def deliver_left(uri: str) -> None:
    """Deliver what an earlier sweep had to leave. AwayError, DiskFullError."""
    for name, reason in deliver_all(uri, Outbox(outbox_folder(uri))).items():
        print_line(f"not delivered: {name}: {reason}", error=True)


@contextmanager
def delivering(uri: str) -> Iterator[None]:
    """Deliver now and then what workers had to leave: one may have died since."""
    done = Event()

    def deliver() -> None:
        while not done.wait(REST_SECONDS):
            with suppress(StoreError):
                deliver_all(uri, Outbox(outbox_folder(uri)))

    thread = Thread(target=deliver, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        if not received():  # who was interrupted waits for no store
            thread.join(timeout=REST_SECONDS)


def settle(uri: str, sweep_run: str, ended: Ended, conclude: Callable[[], T]) -> T:
    """Deliver all that waits, then `conclude`; both again for a while where the store is away.

    AwayError or StoreError say where the results wait. A sweep that a signal ended is left as it is:
    KeyboardInterrupt where the store is away.
    """
    if ended.signal:
        return _interrupted(uri, conclude)
    start, told = monotonic(), False
    while True:
        try:
            line_to(uri).ask_anew()
            _deliver(uri, sweep_run)
            with line_to(uri).reaching():
                return conclude()
        except AwayError as error:
            if monotonic() > start + (HELD_SECONDS if isinstance(error, _HeldError) else WAIT_SECONDS):
                raise AwayError(f"{error}; {_waiting(uri, sweep_run)}") from error
            if not told:
                print_line(f"{error}; trying for {WAIT_SECONDS:.0f} s", error=True)
            told = True
            sleep(TRY_SECONDS)


def check_none_elsewhere(results: DataFrame, ended: Ended) -> None:
    """StoreError for results of a cluster's nodes that did not reach the store: they wait there."""
    done = {outcome.point.key for outcome in ended.outcomes if outcome.metrics is not None}
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
        with line_to(uri).reaching():
            return conclude()
    except AwayError as error:
        raise KeyboardInterrupt("interrupted") from error


def _deliver(uri: str, sweep_run: str) -> None:
    refused = deliver_all(uri, Outbox(outbox_folder(uri)))
    for name, reason in refused.items():
        raise StoreError(f"{name}: {reason}; {_waiting(uri, sweep_run)}")
    if _left(uri, sweep_run):
        raise _HeldError("another process is delivering results of this sweep")


def _left(uri: str, sweep_run: str) -> int:
    return sum(parcel.opening.parent == sweep_run for parcel in Outbox(outbox_folder(uri)).parcels())


def _waiting(uri: str, sweep_run: str) -> str:
    folder, count = outbox_folder(uri), _left(uri, sweep_run)
    if not count:
        return f"every result is stored, and {COMMAND} writes the comparison"
    return f"{results_wait(count)} in {folder}, and {COMMAND} delivers them"


def results_wait(count: int) -> str:
    return f"{count} results wait" if count > 1 else "1 result waits"
