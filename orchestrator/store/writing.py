"""The one function that writes the files of a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DiskFullError

PRIVATE = 0o700
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


def make_private(folder: Path) -> None:
    """A folder for its owner alone; one of before, which others could read, is closed to them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        folder.chmod(PRIVATE)


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """DiskFullError, which names the folder, for a disk or a quota that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"no room is left in {folder}: {error.strerror}") from error
