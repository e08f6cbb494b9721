"""A command with everything that it starts: how long it takes, and the CPU time of all its processes.

    python -m benchmarks.processes orchestrate sweep --space quickstart

tells of each process when it was there, and what it took.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep, time
from typing import Any

import psutil

from benchmarks.harness import Done

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what loses its parent becomes a child of this process
LOOK_SECONDS = 0.1
LEAST_TOLD = 0.1  # CPU seconds
Stamp = tuple[int, float]  # a process's id, and when it started


@dataclass
class Seen:
    """A process as it was last looked at; times in seconds of the clock."""

    name: str
    began: float
    last: float
    cpu: float


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
        lost = sum(process.cpu for process in watch(own).values())
        seconds = perf_counter() - started
        _collect()
        out.seek(0)
        errors.seek(0)
        if own.returncode != code:
            raise RuntimeError(f"{' '.join(words)}: exit {own.returncode}: {errors.read()[-2000:]}")
        cpu = max(_waited() - before, lost)
        return out.read(), Done(measures={"seconds": seconds, "cpu": cpu}, elsewhere=cpu)


def watch(own: subprocess.Popen[Any]) -> dict[Stamp, Seen]:
    """Wait for the command; all processes that were seen below this one meanwhile."""
    seen: dict[Stamp, Seen] = {}
    here = psutil.Process()
    while own.poll() is None:
        for child in here.children(recursive=True):
            with suppress(psutil.Error):
                times, stamp = child.cpu_times(), (child.pid, child.create_time())
                name, now = " ".join(child.cmdline()).strip() or child.name(), time()
                first = seen[stamp].began if stamp in seen else now
                seen[stamp] = Seen(name, first, now, times.user + times.system)
        sleep(LOOK_SECONDS)
    return seen


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


def main() -> None:
    started = time()
    seen = watch(subprocess.Popen(sys.argv[1:])).values()
    print(f"{time() - started:.1f} s, CPU {sum(process.cpu for process in seen):.1f} s", file=sys.stderr)
    for process in sorted(seen, key=lambda process: -process.cpu):
        if process.cpu >= LEAST_TOLD:
            there = f"from {process.began - started:5.1f} to {process.last - started:5.1f}"
            print(f"{process.cpu:7.1f} s CPU, {there}: {process.name[:80]}", file=sys.stderr)


if __name__ == "__main__":
    main()
