"""Describe an exported file, and compare it with the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from orchestrator.data.datasets import info
from orchestrator.data.loading import scaling
from orchestrator.errors import DataError, ExportError
from orchestrator.model_io.format import ExportFormat, Run
from orchestrator.model_io.source import ModelSource
from orchestrator.storage.manifest import ManifestEntry
from orchestrator.storage.model_files import SavedModel
from orchestrator.trial.metrics import profile
from pruning.modes import eval_mode
from pruning.registry import parse

Json = Any  # what json can write


def metadata(
    origin: ModelSource,
    saved: SavedModel,
    net: nn.Module,
    *,
    form: ExportFormat,
    file: ManifestEntry,
    comparison: Comparison,
) -> dict[str, Json]:
    """The content of FILE.json; nothing in it depends on the time, the place or the machine."""
    plan = saved.spec
    cost = profile(net, plan.input_shape)
    dense = sum(parameter.numel() for parameter in plan.meta_parameters().values())
    return {
        "format": form.name,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "name": origin.name,
        "run_id": origin.run_id,
        "manifest_sha256": saved.manifest_sha256,
        "network": {
            "model": plan.model,
            "parameters": cost.parameters,
            "parameters_dense": dense,
            "macs": cost.total_macs,
        },
        "input": {
            "name": "images",
            "type": "float32",
            "shape": ["batch", *plan.input_shape],
            "normalisation": normalisation(origin.params.get("dataset", "")),
        },
        "output": {"name": "logits", "type": "float32", "shape": ["batch", plan.num_classes]},
        "classes": plan.num_classes,
        "dataset": origin.params.get("dataset"),
        "accuracy": origin.accuracy,
        "check": asdict(comparison),
        "packages": {name: version(name) for name in ("torch", *form.needs)},
    }


def normalisation(dataset: str) -> Mapping[str, Json] | None:
    """How pixels become input, channel by channel; None for data that are not known, or not here."""
    if not dataset:
        return None
    name = parse(dataset)[0]
    try:
        found = scaling(name)
    except DataError:  # the files are elsewhere: half of it is known without them
        return {"divide_by": info(name).levels, "mean": None, "deviation": None}
    return {
        "divide_by": found.levels,
        "mean": list(found.mean),
        "deviation": list(found.deviation),
        "formula": "(pixel / divide_by - mean) / deviation",
    }


def usage_text(metadata: Mapping[str, Json]) -> str:
    """What the caller has to feed, in a line."""
    shape = " x ".join(map(str, metadata["input"]["shape"]))
    found = metadata["input"]["normalisation"]
    if found is None:
        return f"input: float32, {shape}; scaled as its data were (not known here)"
    text = f"input: float32, {shape}; pixels divided by {found['divide_by']}"
    if found["mean"] is None:
        return f"{text}, then scaled by channel: by what is said once the data set is here"
    if set(found["mean"]) == {0.0} and set(found["deviation"]) == {1.0}:
        return text
    mean, deviation = (", ".join(f"{value:.4f}" for value in found[name]) for name in ("mean", "deviation"))
    return f"{text}, less {mean}, by {deviation}"


BATCHES = (1, 2, 7)
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """`largest` absolute difference of an output; at most `allowed`, for outputs up to `output`."""

    largest: float
    allowed: float
    output: float
    batches: tuple[int, ...] = BATCHES


def compare(net: nn.Module, run: Run, shape: tuple[int, int, int], *, tolerance: float) -> Comparison:
    """Both on the same random images, in batches of several sizes. ExportError for too large a difference."""
    generator = torch.Generator().manual_seed(SEED)
    largest = output = 0.0
    for size in BATCHES:
        images = torch.randn((size, *shape), generator=generator)
        with torch.no_grad(), eval_mode(net):
            wanted = net(images)
        given = run(images)
        if given.shape != wanted.shape:
            raise ExportError(
                f"batch {size}: it gives {tuple(given.shape)}, the network {tuple(wanted.shape)}"
            )
        if not torch.isfinite(given).all():
            raise ExportError(f"batch {size}: it gives numbers that are not finite")
        largest = max(largest, float((given - wanted).abs().max()))
        output = max(output, float(wanted.abs().max()))
    allowed = tolerance * max(1.0, output)
    if largest > allowed:
        raise ExportError(f"its outputs are off by {largest:.3g} at most, and {allowed:.3g} is allowed")
    return Comparison(largest, allowed, output)
