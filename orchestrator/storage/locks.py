"""File locks, and the process that owns a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import psutil

from orchestrator.errors import StoreError
from orchestrator.storage.uri import store_folder

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def owner() -> str:
    """Return a text that identifies this process, for `is_owner_alive` in another process.

    It holds the host, the pid and the start time; on Linux also the boot id and the start in clock ticks
    since the boot, which no change of the clock moves.
    """
    return _describe_process(os.getpid())  # by pid, so that a forked process does not get its parent's


@lru_cache(maxsize=1)
def _describe_process(pid: int) -> str:
    return (
        f"{socket.gethostname()} {pid} {psutil.Process(pid).create_time():.2f} {_start_ticks(pid)}".rstrip()
    )


def is_on_this_host(text: str) -> bool:
    """Whether an owner is, or was, a process of this host."""
    return text.partition(" ")[0] == socket.gethostname()


def is_owner_alive(text: str) -> bool:
    """Return False only if the owner was on this host and has ended; other hosts' count as alive."""
    fields = text.split()
    if len(fields) not in (3, 4) or fields[0] != socket.gethostname():
        return True
    pid = int(fields[1])
    if len(fields) == 4:
        return _start_ticks(pid) == fields[3]
    try:
        return abs(psutil.Process(pid).create_time() - float(fields[2])) < 1
    except psutil.Error:
        return False


def _start_ticks(pid: int) -> str:
    """Return the boot id, and the start in ticks since the boot; empty for no process, or no Linux."""
    try:
        # The program's name, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{BOOT_ID.read_text()[:8]}-{fields[19]}"
    except OSError:
        return ""


@contextmanager
def store_lock(uri: str, name: str, *, seconds: float, error: type[StoreError]) -> Iterator[None]:
    """Hold the lock file `name` of a SQLite store's folder; raise `error` after `seconds` without it.

    A store on a server has no lock.
    """
    from filelock import FileLock, Timeout

    folder = store_folder(uri)
    if folder is None:
        yield
        return
    lock = FileLock(folder / name, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as timeout:
        raise error(f"{lock.lock_file} has been held for {seconds:.0f} s; try again") from timeout
    try:
        yield
    finally:
        lock.release()
