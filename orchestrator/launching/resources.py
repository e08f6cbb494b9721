"""What a trial holds of a machine or a cluster, and how many trials fit at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.config import Device
from orchestrator.errors import ClusterError
from orchestrator.launching.machine import cores, gpus

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
    def share(self) -> dict[str, float]:
        """What one trial holds, in Ray's words."""
        return {"CPU": 1.0} | ({"GPU": self.gpus_per_trial} if self.gpus else {})

    def worth_starting(self, points: int) -> int:
        """How many workers so many points are worth, even if they train nothing."""
        return max(1, min(self.concurrent, int(points * POINT_SECONDS / WORKER_SECONDS)))


def of_machine(device: Device, *, gpus_per_trial: float = 1.0) -> Resources:
    """All that this machine has; a trial on a GPU waits for no core."""
    there = gpus() if device == "cuda" else 0
    fit = there * parts(gpus_per_trial) if there else cores()
    return Resources(max(cores(), fit), there, gpus_per_trial, max(1, fit))


def of_cluster(device: Device, address: str, *, gpus_per_trial: float = 1.0) -> Resources:
    """What a trial holds there; how many fit is known once the cluster is joined."""
    return Resources(0, int(device == "cuda"), gpus_per_trial, ANY_NUMBER, address)


def fitted(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> Resources:
    """`resources` with no more trials at once than the nodes hold. ClusterError where not one fits."""
    there = list(nodes)
    total = sum(room(node, resources.share) for node in there)
    if total:
        return replace(resources, concurrent=min(resources.concurrent, total))
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in resources.share.items())
    have = " and ".join(f"{sum(node.get(name, 0.0) for node in there):g} {name}" for name in ("CPU", "GPU"))
    raise ClusterError(f"a trial holds {wanted} of one node, and no node has that; all together have {have}")


def room(node: Mapping[str, float], share: Mapping[str, float]) -> int:
    """How many trials one node holds; the parts of two GPUs make no whole one."""
    cpus = int(node.get("CPU", 0.0) / share["CPU"])
    if not (part := share.get("GPU")):
        return cpus
    return min(cpus, int(node.get("GPU", 0.0)) * parts(part))


def parts(share: float) -> int:
    """How many trials that hold `share` of a GPU fit on one; Ray counts in ten thousandths."""
    return 10_000 // max(1, round(share * 10_000))
