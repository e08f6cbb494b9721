"""Decoded images as a memory-mapped file of bytes: made once, shared by all processes of a machine.

A data set that takes long to decode, or does not fit into memory, is decoded into KEY.u8 (uint8 [N, C, H, W])
with KEY.json beside it (shape, and what its source says of it). Both are written aside and renamed, KEY.json
last: it says that the two are whole. The pages of the file are in the page cache once, whoever reads them.
Images are read by `pread`: to touch a mapped page of a file that was cut would end the process.
KEY is SET-CONTENT: files of the same SET with other CONTENT are of an earlier state, and are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import DataError, DiskFullError
from orchestrator.formatting import format_size
from orchestrator.system.console import print_line
from orchestrator.system.files import translating_disk_full

Shape = tuple[int, int, int, int]
Facts = dict[str, Any]  # JSON
Fill = Callable[[NDArray[np.uint8]], Facts]
LOCK = ".lock"  # suffix of the file by which one process decodes a key at a time
SPARE_BYTES = 100_000_000  # left free on the disk
WRITE_SECONDS = 0.5  # between two writings of what is decoded meanwhile
TRIES = 3  # of decoding into a folder that somebody removes


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A decoded file, held open: its name may soon be that of another one, or of none.

    `mtime_ns` is the time of its last change when it was made. Threads may read it together.
    """

    stream: BinaryIO
    shape: tuple[int, int, int, int]
    mtime_ns: int

    def is_unchanged(self) -> bool:
        status = os.fstat(self.stream.fileno())
        return (status.st_size, status.st_mtime_ns) == (prod(self.shape), self.mtime_ns)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `rows`; the same errors as `read_into`."""
        images = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        self.read_into(images.reshape(-1), rows)
        return images

    def read_into(self, content: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Read the images at `rows` into `content`, flat. DataError where the file has changed."""
        size, buffer, descriptor = prod(self.shape[1:]), content.data, self.stream.fileno()
        runs = np.flatnonzero(np.diff(rows) != 1) + 1  # images that lie one after another are read at once
        starts, ends = [0, *runs.tolist()], [*runs.tolist(), len(rows)]
        offsets = (rows[starts] * size).tolist() if len(rows) else []
        for start, end, offset in zip(starts, ends, offsets, strict=False):
            part = buffer[start * size : end * size]
            if (count := os.preadv(descriptor, [part], offset)) < len(part):
                self._read(part[count:], offset + count)
        if not self.is_unchanged():  # after: what another process wrote while it was read is not used
            self._refuse()

    def _read(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = os.preadv(self.stream.fileno(), [buffer], offset)
            if count == 0:
                self._refuse()
            buffer, offset = buffer[count:], offset + count

    def _refuse(self) -> None:
        raise DataError(
            f"{self.stream.name} was changed while it was in use, and is decoded again by the next run; "
            "leave the files in its folder as they are, and start again"
        )


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded data set: `pixels`, mapped read-only or in memory, and the source's `facts`.

    `file` is what mapped pixels are to be read from; None for those in memory.
    """

    pixels: NDArray[np.uint8]
    facts: Facts
    file: ImageFile | None = None


def decode_into_memory(shape: Shape, fill: Fill) -> Decoded:
    """Return what `fill` decodes, in the memory of this process."""
    pixels = np.empty(shape, dtype=np.uint8)
    facts = fill(pixels)
    return Decoded(pixels[: facts.pop("count", shape[0])], facts)


def load_or_decode(folder: Path, key: str, *, shape: Shape, fill: Fill, name: str) -> Decoded:
    """Return the decoded file of `key` (digests of files and options), made by `fill` where there is none.

    `fill` is called with an array of `shape` to write into, and returns JSON facts such as the labels; an
    entry `count` says that only so many images were written. A second process waits for the first. DataError
    of `fill` leaves nothing behind. DiskFullError, before anything is read, where the file does not fit.
    """
    if (decoded := load_decoded(folder, key)) is not None:
        return decoded
    for attempt in range(TRIES):
        try:
            decoded = _decode_or_wait(folder, key, shape=shape, fill=fill, name=name)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt + 1 < TRIES:
                continue  # the folder was removed meanwhile
            raise DataError(
                f"{name}: cannot write decoded images into {folder} ({error.strerror or error}); set "
                "ORCHESTRATE_DATA_DIR to a folder of your own"
            ) from error
        if decoded is not None:
            return decoded
    raise DataError(f"{name}: {folder / key}.u8 was removed while it was made; leave it there, and try again")


def _decode_or_wait(folder: Path, key: str, *, shape: Shape, fill: Fill, name: str) -> Decoded | None:
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}{LOCK}", name):
        if (decoded := load_decoded(folder, key)) is not None:
            return decoded
        _decode(folder, key, shape=shape, fill=fill, name=name)
        return load_decoded(folder, key)


def find_decoded(folder: Path, of_set: str) -> Iterator[tuple[str, Decoded]]:
    """Yield (key, decoded) of the whole files of a set, whatever their content."""
    for file in sorted(folder.glob(f"{of_set}-*.json")):
        if (decoded := load_decoded(folder, file.stem)) is not None:
            yield file.stem, decoded


def remove_decoded(folder: Path, key: str) -> None:
    """Remove the decoded file of a key, if it is there; who has it mapped keeps it."""
    for file in (folder / f"{key}.json", folder / f"{key}.u8"):
        with suppress(OSError):
            file.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    """Hold a lock within the block; on a terminal say what is waited for.

    Its file stays: whoever waits for one that is then removed would hold a lock beside the next one's.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if sys.stderr.isatty():
            print_line(f"{name}: another process decodes it; waiting", error=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def load_decoded(folder: Path, key: str) -> Decoded | None:
    """Return a whole decoded file, or None: also where its parts do not fit together, or were changed."""
    try:
        described = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        facts = described["facts"]
        shape, stream = tuple(described["shape"]), (folder / f"{key}.u8").open("rb")
        file = ImageFile(stream, shape, described["mtime_ns"])
        if described["facts_sha256"] != _facts_digest(facts) or not file.is_unchanged():
            return None
        return Decoded(np.memmap(stream, np.uint8, mode="r", shape=shape), facts, file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _decode(folder: Path, key: str, *, shape: Shape, fill: Fill, name: str) -> None:
    """Decode into a file and rename it; of leftovers and earlier states nothing stays."""
    _remove_others(folder, key)
    needed, free = prod(shape), shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise DiskFullError(
            f"{name}: {format_size(needed)} of decoded images do not fit into {folder}, which has "
            f"{format_size(free)} left; set ORCHESTRATE_DATA_DIR to a folder on a larger disk"
        )
    with TemporaryDirectory(dir=folder, prefix=f".{key}-") as temporary, translating_disk_full(folder):
        file, description = Path(temporary) / "images.u8", Path(temporary) / "facts.json"
        # Allocated at once: a disk that fills while pages of a sparse file are written ends in SIGBUS.
        with file.open("wb") as stream:
            _allocate(stream.fileno(), needed)
        pixels = np.memmap(file, np.uint8, mode="r+", shape=shape)
        with file.open("r+b") as stream:
            with _written_meanwhile(stream.fileno()):
                facts = fill(pixels)
            del pixels
            count = facts.pop("count", shape[0])
            stream.truncate(count * prod(shape[1:]))
            os.utime(stream.fileno())  # after the last page that the map has changed
            os.fsync(stream.fileno())  # else after a power cut a file would be as long as it should, of zeros
        described = {
            "facts": facts,
            "facts_sha256": _facts_digest(facts),
            "shape": [count, *shape[1:]],
            "mtime_ns": file.stat().st_mtime_ns,
        }
        description.write_text(json.dumps(described), encoding="utf-8")
        file.replace(folder / f"{key}.u8")
        description.replace(folder / f"{key}.json")


def _facts_digest(facts: Facts) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _remove_others(folder: Path, key: str) -> None:
    """Remove what a killed process left of this key, whose lock is held, and files of earlier states.

    Who has such a file mapped keeps it. Lock files stay: another process may hold one, or wait for it.
    """
    for leftover in folder.glob(f".{key}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    of_set = key.partition("-")[0]
    for file in folder.glob(f"{of_set}-*"):
        if file.stem != key and file.suffix != LOCK:
            file.unlink(missing_ok=True)


@contextmanager
def _written_meanwhile(descriptor: int) -> Iterator[None]:
    """Write a mapped file to the disk while the block changes it: at the end it would take as long again."""
    is_over = Event()

    def write() -> None:
        with suppress(OSError):  # the last writing of all says what is wrong
            while not is_over.wait(WRITE_SECONDS):
                os.fsync(descriptor)

    thread = Thread(target=write, name="write-decoded", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)
