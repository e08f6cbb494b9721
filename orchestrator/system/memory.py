"""Peak memory, malloc trimming and garbage-collection thresholds."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Objects made between two looks, and looks between deeper ones.
USUALLY = (700, 10, 10)
RARELY = (100_000, 20, 100)


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Garbage is looked for rarely within the block.

    What imports and pages of runs make are hundreds of thousands of small objects that stay. Looking
    through them again and again took a sixth of all importing, and three fifths of reading 10,000 runs.
    """
    with _every(RARELY):
        yield


@contextmanager
def default_gc() -> Iterator[None]:
    """Within such a block: as Python does by itself, but never in what is there by now; at its end, all."""
    gc.freeze()
    try:
        with _every(USUALLY):
            yield
    finally:
        gc.collect()  # before the memory of what comes next is added to it


@contextmanager
def _every(counts: tuple[int, int, int]) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*counts)
    try:
        yield
    finally:
        gc.set_threshold(*before)


PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # to clear_refs: the peak resident set is the present one (proc(5), Linux 4.0)


def peak_memory(device: str) -> Callable[[], int | None]:
    """Watch from now on; what comes back tells the peak so far in bytes, or None where nothing can.

    `cpu`: the largest resident set of the process, above the one at the start; on Linux alone. `cuda`:
    the most that torch had allocated on its current GPU, what was there at the start included.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    before = _reset()
    return lambda: None if before is None else max(0, _resident("VmHWM") - before)


def _reset() -> int | None:
    """Set the peak back to the present resident set, in bytes; None where that cannot be done."""
    try:
        _give_back()
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
        return _resident("VmRSS")
    except (OSError, StopIteration):  # no such files, not ours to write, or another kernel's
        return None


def _give_back() -> None:
    """Return freed memory to the system, where it would hide what is taken next."""
    if PROCESS.exists() and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc alone has it
        trim(0)


def _resident(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 1 << 30
LARGEST_BYTES = 32 << 20  # the most that glibc takes; what is larger always comes from the system


def disable_malloc_trim() -> None:
    """Let this process keep up to a gigabyte of what it frees; where the C library is not glibc, nothing.

    Left alone, glibc returns the gradients at every step, and fetching them back is a page fault for every
    4 KB: a tenth of an mlp's step where faults are dear. No bit of a result depends on it.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
