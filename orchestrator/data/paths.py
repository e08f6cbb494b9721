"""Where data lie: the folder of published data sets, and paths of one's own.

Such a path is relative to the space file where it is written, to the current folder after: `path=photos` in
`spaces/pets.yaml` is `spaces/photos`. It is recorded by its path from the current folder, so that runs hold
no path of a machine, and later commands from the same folder find it. An absolute path stays as it is.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from pruning.user_code import own_code

P = ParamSpec("P")
R = TypeVar("R")
_CURRENT: ContextVar[Path | None] = ContextVar("data folder of a call or a worker", default=None)
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


def chosen_data_dir() -> Path | None:
    """Return ORCHESTRATE_DATA_DIR, absolute, if it is set. Nothing else reads that variable."""
    folder = os.environ.get("ORCHESTRATE_DATA_DIR")
    return Path(folder).expanduser().absolute() if folder else None


def default_data_dir() -> Path:
    """Return the folder that the environment sets, or else ~/.cache/orchestrate/data."""
    return chosen_data_dir() or Path.home() / ".cache" / "orchestrate" / "data"


def data_folder(data_dir: Path | None = None) -> Path:
    """Return the data folder, absolute; it need not exist."""
    return (data_dir or _CURRENT.get() or default_data_dir()).expanduser().absolute()


def set_data_folder(folder: str | None) -> None:
    """Let this worker's tasks read from a folder; None changes nothing."""
    if folder is not None and data_folder() != Path(folder):
        _CURRENT.set(Path(folder))


@contextmanager
def _reading_from(folder: Path | None) -> Iterator[None]:
    token = _CURRENT.set(folder or _CURRENT.get())
    try:
        yield
    finally:
        _CURRENT.reset(token)


def from_data_dir(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function in whose calls the data folder is that of its argument `data_dir`, if it has one.

    A source of data is made of the options in its text, and none of them is this folder.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        with _reading_from(signature.bind(*args, **keywords).arguments.get("data_dir")):
            return function(*args, **keywords)

    return call
