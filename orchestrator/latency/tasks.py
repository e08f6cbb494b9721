"""Which recorded networks are to be timed, and which of them must take equally long.

What is left after a cut has the time of its widths, and dense kernels do the same work whatever the
weights: such networks are timed once. CSR depends on where the living weights are, so that every mask
that it is tried on is timed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

import models
from orchestrator.errors import UsageError
from orchestrator.latency.measure import BATCHES, SECONDS
from orchestrator.latency.sparse import HALF, convertible, supported
from orchestrator.storage.manifest import ARCH, MANIFEST, MASKS
from orchestrator.storage.model_spec import ModelSpec, Shape
from orchestrator.system.timing import batch_suffix
from orchestrator.tracking import RunRecord, Tracker
from pruning.masking import prunable_layers


@dataclass(frozen=True)
class LatencyOptions:
    """Batch sizes; seconds for each form of a network at each; `again`: also what was measured before."""

    batches: tuple[int, ...] = BATCHES
    seconds: float = SECONDS
    again: bool = False


STANDARD = LatencyOptions()


@dataclass(frozen=True)
class TimingJob:
    """Runs that one measurement stands for; the network is that of the first."""

    rows: tuple[RunRecord, ...]
    batches: tuple[int, ...]


def batch_sizes(text: str) -> tuple[int, ...]:
    """`1,256` as numbers. UsageError for anything but whole numbers from 1 up."""
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(sizes):
        raise UsageError(f"--batch {text[:80]}: give whole numbers from 1 up, such as 1,256")
    return tuple(dict.fromkeys(sizes))


def plan_tasks(tracker: Tracker, rows: Iterable[RunRecord], options: LatencyOptions) -> list[TimingJob]:
    """The runs that have no latency at one of the batch sizes, those of equal networks together."""
    together: dict[tuple[tuple[int, ...], tuple[object, ...]], list[RunRecord]] = {}
    for row in rows:
        missing = tuple(batch for batch in options.batches if options.again or not measured(row, batch))
        if missing:
            together.setdefault((missing, _network_key(tracker, row)), []).append(row)
    return [TimingJob(tuple(alike), missing) for (missing, _), alike in together.items()]


def measured(row: RunRecord, batch: int) -> bool:
    return f"final/latency_ms_p50{batch_suffix(batch)}" in row.metrics


def _network_key(tracker: Tracker, row: RunRecord) -> tuple[object, ...]:
    """Equal for the runs whose networks must take equally long."""
    plan = ModelSpec.from_json(tracker.read_text(row, f"model/{ARCH}").encode(), f"model/{ARCH}")
    if plan.cut_widths is not None:
        return (*plan.architecture, json.dumps(plan.cut_widths, sort_keys=True))
    sparsity = {name: row.metrics.get(f"layers/{name}", 0.0) for name in _convertible(*plan.architecture)}
    if supported() and max(sparsity.values(), default=0.0) > HALF:
        manifest = json.loads(tracker.read_text(row, f"model/{MANIFEST}"))
        return (*plan.architecture, manifest[MASKS]["sha256"])
    return (*plan.architecture, row.metrics["final/sparsity"] > 0)


@lru_cache(maxsize=16)
def _convertible(model: str, input_shape: Shape, num_classes: int) -> tuple[str, ...]:
    with torch.device("meta"):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
    return tuple(name for name, layer in prunable_layers(net).items() if convertible(layer))
