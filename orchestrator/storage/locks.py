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

BOOT = Path("/proc/sys/kernel/random/boot_id")


def owner() -> str:
    """This process, so that another can tell whether it still lives.

    Host, pid, when it began by the clock, and on Linux also what no clock moves: the boot and the tick in it.
    """
    return _owner(os.getpid())


@lru_cache(maxsize=1)
def _owner(pid: int) -> str:
    return (
        f"{socket.gethostname()} {pid} {psutil.Process(pid).create_time():.2f} {_start_ticks(pid)}".rstrip()
    )


def is_on_this_host(text: str) -> bool:
    """Whether an owner is, or was, a process of this host."""
    return text.partition(" ")[0] == socket.gethostname()


def is_owner_alive(text: str) -> bool:
    """False only where the owner was on this host and is gone; another host's is taken to live."""
    parts = text.split()
    if len(parts) not in (3, 4) or parts[0] != socket.gethostname():
        return True
    pid = int(parts[1])
    if len(parts) == 4:
        return _start_ticks(pid) == parts[3]
    try:
        return abs(psutil.Process(pid).create_time() - float(parts[2])) < 1
    except psutil.Error:
        return False


def _start_ticks(pid: int) -> str:
    """When a process began, in ticks since the boot of its machine; empty if it is gone, or not on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{BOOT.read_text()[:8]}-{fields[19]}"
    except OSError:
        return ""


@contextmanager
def store_lock(uri: str, name: str, *, seconds: float, error: type[StoreError]) -> Iterator[None]:
    """Hold the lock `name` for the block; `error` is raised if it is held elsewhere for `seconds`.

    For a store elsewhere nothing is held.
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
