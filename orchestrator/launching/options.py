"""How a person wants a sweep to be run: where, on what, by which code."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.config import Device, Precision
from orchestrator.images.dataset_files import chosen_data_dir, path
from orchestrator.launching import resources, sources
from orchestrator.launching.resources import Resources


@dataclass(frozen=True)
class Options:
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
            found = resources.of_machine(self.device, gpus_per_trial=self.gpus_per_trial)
        else:
            found = resources.of_cluster(self.device, self.address, gpus_per_trial=self.gpus_per_trial)
        most = self.max_concurrent or found.concurrent
        return replace(found, concurrent=min(most, found.concurrent), retries=self.retries)

    def code(self) -> str:
        """What a worker must run: here what lies in the same place, on other nodes the same sources."""
        return sources.place() if self.address is None else sources.digest()

    def data_dir(self) -> str | None:
        """Where workers find data sets; every node of a cluster has its own place, unless one is set."""
        chosen = path() if self.address is None else chosen_data_dir()
        return None if chosen is None else str(chosen)
