"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 1 << 30
LARGEST_BYTES = 32 << 20  # the most that glibc takes; what is larger always comes from the system


def keep_freed_memory() -> None:
    """Let this process keep up to a gigabyte of what it frees; where the C library is not glibc, nothing.

    Left alone, glibc returns the gradients at every step, and fetching them back is a page fault for every
    4 KB: a tenth of an mlp's step where faults are dear. No bit of a result depends on it.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
