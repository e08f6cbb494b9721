"""The one function that writes the files of a run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT)


def write(path: Path, content: bytes | str) -> None:
    """A whole file; DiskFullError where there is no room for it."""
    with room_in(path.parent):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def rewrite(path: Path, content: bytes | str) -> None:
    """A file in place of the one before: whoever reads it finds the old one or the new one, whole."""
    aside = path.with_name(f".{path.name}.new")
    write(aside, content)
    aside.replace(path)


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """DiskFullError, which names the folder, for a disk or a quota that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"no room is left in {folder}: {error.strerror}") from error
