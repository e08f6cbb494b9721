"""Results that wait for the store, as the driver of a sweep sees to them: before, meanwhile, at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import AwayError, StoreError
from orchestrator.launching.interruption import received
from orchestrator.launching.outcome import Ended
from orchestrator.store.address import outbox_folder
from orchestrator.store.delivery import deliver_all
from orchestrator.store.outbox import Outbox
from orchestrator.tracking import REST_SECONDS, line_to

if TYPE_CHECKING:
    from pandas import DataFrame

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
        print(f"not delivered: {name}: {reason}", file=sys.stderr)


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
                print(f"{error}; trying for {WAIT_SECONDS:.0f} s", file=sys.stderr)
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
