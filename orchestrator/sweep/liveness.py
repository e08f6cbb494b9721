"""Whether the Ray that this process has started lives: where its raylet or its GCS dies, the sweep ends.

Tune waits for a dead raylet for ever, and Ray's C++ for a dead GCS for a minute, in calls that hear of no
signal and no exception. So the thread that sees the death closes what is open, and ends the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from orchestrator.errors import ClusterError
from orchestrator.launching.interruption import close_all, shown_cursor
from orchestrator.sweep.session_folder import kill_processes

LOOK_SECONDS = 0.25


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
    done = Event()
    thread = Thread(target=_look, args=(done, folder), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        forget()


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


def _look(done: Event, folder: Path) -> None:
    while not done.wait(LOOK_SECONDS):
        if why := death():
            kill_processes(folder)
            close_all(why)
            sys.stdout.flush()
            os.write(2, f"{shown_cursor()}error: {why}\n".encode())
            os._exit(ClusterError.exit_code)
