"""Paths of one's own data: relative to the space file where they are written, to the current folder after.

`path=photos` in `spaces/pets.yaml` is `spaces/photos`. It is recorded by its path from the current folder, so
that runs hold no path of a machine, and later commands from the same folder find it. An absolute path stays
as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from pruning import own_code

_workers_folder: Path | None = None


def recorded(written: str) -> str:
    """Return the path as it stands in keys and params. ValueError for a text that is no path."""
    if not written or "\0" in written:
        raise ValueError(f"{written!r:.80} is no path")
    expanded = os.path.expanduser(written)
    if os.path.isabs(expanded):
        return os.path.normpath(expanded)
    return Path(os.path.relpath(own_code.base_folder() / expanded, base())).as_posix()


def absolute(path: str) -> Path:
    """Return where a recorded path lies on this machine."""
    return Path(os.path.normpath(base() / os.path.expanduser(path)))


def base() -> Path:
    """Return the folder that recorded paths start from: the current one, or that of a worker's sweep."""
    return _workers_folder or Path.cwd()


def set_base(folder: str) -> None:
    """Let recorded paths start from the folder of the sweep whose tasks run here; "" changes nothing."""
    global _workers_folder
    if folder:
        _workers_folder = Path(folder)


def is_worker() -> bool:
    """Whether this process runs tasks of a sweep that was planned in another."""
    return _workers_folder is not None
