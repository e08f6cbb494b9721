"""One process at a time, where the store's folder is on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from orchestrator.errors import StoreError
from orchestrator.store.address import store_folder


@contextmanager
def alone(uri: str, name: str, *, seconds: float, otherwise: type[StoreError]) -> Iterator[None]:
    """Hold the lock `name` for the block; `otherwise` is raised if others have it all those seconds.

    For a store elsewhere nothing is held.
    """
    folder = store_folder(uri)
    if folder is None:
        yield
        return
    lock = FileLock(folder / name, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise otherwise(f"{lock.lock_file} has been held for {seconds:.0f} s; try again") from error
    try:
        yield
    finally:
        lock.release()
