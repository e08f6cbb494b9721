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
# Without a heartbeat, after which a process of another host counts as dead: three may be late or lost.
SILENCE_SECONDS = 35.0
LOCK, LOCK_SECONDS = ".claim.lock", 120.0
TAKEN_OVER = "its process is gone, and another took the sweep over"


def acquire_lease(tracker: Tracker, plan_sha256: str, *, name: str) -> ActiveRun:
    """Return the sweep's run, new or reopened, owned by this process. BusyError if another runs it."""
    with (
        store_lock(tracker.uri, LOCK, seconds=LOCK_SECONDS, error=StoreError),
        tracker.translating_errors(),
    ):
        rows = _sweep_runs(tracker, plan_sha256)
        _check_not_running(tracker, rows)
        tracker.close_abandoned()
        # Runs of a driver of another host: `close_abandoned` cannot know that it is dead.
        for row in (row for row in rows if row.status == "RUNNING"):
            tracker.close_children(row.run_id, TAKEN_OVER)
            tracker.close(row.run_id, TAKEN_OVER)
        if rows:
            run = tracker.reopen(rows[0].run_id)
        else:
            run = tracker.start("sweep", name, tags={"plan_sha256": plan_sha256, "space": name})
        _check_still_owner(tracker, run, plan_sha256)
        return run


@contextmanager
def heartbeat(tracker: Tracker, run: ActiveRun) -> Iterator[None]:
    """Within the block, a thread sets a tag of the run every HEARTBEAT_SECONDS."""
    stop = Event()

    def send_heartbeats() -> None:
        count = 0
        while True:
            count += 1  # no time: the clocks of two hosts need not agree
            tracker.try_set_tag(run.run_id, "beat", str(count))
            if stop.wait(HEARTBEAT_SECONDS):
                return

    thread = Thread(target=send_heartbeats, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=HEARTBEAT_SECONDS)


def _sweep_runs(tracker: Tracker, plan_sha256: str) -> list[RunRecord]:
    return tracker.search(f"tags.kind = 'sweep' and tags.plan_sha256 = '{plan_sha256}'")


def _check_not_running(tracker: Tracker, rows: list[RunRecord]) -> None:
    for row in rows:
        if row.status == "RUNNING" and row.tags.get("owner") != owner() and _is_alive(tracker, row):
            raise _busy_error(row)


def _check_still_owner(tracker: Tracker, run: ActiveRun, plan_sha256: str) -> None:
    """Give way to another process: without a lock, as on a server, two may both see no running sweep."""
    for row in _sweep_runs(tracker, plan_sha256):
        if row.run_id == run.run_id and row.tags.get("owner") != owner():
            raise _busy_error(row)  # both reopened the same run, and the other was later
        if row.run_id != run.run_id and row.status == "RUNNING" and is_owner_alive(row.tags.get("owner", "")):
            tracker.close(run.run_id, "another process was running this sweep already")
            raise _busy_error(row)


def _is_alive(tracker: Tracker, row: RunRecord) -> bool:
    """Whether the owner of a RUNNING run is alive; on another host, whether its heartbeat changes in time."""
    run_owner = row.tags.get("owner", "")
    if is_on_this_host(run_owner):
        return is_owner_alive(run_owner)
    print_line(f"checking whether {_describe_owner(run_owner)} still runs this sweep", error=True)
    end = monotonic() + SILENCE_SECONDS
    while monotonic() < end:
        sleep(min(1.0, SILENCE_SECONDS / 5))
        latest = tracker.get_run(row.run_id)
        if latest.status != "RUNNING":
            return False
        if latest.tags.get("beat") != row.tags.get("beat"):
            return True
    return False


def _busy_error(row: RunRecord) -> BusyError:
    return BusyError(
        f"this sweep is running already: {_describe_owner(row.tags.get('owner', ''))}; "
        f"`orchestrate status {row.run_id}` shows how far it is, and stopping it there lets it go on here"
    )


def _describe_owner(text: str) -> str:
    fields = text.split()
    return f"host {fields[0]}, pid {fields[1]}" if len(fields) >= 3 else "an unknown process"
