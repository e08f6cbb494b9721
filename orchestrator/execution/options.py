"""Options of a sweep, and the device that it runs on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.config import Device, Precision
from orchestrator.data.files import chosen_data_dir, data_folder
from orchestrator.errors import DeviceError, UsageError
from orchestrator.execution.resources import (
    Resources,
    cluster_resources,
    devices_of,
    gpu_bytes,
    local_resources,
)
from orchestrator.system import provenance
from orchestrator.system.machine import gpus
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


MOST_STACKED = 1024
LARGEST_STACK = 16  # trainings: beyond it a stack of small networks is hardly faster (docs/benchmarks.md)


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
