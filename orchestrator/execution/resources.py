"""The resources of a trial, and how many trials a machine or a cluster has room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.config import Device
from orchestrator.errors import ClusterError, DeviceError
from orchestrator.system.machine import cores, gpu_memory, gpus

ANY_NUMBER = 1_000_000
WORKER_SECONDS = 5.0  # what a worker takes to start: it imports torch, MLflow and Tune
SHORTEST_TASK_SECONDS = 0.15  # what a task takes that trains next to nothing


@dataclass(frozen=True)
class Resources:
    """What one trial holds, how many may run at once, and what a Ray of our own has.

    A trial holds one CPU, and `gpus_per_trial` of one GPU if there are any `gpus`; with several `devices` a
    CPU and a GPU for each. If its worker dies, it is tried again, `retries` times. Up to `most_stacked`
    trainings run as one.
    """

    cpus: int
    gpus: int
    gpus_per_trial: float
    concurrent: int
    address: str | None = None
    retries: int = 2
    most_stacked: int = 1
    devices: int = 1

    @property
    def per_device(self) -> dict[str, float]:
        """What a trial holds for each of its devices, by Ray's names of resources."""
        return {"CPU": 1.0} | ({"GPU": min(self.gpus_per_trial, 1.0)} if self.gpus else {})

    def initial_workers(self, tasks: int) -> int:
        """Return how many workers to start for so many tasks: as many as pay even if they train nothing."""
        return max(1, min(self.concurrent, int(tasks * SHORTEST_TASK_SECONDS / WORKER_SECONDS)))


def local_resources(device: Device, *, gpus_per_trial: float = 1.0) -> Resources:
    """Return all that this machine has; a trial waits for no core. DeviceError for more GPUs than it has."""
    gpu_count, devices = gpus() if device == "cuda" else 0, devices_of(gpus_per_trial)
    if gpu_count and devices > gpu_count:
        raise DeviceError(
            f"--gpus-per-trial {devices}: torch sees {gpu_count} on this machine; give 1 to {gpu_count}, or "
            "a part of one"
        )
    slots = gpu_count * trials_per_gpu(gpus_per_trial) if gpu_count else cores()
    trials = max(1, slots // devices)
    return Resources(
        max(cores(), slots, trials * devices), gpu_count, gpus_per_trial, trials, devices=devices
    )


def cluster_resources(device: Device, address: str, *, gpus_per_trial: float = 1.0) -> Resources:
    """Return what a trial holds in a cluster; how many fit is known once it is joined."""
    devices = devices_of(gpus_per_trial)
    return Resources(0, int(device == "cuda"), gpus_per_trial, ANY_NUMBER, address, devices=devices)


def devices_of(gpus_per_trial: float) -> int:
    """Return how many devices share each batch of a trial, 1 or more."""
    return max(1, int(gpus_per_trial))


def limit_to_nodes(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> Resources:
    """Return `resources` with no more trials at once than fit on the nodes. ClusterError if none fits."""
    nodes = list(nodes)
    slots = sum(slots_on_node(node, resources.per_device) for node in nodes)
    if trials := slots // resources.devices:
        return replace(resources, concurrent=min(resources.concurrent, trials))
    needed = " and ".join(f"{amount:g} {name}" for name, amount in resources.per_device.items())
    available = " and ".join(
        f"{sum(node.get(name, 0.0) for node in nodes):g} {name}" for name in ("CPU", "GPU")
    )
    if resources.devices > 1:
        raise ClusterError(
            f"a trial holds {resources.devices} times {needed}; all nodes together have {available}"
        )
    raise ClusterError(
        f"a trial holds {needed} of one node, and no node has that; all together have {available}"
    )


def slots_on_node(node: Mapping[str, float], per_device: Mapping[str, float]) -> int:
    """Return for how many devices of trials one node has room; none can use shares of two GPUs."""
    cpus = int(node.get("CPU", 0.0) / per_device["CPU"])
    if not (gpu_share := per_device.get("GPU")):
        return cpus
    return min(cpus, int(node.get("GPU", 0.0)) * trials_per_gpu(gpu_share))


def trials_per_gpu(share: float) -> int:
    """Return how many trials with this share of a GPU fit on one; Ray counts in ten thousandths."""
    return 10_000 // max(1, round(min(share, 1.0) * 10_000))


def gpu_bytes(device: Device, gpus_per_trial: float, *, address: str | None = None) -> int | None:
    """Return the memory of a GPU that a trial may use, in whole gibibytes; None where it is not known.

    The GPUs of a cluster's nodes are not known.
    """
    memory = None if device == "cpu" or address is not None else gpu_memory()
    return None if memory is None else share_of_memory(memory, gpus_per_trial)


def share_of_memory(gpu_bytes: int, gpus_per_trial: float) -> int:
    """Return what a trial has of a GPU's memory, in whole gibibytes."""
    return gpu_bytes // trials_per_gpu(gpus_per_trial) >> 30 << 30
