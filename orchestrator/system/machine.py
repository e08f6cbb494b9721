"""Usable cores, GPUs, machine load and environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Within the block the environment has these values, and afterwards those of before."""
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
    """The cores that this process may use: a container or a batch job may have fewer than the machine."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(mine, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or max
        return mine


def gpus() -> int:
    """The CUDA devices that torch sees; it is not asked where there is no driver for any."""
    if sys.platform == "linux" and not any(Path(file).exists() for file in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


MOST_OTHERS = 0.1  # of all cores, kept busy by others: more disturbs a measurement
MOST_IN_A_CROWD = 0.05  # where more want to run than there are cores
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are in `user` already


@dataclass(frozen=True)
class MachineLoad:
    """Over a measurement: the load average of its last minute, and the cores that others kept busy.

    Time that a hypervisor took away counts as others'. The load average has this process in it, too.
    """

    average: float
    others: float
    cores: int

    @property
    def busy(self) -> str:
        """Why the machine was too busy to time something on it; empty where it was not."""
        if self.others > MOST_OTHERS * self.cores:
            return f"other processes kept {self.others:.1f} of {self.cores} cores busy"
        # Alone it may tell of a sweep that is over: it takes minutes to fall.
        if self.average > self.cores and self.others > MOST_IN_A_CROWD * self.cores:
            return f"load average {self.average:.1f} on {self.cores} cores"
        return ""


def watch_load() -> Callable[[], MachineLoad]:
    """Watch from now on; what comes back tells the load so far.

    That should be 0.1 s or more: the kernel counts in hundredths of a second.
    """
    started, everything, own = perf_counter(), _busy_seconds(), _own_seconds()

    def load() -> MachineLoad:
        elapsed = max(perf_counter() - started, 1e-9)
        others = (_busy_seconds() - everything) - (_own_seconds() - own)
        return MachineLoad(psutil.getloadavg()[0], max(0.0, others / elapsed), os.cpu_count() or 1)

    return load


def _busy_seconds() -> float:
    times: dict[str, float] = psutil.cpu_times()._asdict()
    return sum(times.values()) - sum(times.get(name, 0.0) for name in IDLE)


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
