"""Options of a sweep, and the resources of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.config import Device, Precision
from orchestrator.data.files import chosen_data_dir, data_folder
from orchestrator.errors import ClusterError, DeviceError
from orchestrator.system import provenance
from orchestrator.system.machine import cores, gpus


def resolve_device(wanted: str, *, address: str | None = None) -> Device:
    """`auto` is cuda where there is one: in the cluster at `address`, if that is given, or on this machine.

    DeviceError for cuda where there is none; ClusterError where there is no cluster.
    """
    if wanted == "cpu":
        return "cpu"
    if address is not None:
        from orchestrator.execution.ray_cluster import cluster_gpus

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


ANY_NUMBER = 1_000_000
WORKER_SECONDS = 5.0  # what a worker takes to start: it imports torch, MLflow and Tune
POINT_SECONDS = 0.15  # what a point takes that trains next to nothing


@dataclass(frozen=True)
class Resources:
    """What one trial holds, and how many at once at the most; where Ray is our own, also what it has.

    A trial holds one CPU, and `gpus_per_trial` of one GPU if there are any `gpus`. One whose worker
    dies is tried again, `retries` times.
    """

    cpus: int
    gpus: int
    gpus_per_trial: float
    concurrent: int
    address: str | None = None
    retries: int = 2

    @property
    def per_trial(self) -> dict[str, float]:
        """What one trial holds, in Ray's words."""
        return {"CPU": 1.0} | ({"GPU": self.gpus_per_trial} if self.gpus else {})

    def initial_workers(self, points: int) -> int:
        """How many workers so many points are worth, even if they train nothing."""
        return max(1, min(self.concurrent, int(points * POINT_SECONDS / WORKER_SECONDS)))


def local_resources(device: Device, *, gpus_per_trial: float = 1.0) -> Resources:
    """All that this machine has; a trial on a GPU waits for no core."""
    there = gpus() if device == "cuda" else 0
    fit = there * trials_per_gpu(gpus_per_trial) if there else cores()
    return Resources(max(cores(), fit), there, gpus_per_trial, max(1, fit))


def cluster_resources(device: Device, address: str, *, gpus_per_trial: float = 1.0) -> Resources:
    """What a trial holds there; how many fit is known once the cluster is joined."""
    return Resources(0, int(device == "cuda"), gpus_per_trial, ANY_NUMBER, address)


def limit_to_nodes(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> Resources:
    """`resources` with no more trials at once than the nodes hold. ClusterError where not one fits."""
    there = list(nodes)
    total = sum(slots_on_node(node, resources.per_trial) for node in there)
    if total:
        return replace(resources, concurrent=min(resources.concurrent, total))
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in resources.per_trial.items())
    have = " and ".join(f"{sum(node.get(name, 0.0) for node in there):g} {name}" for name in ("CPU", "GPU"))
    raise ClusterError(f"a trial holds {wanted} of one node, and no node has that; all together have {have}")


def slots_on_node(node: Mapping[str, float], share: Mapping[str, float]) -> int:
    """How many trials one node holds; the parts of two GPUs make no whole one."""
    cpus = int(node.get("CPU", 0.0) / share["CPU"])
    if not (part := share.get("GPU")):
        return cpus
    return min(cpus, int(node.get("GPU", 0.0)) * trials_per_gpu(part))


def trials_per_gpu(share: float) -> int:
    """How many trials that hold `share` of a GPU fit on one; Ray counts in ten thousandths."""
    return 10_000 // max(1, round(share * 10_000))


@dataclass(frozen=True)
class SweepOptions:
    """How to run a sweep; none of it changes a result on one kind of device."""

    device: Device = "cpu"
    precision: Precision = "fp32"
    gpus_per_trial: float = 1.0
    max_concurrent: int | None = None
    address: str | None = None
    retry_failed: bool = False
    stop: str | None = None  # as --stop says it; None leaves it to the space
    retries: int = 2  # of a point whose worker died

    def resources(self) -> Resources:
        """What a trial holds, of the cluster of `address` or of this machine."""
        if self.address is None:
            found = local_resources(self.device, gpus_per_trial=self.gpus_per_trial)
        else:
            found = cluster_resources(self.device, self.address, gpus_per_trial=self.gpus_per_trial)
        most = self.max_concurrent or found.concurrent
        return replace(found, concurrent=min(most, found.concurrent), retries=self.retries)

    def code(self) -> str:
        """What a worker must run: here what lies in the same place, on other nodes the same sources."""
        return provenance.install_path() if self.address is None else provenance.source_digest()

    def data_dir(self) -> str | None:
        """Where workers find data sets; every node of a cluster has its own place, unless one is set."""
        chosen = data_folder() if self.address is None else chosen_data_dir()
        return None if chosen is None else str(chosen)
