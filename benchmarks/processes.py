"""Run a command and measure its wall time and the CPU time of all its processes.

    python -m benchmarks.processes orchestrate sweep --space four-techniques

prints the lifetime and CPU time of each process.
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

from benchmarks.harness import SideResult

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphaned processes become children of this process
POLL_SECONDS = 0.1
MIN_CPU_SECONDS = 0.1  # processes with less are not printed
Stamp = tuple[int, float]  # process id and start time


@dataclass
class ProcessUsage:
    """A process at the last poll; `began` and `last` are clock times in seconds."""

    name: str
    began: float
    last: float
    cpu: float


def run_command(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None, code: int = 0
) -> tuple[str, SideResult]:
    """Return the stdout of a command, and its wall and CPU time as the measures `seconds` and `cpu`.

    Processes that their parent does not wait for, such as Ray's, are counted up to the last poll, at most
    0.1 s before their end. Raises RuntimeError if the exit code is not `code`.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    before, started = _children_cpu_seconds(), perf_counter()
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **(environment or {})}, stdout=out, stderr=errors
        )
        polled = sum(usage.cpu for usage in watch_processes(process).values())
        seconds = perf_counter() - started
        _reap_children()
        out.seek(0)
        errors.seek(0)
        if process.returncode != code:
            raise RuntimeError(f"{' '.join(words)}: exit {process.returncode}: {errors.read()[-2000:]}")
        cpu = max(_children_cpu_seconds() - before, polled)
        return out.read(), SideResult(measures={"seconds": seconds, "cpu": cpu}, child_cpu_seconds=cpu)


def watch_processes(process: subprocess.Popen[Any]) -> dict[Stamp, ProcessUsage]:
    """Wait for a process; return the usage of every process below this one until then."""
    usages: dict[Stamp, ProcessUsage] = {}
    this_process = psutil.Process()
    while process.poll() is None:
        for child in this_process.children(recursive=True):
            with suppress(psutil.Error):
                times, stamp = child.cpu_times(), (child.pid, child.create_time())
                name, now = " ".join(child.cmdline()).strip() or child.name(), time()
                began = usages[stamp].began if stamp in usages else now
                usages[stamp] = ProcessUsage(name, began, now, times.user + times.system)
        sleep(POLL_SECONDS)
    return usages


def _reap_children() -> None:
    """Wait for processes that outlive the command, such as daemons that are still ending."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _children_cpu_seconds() -> float:
    """Return the CPU seconds of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def python_command(*words: str) -> list[str]:
    return [sys.executable, *words]


def main() -> None:
    started = time()
    usages = watch_processes(subprocess.Popen(sys.argv[1:])).values()
    print(f"{time() - started:.1f} s, CPU {sum(usage.cpu for usage in usages):.1f} s", file=sys.stderr)
    for usage in sorted(usages, key=lambda usage: -usage.cpu):
        if usage.cpu >= MIN_CPU_SECONDS:
            lifetime = f"from {usage.began - started:5.1f} to {usage.last - started:5.1f}"
            print(f"{usage.cpu:7.1f} s CPU, {lifetime}: {usage.name[:80]}", file=sys.stderr)


if __name__ == "__main__":
    main()
