"""Memory: its peak, copies to a GPU and what may not fit, malloc trimming, garbage-collection thresholds."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# As for gc.set_threshold: new objects between two collections, and collections between deeper ones.
DEFAULT_THRESHOLDS = (700, 10, 10)
INFREQUENT_THRESHOLDS = (100_000, 20, 100)
# Of a GPU's memory: what a process has before any tensor, which torch does not count.
CONTEXT_BYTES = 640 << 20


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Collect garbage rarely within the block.

    Imports and pages of runs make hundreds of thousands of small objects that stay. Looking through them
    again and again took a sixth of all importing, and three fifths of reading 10,000 runs.
    """
    with _gc_thresholds(INFREQUENT_THRESHOLDS):
        yield


@contextmanager
def default_gc() -> Iterator[None]:
    """Collect garbage as Python does by default, but only among objects made within the block.

    At the end of the block everything is collected.
    """
    gc.freeze()
    try:
        with _gc_thresholds(DEFAULT_THRESHOLDS):
            yield
    finally:
        gc.collect()  # before the memory of what comes next is added to it


@contextmanager
def _gc_thresholds(thresholds: tuple[int, int, int]) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)


# What libraries say where memory runs out. cuBLAS and cuDNN cannot start without memory for their own.
ALLOCATION_ERRORS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_ERRORS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def limit_gpu_memory(share: float) -> None:
    """Let this process allocate its share of its GPU's memory and no more: other trials have the rest."""
    if share >= 1:
        return
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share / 2, share - CONTEXT_BYTES / total))


PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # to clear_refs: the peak resident set is the present one (proc(5), Linux 4.0)


def peak_memory(device: str) -> Callable[[], int | None]:
    """Start watching memory, and return a function that returns the peak so far, in bytes.

    `cpu`: the largest resident set of the process, less that at the start; None if this is not Linux.
    `cuda`: the most that torch had allocated on its current GPU, with what it had at the start.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    before = _reset()
    return lambda: None if before is None else max(0, _resident("VmHWM") - before)


def _reset() -> int | None:
    """Reset the peak to the present resident set, and return it in bytes; None if that cannot be done."""
    try:
        _trim()
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
        return _resident("VmRSS")
    except (OSError, StopIteration):  # no such files, not ours to write, or another kernel's
        return None


def _trim() -> None:
    """Return freed memory to the system: it would hide what is allocated next."""
    if PROCESS.exists() and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc alone has it
        trim(0)


def _resident(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEEP_BYTES = 1 << 30
LARGEST_BYTES = 32 << 20  # the most that glibc takes; what is larger always comes from the system


def disable_malloc_trim() -> None:
    """Let this process keep up to a gigabyte of memory that it frees. Only glibc can do that.

    Left alone, glibc returns the gradients at every step, and fetching them back is a page fault for every
    4 KB: a tenth of an mlp's step where faults are dear. No bit of a result depends on it.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU by way of pinned memory, without a wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # torch keeps pinned memory until the copy is over, and uses it again.
    return tensor.pin_memory().to(device, non_blocking=True)


def moved_if_it_fits(move: Callable[[], Tensor]) -> Tensor | None:
    """Return what `move` returns; None where a GPU's memory does not hold it: batches have the same bits."""
    try:
        return move()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None
