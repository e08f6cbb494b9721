"""The most memory that something took while it ran."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # to clear_refs: the peak resident set is the present one (proc(5), Linux 4.0)


def peak_memory(device: str) -> Callable[[], int | None]:
    """Watch from now on; what comes back tells the peak so far in bytes, or None where nothing can.

    `cpu`: the largest resident set of the process, above the one at the start; on Linux alone. `cuda`:
    the most that torch had allocated on its current GPU, what was there at the start included.
    """
    if device == "cuda":
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
