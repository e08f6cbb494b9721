"""The folder with the files of published data sets."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_CURRENT: ContextVar[Path | None] = ContextVar("data folder of a call or a worker", default=None)


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
