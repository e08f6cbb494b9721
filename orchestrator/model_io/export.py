"""Export a network to a file, compare the file with the network, and describe it in FILE.json."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.data.datasets import DATASETS, info, parse_dataset
from orchestrator.data.loading import scaling
from orchestrator.errors import DataError, ExportError, SpaceError, StoreError, UsageError, unknown_name
from orchestrator.model_io.formats import ExportFormat, Predict, find_format
from orchestrator.model_io.load import load_module, recorded_data, recorded_dataset
from orchestrator.model_io.quantization import Int8, quantize
from orchestrator.model_io.source import ModelSource, resolve_source
from orchestrator.storage.manifest import make_entry
from orchestrator.storage.model_files import SavedModel
from orchestrator.system.files import FULL
from orchestrator.tracking import MetricPoint
from orchestrator.trial.metrics import profile
from pruning import own_code
from pruning.eval_mode import eval_mode

Json = Any  # what json can write
QUANTIZATIONS = ("int8",)
BATCHES = (1, 2, 7)  # of the comparison: several, as a file may be fixed to one batch size
SEED = 0
LEVELS = 255  # of images in files of one's own


@dataclass(frozen=True)
class ExportedFile:
    """A finished file and the content of its FILE.json."""

    path: Path
    metadata: Mapping[str, Json]
    int8: Int8 | None
    stopped_because: str

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        network, check = self.metadata["network"], self.metadata["check"]
        yield f"{self.metadata['name']} as {self.metadata['format']}: {self.path}"
        if self.stopped_because:
            yield f"its trial was stopped early: {self.stopped_because}"
        share = network["parameters"] / network["parameters_dense"]
        model = own_code.shown(network["model"])
        yield (
            f"{model}: {network['parameters']:,} parameters ({share:.1%} of the dense network's), "
            f"{network['macs']:,} MACs an image, {self.metadata['bytes']:,} bytes"
        )
        yield (
            f"{'before quantization, ' if self.int8 else ''}largest output difference {check['largest']:.3g} "
            f"in batches of {', '.join(map(str, check['batches']))}; {check['allowed']:.3g} is allowed"
        )
        yield usage_text(self.metadata)
        yield from self.int8.lines() if self.int8 else ()


def export(
    source: str, *, format: str, out: Path, quantization: str = "", whole: bool = False, uri: str
) -> ExportedFile:
    """Write a recorded network to a new file, and FILE.json beside it.

    `out` is the file, or a folder for a file named after the run. With `whole`, dead units and channels stay,
    as zeros. `quantization="int8"` goes with onnx; its accuracy, size and times are recorded on the run.
    Raises UsageError for an unknown name or a file that exists, and ExportError where the file cannot be
    written or its outputs differ from the network's; nothing is left behind then.
    """
    # Every wrong word is refused before the store is opened.
    export_format = find_format(format)
    if quantization and quantization not in QUANTIZATIONS:
        raise UsageError(unknown_name("quantization", quantization, QUANTIZATIONS))
    if quantization and format != "onnx":
        raise UsageError(f"--quantize {quantization} goes with --format onnx, not with {format}")
    model = resolve_source(source, uri=uri)
    target = _target(out, model, suffix=f"{'-int8' if quantization else ''}.{format}")
    net, saved = load_module(model, cut=not whole)
    with _temporary_folder(target) as folder:
        path = folder / target.name
        export_format.write(net, saved.spec, path)
        shape, tolerance = saved.spec.input_shape, export_format.tolerance
        # The file is opened again: what it computes counts, not what was meant to be written.
        comparison = compare_outputs(net, export_format.load(path), shape, tolerance=tolerance)
        int8 = _quantize(path, model) if quantization else None
        metadata = _metadata(model, saved, net, export_format, path, comparison)
        metadata |= int8.metadata() if int8 else {}
        described = _metadata_path(path)
        described.write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        # The file itself comes last: where its name exists, it is whole and described.
        described.replace(_metadata_path(target))
        path.replace(target)
    if int8 is not None and model.tracker is not None:
        points = [MetricPoint(name, value) for name, value in int8.metrics().items()]
        row = model.tracker.get_run(model.run_id)
        with model.tracker.translating_errors():
            model.tracker.attach(row).log(metrics=points, tags={"int8": int8.method})
    return ExportedFile(target, metadata, int8, model.tags.get("stopped_because", ""))


def _target(out: Path, model: ModelSource, *, suffix: str) -> Path:
    """The path of the file. UsageError where it exists already, or its folder does not."""
    if out.is_dir():
        name = re.sub(r"[^\w.=-]+", "-", model.name).strip("-.")
        out = out / f"{name}{f'-{model.run_id[:8]}' if model.run_id else ''}{suffix}"
    for path in (out, _metadata_path(out)):  # lexists: a broken link counts, too
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already; remove it, or name another file with --out")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}; make it, or name another file with --out")
    return out


def _metadata_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target, on the same disk for the renames. ExportError where none can be made."""
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        reason = "no room is left" if error.errno in FULL else error.strerror or str(error)
        raise ExportError(f"{target} cannot be written: {reason}; --out names another place") from error


