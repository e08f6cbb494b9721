"""Options of a sweep, and the resources of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.config import Device, Precision
from orchestrator.data.files import chosen_data_dir, data_folder
from orchestrator.errors import ClusterError, DeviceError, UsageError
from orchestrator.system import provenance
from orchestrator.system.machine import cores, gpu_memory, gpus
from orchestrator.system.signals import SignalHandler


def resolve_device(name: str) -> Device:
    """Return the device for cpu, cuda or auto, which is cuda if this machine has a GPU.

    DeviceError for cuda without a GPU.
    """
    if name == "cpu":
        return "cpu"
    if gpus():
        return "cuda"
    if name == "cuda":
        raise DeviceError(
            "--device cuda: torch sees no CUDA device; use --device cpu, or install a CUDA build"
        )
    return "cpu"


def resolve_cluster_device(name: str, address: str, signals: SignalHandler) -> Device:
    """Return the device as `resolve_device` does, for the GPUs of the cluster at `address`.

    ClusterError if there is no cluster at the address.
    """
    if name == "cpu":
        return "cpu"
    from orchestrator.execution.ray_cluster import cluster_gpus

    if cluster_gpus(address, signals):
        return "cuda"
    if name == "cuda":
        raise DeviceError(
            f"--device cuda: no node of the Ray cluster at {address} has a GPU; use --device cpu"
        )
    return "cpu"


def parse_stack(text: str) -> int:
    """Return how many trainings may run as one: of `auto`, `off` or a number. UsageError for another text."""
    if text in ("auto", "off"):
        return LARGEST_STACK if text == "auto" else 1
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STACKED:
        raise UsageError(
            f"--stack {text[:80]}: give auto, off, or a number of trainings, 1 to {MOST_STACKED}"
        )
    return int(text)


ANY_NUMBER = 1_000_000
MOST_STACKED = 1024
LARGEST_STACK = 16  # trainings: beyond it a stack of small networks is hardly faster (docs/benchmarks.md)
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


@dataclass(frozen=True)
class SweepOptions:
    """How to run a sweep.

    On one kind of device none of it changes a result, with two exceptions: micro-batches are planned by the
    part of a GPU's memory that `gpus_per_trial` leaves a trial, and several GPUs, or processes of a CPU,
    share each batch of a training.
    """

    device: Device = "cpu"
    precision: Precision = "fp32"
    gpus_per_trial: float = 1.0
    max_concurrent: int | None = None
    address: str | None = None
    retry_failed: bool = False
    stop: str | None = None  # as for --stop; None leaves it to the space
    retries: int = 2  # of a task whose worker died
    fast: bool = False  # on a GPU: TF32, and kernels that are not deterministic
    compile: bool = False  # train what torch.compile makes of a network
    stack: int = LARGEST_STACK  # trainings that may run as one; 1 for each by itself
    sync_batch_norm: bool = False  # of several devices: statistics of all their images

    @property
    def devices(self) -> int:
        """How many devices share each batch of a training."""
        return devices_of(self.gpus_per_trial)

    def resources(self) -> Resources:
        """Return what a trial holds, of the cluster at `address` or of this machine."""
        if self.address is None:
            resources = local_resources(self.device, gpus_per_trial=self.gpus_per_trial)
        else:
            resources = cluster_resources(self.device, self.address, gpus_per_trial=self.gpus_per_trial)
        most = self.max_concurrent or resources.concurrent
        return replace(
            resources,
            concurrent=min(most, resources.concurrent),
            retries=self.retries,
            most_stacked=self.stack,
        )

    def check_devices(self, *, was_chosen: bool) -> None:
        """Raise UsageError for numbers of devices that cannot be, and for several GPUs where there is none.

        On a CPU, if the device `was_chosen`, it is the number of processes that share each batch.
        """
        option = f"--gpus-per-trial {self.gpus_per_trial:g}"
        if self.gpus_per_trial > 1 and self.gpus_per_trial != self.devices:
            raise UsageError(f"{option}: give a whole number of GPUs, or a part of one, 0.01 to 1")
        if self.devices > 1 and self.device == "cpu" and not was_chosen:
            raise UsageError(
                f"{option}: torch sees no CUDA device; with --device cpu so many processes share each batch"
            )
        if self.sync_batch_norm and self.devices == 1:
            raise UsageError("--sync-batch-norm: give --gpus-per-trial 2 or more; one GPU has whole batches")
        if self.sync_batch_norm and self.compile:
            raise UsageError(
                "--sync-batch-norm and --compile: give one; a compiled network waits for no other GPU"
            )

    def gpu_bytes(self) -> int | None:
        """Return the memory of a GPU that a trial may use; None on a CPU or where it is not known."""
        return gpu_bytes(self.device, self.gpus_per_trial, address=self.address)

    def code(self) -> str:
        """Return what identifies the code to a worker: its path here, its digest on other nodes."""
        return provenance.install_path() if self.address is None else provenance.source_digest()

    def data_dir(self) -> str | None:
        """Return the folder of data sets for workers; None for each node's default in a cluster."""
        folder = data_folder() if self.address is None else chosen_data_dir()
        return None if folder is None else str(folder)
