"""Watch Ray and its workers while a sweep waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import psutil

from orchestrator.errors import ClusterError
from orchestrator.execution.ray_session_folder import kill_ray_processes
from orchestrator.system.signals import close_all, received_signal, shown_cursor

LOOK_SECONDS = 0.25
GRACE_SECONDS = 1.5  # for workers to close their runs once a sweep is stopped; Tune would give them 10
# The name of a process that runs a function for Tune. No others are killed: with one of Ray's agents the
# node goes, and with the node this process.
TRIAL = "ray::ImplicitFunc"


@dataclass
class _State:
    """Tune pickles what it is given, and the sweep may run in a Ray that was started before it."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


_state = _State()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """If a process of which `watch` was told dies within the block, this one ends with exit code 4.

    What else of Ray runs in the session's `folder` is killed before.
    """
    with _in_thread(lambda done: _end_with_ray(done, folder)):
        try:
            yield
        finally:
            forget()


@contextmanager
def kill_stragglers() -> Iterator[None]:
    """Within the block, workers below this process that outlive a signal by `GRACE_SECONDS` are killed."""
    with _in_thread(_end_workers):
        yield


@contextmanager
def _in_thread(look: Callable[[Event], None]) -> Iterator[None]:
    """`look` runs until the block ends, which the event tells it."""
    done = Event()
    thread = Thread(target=look, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def watch(name: str, process: subprocess.Popen[bytes]) -> None:
    """Look after a process of Ray's, too."""
    _state.processes[name] = process


def forget() -> None:
    """Ray is shut down, and its processes with it."""
    _state.processes = {}


def death() -> str:
    """Which process of our own Ray has died, in one line; nothing while all live."""
    for name, process in list(_state.processes.items()):
        if (code := process.poll()) is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"Ray died; the same command carries on (its {name}, pid {process.pid}, {how})"
    return ""


def _end_with_ray(done: Event, folder: Path) -> None:
    while not done.wait(LOOK_SECONDS):
        if why := death():
            kill_ray_processes(folder)
            close_all(why)
            sys.stdout.flush()
            os.write(2, f"{shown_cursor()}error: {why}\n".encode())
            os._exit(ClusterError.exit_code)


def _end_workers(done: Event) -> None:
    while not done.wait(LOOK_SECONDS):
        if received_signal():
            if not done.wait(GRACE_SECONDS):
                _kill_trials()
            return


def _kill_trials() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if TRIAL in " ".join(child.cmdline()):
                child.kill()
