"""How long a stopped sweep waits for its workers: one in a long epoch hears of the stop only at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import psutil

from orchestrator.launching.interruption import received

GRACE_SECONDS = 1.5  # for workers to close their runs; Tune would give them 10
LOOK_SECONDS = 0.25
# The name of a process that runs a function for Tune. No others are killed: with one of Ray's agents the
# node goes, and with the node this process.
TRIAL = "ray::ImplicitFunc"


@contextmanager
def impatient() -> Iterator[None]:
    """Within the block, workers below this process that outlive a signal by `GRACE_SECONDS` are killed."""
    done = Event()
    thread = Thread(target=_watch, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(done: Event) -> None:
    while not done.wait(LOOK_SECONDS):
        if received():
            if not done.wait(GRACE_SECONDS):
                _kill_trials()
            return


def _kill_trials() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if TRIAL in " ".join(child.cmdline()):
                child.kill()
