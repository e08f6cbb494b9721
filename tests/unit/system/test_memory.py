"""The peak of a block is what it took; what is freed is there again, without a page fault a piece."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import forked
import pytest
import torch

from orchestrator.system import memory
from orchestrator.system.memory import disable_malloc_trim, peak_memory

MB = 1_000_000
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")


def taken(count: int, megabytes: float) -> int:
    """The peak of a block that fills `count` tensors and frees them."""
    peak = peak_memory("cpu")
    tensors = [torch.ones(int(megabytes * MB / 4)) for _ in range(count)]
    del tensors
    found = peak()
    assert found is not None
    return found


@on_linux
def test_an_allocation_is_seen_after_it_is_freed() -> None:
    assert 190 * MB < taken(1, 200) < 300 * MB
    assert taken(1, 1) < 100 * MB  # and not in the next block


# 80 MB in blocks that are not given back by themselves, twice.
SMALL_BLOCKS = """
import torch
from orchestrator.system.memory import peak_memory
for _ in range(2):
    peak = peak_memory("cpu")
    tensors = [torch.ones(10_000) for _ in range(2000)]
    del tensors
    print(peak())
"""


@on_linux
def test_small_blocks_are_seen_in_a_process_that_has_freed_as_many_before(tmp_path: Path) -> None:
    """In a process of its own: other tests set how much freed memory this one retains."""
    done = forked.python(SMALL_BLOCKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 60 * MB


def test_where_no_peak_is_kept_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert peak_memory("cpu")() is None
    (tmp_path / "clear_refs").write_text("")
    (tmp_path / "status").write_text("Name:\tpython\n")
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    assert peak_memory("cpu")() is None


@pytest.mark.gpu
def test_the_gpu_tells_what_was_allocated() -> None:
    peak = peak_memory("cuda")
    block = torch.ones(50 * MB, device="cuda")
    del block
    found = peak()
    assert found is not None
    assert found >= 200 * MB


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