def _quantize(path: Path, model: ModelSource) -> Int8:
    """Replace an onnx file by its int8 form."""
    if "dataset" not in model.params:
        raise UsageError(f"{model.name} names no data set, and int8 needs its training images")
    fp32 = path.with_name("fp32.onnx")
    path.rename(fp32)
    int8 = quantize(fp32, path, recorded_data(model, "cpu"))
    fp32.unlink()
    return int8


def _metadata(
    model: ModelSource,
    saved: SavedModel,
    net: nn.Module,
    export_format: ExportFormat,
    path: Path,
    comparison: OutputComparison,
) -> dict[str, Json]:
    """The content of FILE.json; nothing in it depends on the time, the folder or the machine."""
    spec, file = saved.spec, make_entry(path.read_bytes())
    dataset = model.params.get("dataset", "")
    with suppress(StoreError):  # its own file is neither at hand nor trusted: as where files are missing
        dataset = recorded_dataset(model)
    cost = profile(net, spec.input_shape)
    return {
        "format": export_format.name,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "name": model.name,
        "run_id": model.run_id,
        "manifest_sha256": saved.manifest_sha256,
        "network": {
            "model": spec.model,
            "parameters": cost.parameters,
            "parameters_dense": sum(parameter.numel() for parameter in spec.meta_parameters().values()),
            "macs": cost.total_macs,
        },
        "input": {
            "name": "images",
            "type": "float32",
            "shape": ["batch", *spec.input_shape],
            "normalisation": normalisation(dataset),
        },
        "output": {"name": "logits", "type": "float32", "shape": ["batch", spec.num_classes]},
        "classes": spec.num_classes,
        "class_names": class_names(dataset, spec.num_classes),
        "dataset": model.params.get("dataset"),
        "accuracy": model.accuracy,
        "check": asdict(comparison),
        "packages": {name: version(name) for name in ("torch", *export_format.packages)},
    }


def class_names(dataset: str, count: int) -> list[str] | None:
    """Return the names of a data set's classes, in the order of the outputs; None if not known."""
    if not dataset:
        return None
    name, options = parse_dataset(dataset)
    try:
        names = info(name).class_names
    except (SpaceError, DataError):
        return None
    names = tuple(names[label] for label in options.get("classes", range(len(names))) if label < len(names))
    return list(names) if len(names) == count else None


def normalisation(dataset: str) -> Mapping[str, Json] | None:
    """Return how pixels become input, channel by channel; None for an unknown data set.

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
    return {
        "divide_by": scale.levels,
        "mean": list(scale.mean),
        "deviation": list(scale.deviation),
        "formula": "(pixel / divide_by - mean) / deviation",
    }


def usage_text(metadata: Mapping[str, Json]) -> str:
    """Return in a line what input the file takes."""
    shape = " x ".join(map(str, metadata["input"]["shape"]))
    scale = metadata["input"]["normalisation"]
    if scale is None:
        return f"input: float32, {shape}; scaled as its data were (not known here)"
    text = f"input: float32, {shape}; pixels divided by {scale['divide_by']}"
    if scale["mean"] is None:
        return f"{text}, then scaled by channel: by how much is known once the data set is downloaded"
    if set(scale["mean"]) == {0.0} and set(scale["deviation"]) == {1.0}:
        return text
    mean, deviation = (", ".join(f"{value:.4f}" for value in scale[name]) for name in ("mean", "deviation"))
    return f"{text}, less {mean}, by {deviation}"


@dataclass(frozen=True)
class OutputComparison:
    """`largest` absolute difference of an output; `allowed` is the limit, for outputs up to `output`."""

    largest: float
    allowed: float
    output: float
    batches: tuple[int, ...] = BATCHES


def compare_outputs(
    net: nn.Module, predict: Predict, shape: tuple[int, int, int], *, tolerance: float
) -> OutputComparison:
    """Run a network and its file on the same random images, in batches of several sizes.

    Raises ExportError where outputs differ by more than `tolerance` times the largest output (at least 1).
    """
    generator = torch.Generator().manual_seed(SEED)
    largest = output = 0.0
    for size in BATCHES:
        images = torch.randn((size, *shape), generator=generator)
        with torch.no_grad(), eval_mode(net):
            expected = net(images)
        actual = predict(images)
        if actual.shape != expected.shape:
            shapes = f"it gives {tuple(actual.shape)}, the network {tuple(expected.shape)}"
            raise ExportError(f"batch {size}: {shapes}")
        if not torch.isfinite(actual).all():
            raise ExportError(f"batch {size}: it gives numbers that are not finite")
        largest = max(largest, float((actual - expected).abs().max()))
        output = max(output, float(expected.abs().max()))
    allowed = tolerance * max(1.0, output)
    if largest > allowed:
        raise ExportError(f"its outputs are off by {largest:.3g} at most, and {allowed:.3g} is allowed")
    return OutputComparison(largest, allowed, output)
