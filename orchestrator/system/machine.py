"""Usable cores, GPUs, machine load and environment variables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import psutil


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, and restore them after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU a period, or max, and the period (cgroup v2)
# Of NVIDIA's driver, on a Jetson, under WSL; and of AMD's, which torch calls CUDA, too.
DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def cores() -> int:
    """Return the cores that this process may use: in a container or a batch job not all of the machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(usable, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or max
        return usable


def gpus() -> int:
    """Return the number of CUDA devices. torch is not imported if there is no driver for any."""
    if sys.platform == "linux" and not any(Path(file).exists() for file in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@dataclass(frozen=True)
class Card:
    """A GPU as its driver names it; `memory` in bytes, `is_divided` into instances (MIG) of less."""

    name: str
    memory: int
    is_divided: bool


CARD_FIELDS = "index,uuid,name,memory.total,mig.mode.current"
ASKING_SECONDS = 20.0  # a driver that no process has in use takes seconds to start


@cache
def cards() -> tuple[Card, ...]:
    """Return the NVIDIA GPUs that this process may use; nothing where the driver does not tell.

    Asked of `nvidia-smi`, a process of its own: torch would hold some of the first GPU's memory from then on.
    """
    command = ["nvidia-smi", f"--query-gpu={CARD_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS, check=True)
        rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return tuple(
            Card(name, int(mebibytes) << 20, mig == "Enabled")
            for index, uuid, name, mebibytes, mig in rows
            if visible is None or {index, uuid} & set(visible.split(","))
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def gpu_memory() -> int | None:
    """Return the bytes of the smallest GPU's memory, in whole gibibytes; None where that is not known."""
    known = cards()
    if not known or any(card.is_divided for card in known):
        return None
    return min(card.memory for card in known) >> 30 << 30


MAX_OTHERS = 0.1  # share of all cores that other processes may keep busy during a measurement
MAX_OTHERS_WHEN_LOADED = 0.05  # the same if the load average is above the number of cores
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are in `user` already


@dataclass(frozen=True)
class MachineLoad:
    """Load during a measurement: the last minute's average, and the cores that other processes kept busy.

    Time that a hypervisor took away counts as others'. The load average includes this process.
    """

    average: float
    others: float
    cores: int

    @property
    def busy(self) -> str:
        """Why the machine was too busy for a measurement, or nothing."""
        if self.others > MAX_OTHERS * self.cores:
            return f"other processes kept {self.others:.1f} of {self.cores} cores busy"
        # By itself the average may be that of a sweep that is over: it takes minutes to fall.
        if self.average > self.cores and self.others > MAX_OTHERS_WHEN_LOADED * self.cores:
            return f"load average {self.average:.1f} on {self.cores} cores"
        return ""


def watch_load() -> Callable[[], MachineLoad]:
    """Start watching, and return a function that returns the load so far.

    Call it after 0.1 s or more: the kernel counts in hundredths of a second.
    """
    started, busy, process = perf_counter(), _busy_seconds(), _process_seconds()

    def load() -> MachineLoad:
        elapsed = max(perf_counter() - started, 1e-9)
        others = (_busy_seconds() - busy) - (_process_seconds() - process)
        return MachineLoad(psutil.getloadavg()[0], max(0.0, others / elapsed), os.cpu_count() or 1)

    return load


def _busy_seconds() -> float:
    times: dict[str, float] = psutil.cpu_times()._asdict()
    return sum(times.values()) - sum(times.get(name, 0.0) for name in IDLE)


def _process_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
