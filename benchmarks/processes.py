"""A command with everything that it starts: how long it takes, and the CPU time of all its processes."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep

import psutil

from benchmarks.harness import Done

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what loses its parent becomes a child of this process
LOOK_SECONDS = 0.1
Stamp = tuple[int, float]  # a process's id, and when it started


def command(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None, code: int = 0
) -> tuple[str, Done]:
    """What it said on stdout, and its wall and CPU seconds: `seconds`, `cpu`. RuntimeError if it fails.

    A process that its parent does not wait for, as those of Ray are not, is counted up to when it was last
    looked at: 0.1 s before its end at the most.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    before, started = _waited(), perf_counter()
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as errors:
        own = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **(environment or {})}, stdout=out, stderr=errors
        )
        lost = _watch(own)
        seconds = perf_counter() - started
        _collect()
        out.seek(0)
        errors.seek(0)
        if own.returncode != code:
            raise RuntimeError(f"{' '.join(words)}: exit {own.returncode}: {errors.read()[-2000:]}")
        cpu = max(_waited() - before, lost)
        return out.read(), Done(measures={"seconds": seconds, "cpu": cpu}, elsewhere=cpu)


def _watch(own: subprocess.Popen[bytes]) -> float:
    """Wait for the command; the CPU seconds of all that were seen below this process meanwhile."""
    seen: dict[Stamp, float] = {}
    here = psutil.Process()
    while own.poll() is None:
        for child in here.children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                seen[child.pid, child.create_time()] = times.user + times.system
        sleep(LOOK_SECONDS)
    return sum(seen.values())


def _collect() -> None:
    """Wait for what the command has left behind, such as daemons that are still ending."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _waited() -> float:
    """CPU seconds of the processes that were waited for below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def python(*words: str) -> list[str]:
    return [sys.executable, *words]
