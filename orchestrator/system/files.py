"""Atomic writes, private folders and reads of regular files only."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4

from orchestrator.errors import DiskFullError, UsageError

PRIVATE = 0o700
NAME_LENGTH = 40  # of a file's name that its temporary file shows: a name has 255 bytes at most
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file. DiskFullError if it does not fit on the disk."""
    with translating_disk_full(path.parent):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_file(path: Path, content: bytes | str) -> None:
    """Replace a file atomically: a reader gets the old content or the new, never a part.

    Processes may replace the same file at once: each writes a temporary file of its own.
    """
    temporary = path.with_name(f".{path.name[:NAME_LENGTH]}.{os.getpid()}-{uuid4().hex}.new")
    try:
        write_file(temporary, content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def check_can_write(path: Path, *, option: str = "--out") -> None:
    """Raise UsageError for a file of an option that cannot be written: before the work, not after it."""
    with naming_file(path, option=option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=path.parent):
            pass


@contextmanager
def naming_file(path: Path, *, option: str = "--out") -> Iterator[None]:
    """Turn an OSError within the block into a UsageError that names the file and its option."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{option} {path}: {reason}; name a file that can be written") from error


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone; an existing one is closed to other users."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        folder.chmod(PRIVATE)


@contextmanager
def translating_disk_full(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full disk or quota within the block into DiskFullError, with the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"no room is left in {folder}: {error.strerror}") from error


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


def open_regular(path: Path, *, follow_links: bool) -> BinaryIO:
    """Open a regular file for reading. OSError for anything else, with what it is instead.

    What the path names may change between two calls: the open file itself is checked again.
    """
    _check_regular(os.stat(path, follow_symlinks=follow_links).st_mode, path)  # opening a device may act
    link = 0 if follow_links else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | link)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, at_most: int, follow_links: bool = True) -> bytes:
    """Return the bytes of a file, or one more than `at_most` of a longer one. OSError if not regular."""
    with open_regular(path, follow_links=follow_links) as file:
        # First as much as there is: Python takes memory for all that is asked for, which costs by the page.
        size = size_of(file)
        content = file.read(min(size, at_most) + 1)
        if len(content) > size:  # it grows, or is of a file system that knows no sizes
            content += file.read(at_most + 1 - len(content))
        return content


def size_of(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and no regular file", str(path))
