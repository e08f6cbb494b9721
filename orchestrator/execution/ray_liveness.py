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
from orchestrator.system.signals import SignalHandler, shown_cursor

POLL_SECONDS = 0.25
GRACE_SECONDS = 1.5  # for workers to close their runs once a sweep is stopped; Tune would give them 10
# The name of a process that runs a function for Tune. No others are killed: if one of Ray's agents ends,
# the node ends, and this process with it.
TRIAL_PROCESS = "ray::ImplicitFunc"


@dataclass
class _State:
    """The processes of our own Ray: the sweep may run in a Ray that was started before it."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


_state = _State()


@contextmanager
def watched(folder: Path, signals: SignalHandler) -> Iterator[None]:
    """End this process with exit code 4 if a process passed to `watch` dies within the block.

    The other processes of Ray in the session's `folder` are killed first.
    """
    with _in_thread(lambda done: _end_with_ray(done, folder, signals)):
        try:
            yield
        finally:
            forget()


@contextmanager
def kill_stragglers(signals: SignalHandler) -> Iterator[None]:
    """Kill workers below this process that outlive a signal within the block by `GRACE_SECONDS`."""
    with _in_thread(lambda done: _end_workers(done, signals)):
        yield


@contextmanager
def _in_thread(target: Callable[[Event], None]) -> Iterator[None]:
    """Run `target` in a thread; its event is set when the block ends."""
    done = Event()
    thread = Thread(target=target, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def watch(name: str, process: subprocess.Popen[bytes]) -> None:
    """Watch a process of Ray's, too."""
    _state.processes[name] = process


def forget() -> None:
    """Stop watching: Ray is shut down, and its processes with it."""
    _state.processes = {}


def death() -> str:
    """Return one line that says which process of our own Ray has died, or nothing if all live."""
    for name, process in list(_state.processes.items()):
        if (code := process.poll()) is not None:
            cause = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            return f"Ray died; the same command carries on (its {name}, pid {process.pid}, {cause})"
    return ""


def _end_with_ray(done: Event, folder: Path, signals: SignalHandler) -> None:
    while not done.wait(POLL_SECONDS):
        if reason := death():
            kill_ray_processes(folder)
            signals.close_all(reason)
            sys.stdout.flush()
            os.write(2, f"{shown_cursor()}error: {reason}\n".encode())
            os._exit(ClusterError.exit_code)


def _end_workers(done: Event, signals: SignalHandler) -> None:
    while not done.wait(POLL_SECONDS):
        if signals.received:
            if not done.wait(GRACE_SECONDS):
                _kill_trials()
            return


def _kill_trials() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if TRIAL_PROCESS in " ".join(child.cmdline()):
                child.kill()
