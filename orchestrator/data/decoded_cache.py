"""Images that are decoded from files: each set once, into a file of the data folder; small ones into memory.

The file's name is a digest of the set (where it lies, how it is decoded) and one of its files: their names,
sizes and times of change. A set of which anything has changed is decoded anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.decoded_files import Decoded, Facts, Fill, Shape, decode_into_memory, load_or_decode
from orchestrator.data.sources.base import FLOAT_BYTES, check_fits
from orchestrator.errors import DataError, DiskFullError
from orchestrator.system.console import drawn_on, plain
from orchestrator.system.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
RULES = 2  # of decoding; raised where they change, so that what was decoded by older ones is not used
FOLDER = "decoded"  # below the data folder
SMALL_BYTES = 50_000_000  # of pixels, which every process may hold,
QUICK_BYTES = 16_000_000  # if decoding these bytes of files takes about a second
TICK_SECONDS = 0.02  # of the times of files: a later change within one is not seen
BLOCKS = 4  # of memory that Pillow keeps for each thread: as decoded, turned, resized
TOGETHER = 8  # images of a task: handing over each costs a twentieth of decoding a small one


def read_decoded(
    files: Callable[[], Sequence[Path]],
    *,
    set_name: Mapping[str, object],
    shape: Shape,
    fill: Fill,
    data_folder: Path,
    name: str,
) -> Decoded:
    """Return what `fill` decodes of some files (see `load_or_decode`), decoded before where it can be.

    `set_name` is JSON: where the set lies, and all options that decide its pixels. DataError where the files
    change meanwhile, or a small set does not fit into memory.
    """
    before = files()
    if prod(shape) <= SMALL_BYTES and sum(_status(file).st_size for file in before) <= QUICK_BYTES:
        check_fits(name, prod(shape))
        return decode_into_memory(shape, fill)
    _wait_for_a_tick(before)
    content = _content(before)

    def fill_unchanged(pixels: NDArray[np.uint8]) -> Facts:
        facts = fill(pixels)
        if _content(files()) != content:
            raise DataError(f"{name}: its files changed while they were read; leave them, and start again")
        return facts

    key = decoded_key(set_name, content)
    return load_or_decode(data_folder / FOLDER, key, shape=shape, fill=fill_unchanged, name=name)


def read_shared(
    files: Sequence[Path],
    *,
    set_name: Mapping[str, object],
    shape: Shape,
    fill: Fill,
    data_folder: Path,
    name: str,
) -> Decoded:
    """Return what `fill` copies out of files that are read quickly: of a large set from a decoded file.

    So that the processes of a machine share its pages. A set that is trained on as floats is in memory in any
    case, and a large one where the data folder is read-only or full.
    """
    if 4 * prod(shape) > FLOAT_BYTES and is_writable(data_folder):
        with suppress(DiskFullError):
            return read_decoded(
                lambda: files, set_name=set_name, shape=shape, fill=fill, data_folder=data_folder, name=name
            )
    check_fits(name, prod(shape))
    return decode_into_memory(shape, fill)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest that is there."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return os.access(there, os.W_OK)


def decoded_key(set_name: Mapping[str, object], content: str) -> str:
    """Return the name of a decoded file from JSON that names its set, and a digest of the set's content."""
    return f"{set_digest(set_name)}-{content[:32]}"


def set_digest(set_name: Mapping[str, object]) -> str:
    """Return how the names of all decoded files of a set begin."""
    return sha256(json.dumps(set_name, sort_keys=True).encode()).hexdigest()[:16]


def _content(files: Sequence[Path]) -> str:
    """Return the digest of the names, sizes and times of files, and of what decodes them.

    The time of the last change of the inode is among them, which no program sets back.
    """
    import PIL

    digest = sha256(f"{RULES} {PIL.__version__}".encode())
    for file in sorted(files, key=os.fsencode):
        status = _status(file)
        stamp = [os.fsencode(file).hex(), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        digest.update(json.dumps(stamp).encode())
    return digest.hexdigest()


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def _wait_for_a_tick(files: Sequence[Path]) -> None:
    """Wait until any later change of a file has another time than its last one."""
    age = time.time() - max((_status(file).st_ctime for file in files), default=0.0)
    if 0 <= age < TICK_SECONDS:
        time.sleep(TICK_SECONDS - age)


def in_order(
    function: Callable[[int, Item], Result], items: Sequence[Item], *, name: str
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with function(position, item), in order; a thread of each core is a little ahead.

    On a terminal a bar shows how far it is.
    """
    numbered = list(enumerate(items))
    blocks = [numbered[start : start + TOGETHER] for start in range(0, len(items), TOGETHER)]
    pending: deque[Future[list[tuple[Item, Result]]]] = deque()

    from orchestrator.data.image_decoding import reused_memory

    def work(block: Sequence[tuple[int, Item]]) -> list[tuple[Item, Result]]:
        return [(item, function(position, item)) for position, item in block]

    def oldest() -> list[tuple[Item, Result]]:
        results = pending.popleft().result()
        advance(len(results))
        return results

    threads = cores()
    with (
        progress_bar(name, len(items)) as advance,
        reused_memory(BLOCKS * threads),
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for block in blocks:
                pending.append(pool.submit(work, block))
                if len(pending) > 2 * threads:
                    yield from oldest()
            while pending:
                yield from oldest()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal within the block; yields the function that moves it on."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=drawn_on(sys.stderr))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"decoding {plain(name).markup}", total=total)
        yield lambda count: progress.advance(task, count)
