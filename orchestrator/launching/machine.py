"""What this machine has for trials: cores that may be used, GPUs, and the device that `auto` means."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.config import Device
from orchestrator.errors import DeviceError

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


def resolve_device(wanted: str, *, address: str | None = None) -> Device:
    """`auto` is cuda where there is one: in the cluster at `address`, if that is given, or on this machine.

    DeviceError for cuda where there is none; ClusterError where there is no cluster.
    """
    if wanted == "cpu":
        return "cpu"
    if address is not None:
        from orchestrator.sweep.joining import cluster_gpus

        found: float
        found, where = cluster_gpus(address), f"no node of the Ray cluster at {address} has a GPU"
    else:
        found, where = gpus(), "torch sees no CUDA device"
    if found:
        return "cuda"
    if wanted == "cuda":
        instead = "" if address else ", or install a CUDA build"
        raise DeviceError(f"--device cuda: {where}; use --device cpu{instead}")
    return "cpu"
