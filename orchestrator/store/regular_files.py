"""Opening what has to be a regular file: no FIFO is waited for, and no device is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


def open_regular(path: Path, *, follow_links: bool) -> BinaryIO:
    """A regular file, open for reading; OSError, which says what it is instead, for anything else.

    What the path names may change between two calls: the open file itself is looked at again.
    """
    _check(os.stat(path, follow_symlinks=follow_links).st_mode, path)  # opening a device can do something
    link = 0 if follow_links else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | link)
    try:
        _check(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, at_most: int, follow_links: bool = True) -> bytes:
    """Its bytes, or one more than `at_most` of a longer file. OSError for what is no regular file."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read(at_most + 1)


def size_of(file: BinaryIO) -> int:
    """The bytes that an open file has now."""
    return os.fstat(file.fileno()).st_size


def _check(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and no regular file", str(path))
