"""A session of Ray: the private folder for its temporary files, and a watch over its processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import sleep, time

import psutil
from filelock import FileLock, Timeout

from orchestrator.errors import ClusterError
from orchestrator.system.signals import SignalHandler, shown_cursor

PREFIX = "orchestrate-"
UNLOCKED = f".{PREFIX}"  # of a folder whose lock is not held yet
UNLOCKED_SECONDS = 60.0  # after which a folder that never got its lock belongs to a dead process
LOCK, RAY, SESSION = "lock", "r", "s"  # Ray's folder, and the session in it
WORKERS = "t"  # for temporary files of workers
LONGEST_SOCKET = 107  # bytes of a UNIX socket's path
BELOW_TEMPORARY = len(f"/{PREFIX}12345678/{RAY}/{SESSION}/sockets/plasma_store")
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.1
SHARED_MEMORY = Path("/dev/shm")

POLL_SECONDS = 0.25
GRACE_SECONDS = 1.5  # for workers to close their runs once a sweep is stopped; Tune would give them 10
# The name of a process that runs a function for Tune. No others are killed: if one of Ray's agents ends,
# the node ends, and this process with it.
TRIAL_PROCESS = "ray::ImplicitFunc"


@contextmanager
def session_folder(signals: SignalHandler) -> Iterator[Path]:
    """Hold a new folder of mode 0700; folders of dead processes are removed first. OSError."""
    remove_dead()
    folder = Path(tempfile.mkdtemp(prefix=UNLOCKED, dir=_temporary_folder()))
    try:
        with FileLock(folder / LOCK, blocking=False, thread_local=False):
            # The lock stays with the file: nobody sees the folder under its name without one.
            folder = folder.rename(folder.with_name(folder.name.removeprefix(".")))
            with signals.closing_at_end(lambda reason: _remove(folder)):
                yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, again and again: Ray's processes write into it as they end."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        sleep(SECONDS_BETWEEN_TRIES)


def remove_dead() -> list[Path]:
    """Remove this user's session folders whose processes are dead, and return them."""
    return [folder for folder in _user_folders() if _remove_if_dead(folder)]


def _user_folders() -> Iterator[Path]:
    with suppress(OSError), os.scandir(_temporary_folder()) as entries:
        for entry in entries:
            if entry.name.startswith((PREFIX, UNLOCKED)) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                        yield Path(entry.path)


def _remove_if_dead(folder: Path) -> bool:
    try:
        if folder.name.startswith(UNLOCKED) and time() - folder.stat().st_mtime < UNLOCKED_SECONDS:
            return False
        if not folder.name.startswith(UNLOCKED) and not (folder / LOCK).is_file():
            return False  # not a session folder
        with FileLock(folder / LOCK, blocking=False):
            kill_ray_processes(folder)  # Ray's agent outlives a killed driver by a minute
            shutil.rmtree(folder)
    except (Timeout, OSError):
        return False
    return True


def _temporary_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def kill_ray_processes(folder: Path) -> None:
    """Kill Ray's processes of this session, whatever their parent is: each has a log in its folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            files = [] if process.pid == os.getpid() else process.open_files()
            if any(Path(file.path).is_relative_to(folder / RAY) for file in files):
                process.kill()


def check_temporary_folder() -> None:
    """Raise OSError, with what to do, if Ray cannot put its sockets or its shared memory anywhere."""
    folder = _temporary_folder()
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} cannot be written; set TMPDIR to a folder that can be")
    if len(os.fsencode(folder)) + BELOW_TEMPORARY > LONGEST_SOCKET:
        raise OSError(f"the path {folder} is too long for Ray's sockets; set TMPDIR=/tmp")
    if SHARED_MEMORY.is_dir() and not os.access(SHARED_MEMORY, os.W_OK):
        raise OSError(
            f"{SHARED_MEMORY} cannot be written, and Ray shares memory there; mount it for writing, for "
            "instance `mount -o remount,rw /dev/shm`, or `docker run --tmpfs /dev/shm:rw,size=1g`"
        )


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
    for name, process in list(_state.processes.items()):  # a copy: as Ray starts, another thread adds to it
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
            # No exception: the main thread may be within Ray, where one would become another error.
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
