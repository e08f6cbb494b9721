"""What FILE.json says of an exported file, and the metadata inside of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.data.datasets import DATASETS, info, parse_dataset
from orchestrator.data.files import read_raw
from orchestrator.data.loading import Scaling, scaling
from orchestrator.errors import DataError, SpaceError, StoreError
from orchestrator.model_io.comparison import OutputComparison
from orchestrator.model_io.formats import IMAGES, ExportFormat
from orchestrator.model_io.interface import FORMULA, Interface
from orchestrator.model_io.load import recorded_dataset
from orchestrator.model_io.model_lookup import ModelSource
from orchestrator.storage.manifest import make_entry
from orchestrator.storage.model_files import ModelSpec, SavedModel
from orchestrator.trial.metrics import profile

Json = Any  # what json can write
LEVELS = 255  # of images in files of one's own
PROJECT = "pruning-orchestrator"
SHOWN_IN_FILE = ("class_names", "input", "name", "network", "output", "run_id", "scaling")


def describe(
    model: ModelSource,
    saved: SavedModel,
    net: nn.Module,
    export_format: ExportFormat,
    interface: Interface,
    comparison: OutputComparison,
) -> dict[str, Json]:
    """Return the content of FILE.json but for sizes and digests: no time, folder or machine is in it."""
    spec = saved.spec
    dataset = model.params.get("dataset", "")
    with suppress(StoreError):  # its own file is neither at hand nor trusted: as where files are missing
        dataset = recorded_dataset(model)
    cost = profile(net, spec.input_shape)
    inside = interface.scaling is not None
    pixels = normalisation(dataset) if interface.scaling is None else as_json(interface.scaling)
    return {
        "format": export_format.name,
        "name": model.name,
        "run_id": model.run_id,
        "manifest_sha256": saved.manifest_sha256,
        "network": {
            "model": spec.model,
            "parameters": cost.parameters,
            "parameters_dense": sum(parameter.numel() for parameter in spec.meta_parameters().values()),
            "macs": cost.total_macs,
        },
        **_ends(spec, export_format, interface, pixels),
        "scaling": {"inside": inside, **(pixels or {})},
        "classes": spec.num_classes,
        "class_names": class_names(dataset, spec.num_classes),
        "dataset": model.params.get("dataset"),
        "data_digest": next(iter(sorted(model.data_digests())), None),
        "accuracy": model.accuracy,
        "check": asdict(comparison),
        "packages": {name: _version(name) for name in (PROJECT, "torch", *export_format.packages)},
    }


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:  # run from its sources
        return "not installed"


def _ends(
    spec: ModelSpec, export_format: ExportFormat, interface: Interface, pixels: Mapping[str, Json] | None
) -> dict[str, Json]:
    """The input and the output of a file; `pixels` is how its data set scales them."""
    shape, classes = [export_format.batch, *spec.input_shape], [export_format.batch, spec.num_classes]
    return {
        "input": {
            "name": IMAGES,
            "type": interface.input,
            "shape": shape,
            "range": interface.range,
            "normalisation": pixels if interface.scaling is None else interface.normalisation(),
        },
        "output": {"name": interface.output, "type": "float32", "shape": classes},
    }


def with_digests(metadata: Mapping[str, Json], path: Path, companions: tuple[str, ...]) -> dict[str, Json]:
    """Return FILE.json with the size and the digest of FILE, and of the files that it comes with."""
    file = make_entry(path.read_bytes())
    others = {part.name: asdict(make_entry(part.read_bytes())) for part in _companions(path, companions)}
    described = {**metadata, "bytes": file.bytes, "sha256": file.sha256}
    return described | ({"companions": others} if others else {})


def _companions(path: Path, endings: tuple[str, ...]) -> list[Path]:
    return [path.with_suffix(ending) for ending in endings]


def file_metadata(metadata: Mapping[str, Json]) -> dict[str, str]:
    """Return the metadata that goes into a file itself, as texts: names as they are, all else as JSON."""
    values = {name: metadata[name] for name in SHOWN_IN_FILE if metadata[name] is not None}
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
    }


def class_names(dataset: str, count: int) -> list[str] | None:
    """Return the names of a data set's classes, in the order of the outputs; None if not known."""
    if not dataset:
        return None
    name, options = parse_dataset(dataset)
    try:
        names = info(name).class_names or read_raw(name).class_names
    except (SpaceError, DataError):
        return None
    names = tuple(names[label] for label in options.get("classes", range(len(names))) if label < len(names))
    return list(names) if len(names) == count else None


def normalisation(dataset: str) -> Mapping[str, Json] | None:
    """Return how a data set scales pixels, channel by channel; None for an unknown data set.

    Mean and deviation are None where the files of the data set, which they are taken from, are missing.
    """
    if not dataset:
        return None
    name = parse_dataset(dataset)[0]
    try:
        scale = scaling(name)
    except DataError:
        levels = LEVELS if name not in DATASETS else info(name).levels
        return {"divide_by": levels, "mean": None, "deviation": None}
    return as_json(scale)


def as_json(scale: Scaling) -> dict[str, Json]:
    """Return a scaling as FILE.json has it."""
    channels = {"mean": list(scale.mean), "deviation": list(scale.deviation)}
    return {"divide_by": scale.levels, **channels, "formula": FORMULA}


def usage_text(metadata: Mapping[str, Json]) -> str:
    """Return in a line what input the file takes."""
    source = metadata["input"]
    scale, kind = source["normalisation"], source.get("type", "float32")
    text = f"input: {kind}, {' x '.join(map(str, source['shape']))}"
    if kind == "uint8":
        low, high = source["range"]
        return f"{text}; pixels from {low} to {high}, as they are"
    if scale is None:
        return f"{text}; scaled as its data were (not known here)"
    text = f"{text}; pixels divided by {scale['divide_by']}"
    if scale["mean"] is None:
        return f"{text}, then scaled by channel: by how much is known once the data set is downloaded"
    if set(scale["mean"]) == {0.0} and set(scale["deviation"]) == {1.0}:
        return text
    mean, deviation = (", ".join(f"{value:.4f}" for value in scale[name]) for name in ("mean", "deviation"))
    return f"{text}, less {mean}, by {deviation}"
