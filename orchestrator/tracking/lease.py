"""One process per sweep: a lease with a heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic, sleep

from orchestrator.errors import BusyError, StoreError
from orchestrator.storage.locks import is_on_this_host, is_owner_alive, owner, store_lock
from orchestrator.system.console import print_line
from orchestrator.tracking import ActiveRun, RunRecord, Tracker

HEARTBEAT_SECONDS = 10.0
SILENCE_SECONDS = 35.0  # after which another host's process is taken to be gone
LOCK, LOCK_SECONDS = ".claim.lock", 120.0
TAKEN_OVER = "its process is gone, and another took the sweep over"


def acquire_lease(tracker: Tracker, plan_sha256: str, *, name: str) -> ActiveRun:
    """The sweep's run under this process: a new one, or that of before. BusyError if another has it."""
    with (
        store_lock(tracker.uri, LOCK, seconds=LOCK_SECONDS, error=StoreError),
        tracker.translating_errors(),
    ):
        rows = _rows(tracker, plan_sha256)
        _refuse_if_busy(tracker, rows)
        tracker.close_abandoned()
        # What a driver of another host left open: nobody else can tell that it is dead.
        for row in (row for row in rows if row.status == "RUNNING"):
            tracker.close_children(row.run_id, TAKEN_OVER)
            tracker.close(row.run_id, TAKEN_OVER)
        if rows:
            run = tracker.reopen(rows[0].run_id)
        else:
            run = tracker.start("sweep", name, tags={"plan_sha256": plan_sha256, "space": name})
        _refuse_if_late(tracker, run, plan_sha256)
        return run


@contextmanager
def heartbeat(tracker: Tracker, run: ActiveRun) -> Iterator[None]:
    """Keep telling the store that this process is at it."""
    done = Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            tracker.try_set_tag(run.run_id, "beat", str(count))
            if done.wait(HEARTBEAT_SECONDS):
                return

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=HEARTBEAT_SECONDS)


def _rows(tracker: Tracker, plan_sha256: str) -> list[RunRecord]:
    return tracker.search(f"tags.kind = 'sweep' and tags.plan_sha256 = '{plan_sha256}'")


def _refuse_if_busy(tracker: Tracker, rows: list[RunRecord]) -> None:
    for row in rows:
        if row.status == "RUNNING" and row.tags.get("owner") != owner() and _lives(tracker, row):
            raise _busy(row)


def _refuse_if_late(tracker: Tracker, run: ActiveRun, plan_sha256: str) -> None:
    """On a server, where two may look before either claims: who then sees another steps back."""
    for row in _rows(tracker, plan_sha256):
        if row.run_id == run.run_id and row.tags.get("owner") != owner():
            raise _busy(row)  # both opened the same run; it is the other's now
        if row.run_id != run.run_id and row.status == "RUNNING" and is_owner_alive(row.tags.get("owner", "")):
            tracker.close(run.run_id, "another process was running this sweep already")
            raise _busy(row)


def _lives(tracker: Tracker, row: RunRecord) -> bool:
    """Whether a RUNNING run's owner is at it; of another host's it takes a while to know that it is not."""
    holder = row.tags.get("owner", "")
    if is_on_this_host(holder):
        return is_owner_alive(holder)
    print_line(f"listening whether {_named(holder)} still runs this sweep", error=True)
    end = monotonic() + SILENCE_SECONDS
    while monotonic() < end:
        sleep(min(1.0, SILENCE_SECONDS / 5))
        now = tracker.get_run(row.run_id)
        if now.status != "RUNNING":
            return False
        if now.tags.get("beat") != row.tags.get("beat"):
            return True
    return False


def _busy(row: RunRecord) -> BusyError:
    return BusyError(
        f"this sweep is running already: {_named(row.tags.get('owner', ''))}; "
        f"`orchestrate status {row.run_id}` shows how far it is, and stopping it there lets it go on here"
    )


def _named(holder: str) -> str:
    parts = holder.split()
    return f"host {parts[0]}, pid {parts[1]}" if len(parts) >= 3 else "a process without a name"
