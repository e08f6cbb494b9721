"""The private folder for Ray's temporary files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep, time

import psutil
from filelock import FileLock, Timeout

from orchestrator.system.signals import SignalHandler

PREFIX = "orchestrate-"
UNLOCKED = f".{PREFIX}"  # of a folder whose lock is not held yet
UNLOCKED_SECONDS = 60.0  # after which a folder that never got its lock belongs to a dead process
LOCK, RAY, SESSION = "lock", "r", "s"  # Ray's folder, and the session in it
WORKERS = "t"  # for temporary files of workers
LONGEST_SOCKET = 107  # bytes of a UNIX socket's path
BELOW_TEMPORARY = len(f"/{PREFIX}12345678/{RAY}/{SESSION}/sockets/plasma_store")
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.1
SHARED_MEMORY = Path("/dev/shm")


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
