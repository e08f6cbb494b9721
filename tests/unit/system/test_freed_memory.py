"""Freed memory: what is freed is there again, without a page fault for every piece of it."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from orchestrator.system.memory import disable_malloc_trim

TENSOR = 4_000_000  # numbers, 16 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator")
def test_what_is_freed_is_not_fetched_again() -> None:
    disable_malloc_trim()
    faults = [_faults() for _ in range(6)]
    pages = 4 * TENSOR * 4 // resource.getpagesize()
    assert min(faults[1:]) < pages / 10


def _faults() -> int:
    """Of four tensors that are written and freed together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(TENSOR) for _ in range(4)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
