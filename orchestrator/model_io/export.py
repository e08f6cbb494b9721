"""Export a network to a file, compare the file with the network, and describe it in FILE.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.data.datasets import parse_dataset
from orchestrator.data.loading import Dataset, Scaling, scaling
from orchestrator.errors import DataError, StoreError, UsageError, unknown_name
from orchestrator.model_io.comparison import Reduced, compare_forms, compare_outputs, opened
from orchestrator.model_io.description import describe, file_metadata, usage_text, with_digests
from orchestrator.model_io.formats import FORMATS, ExportFormat, Predict, describe_onnx, find_format
from orchestrator.model_io.interface import Interface, Shipped, check_interface
from orchestrator.model_io.load import load_module, recorded_data, recorded_dataset
from orchestrator.model_io.model_lookup import ModelSource, resolve_source
from orchestrator.model_io.output_paths import (
    check_free,
    folder_aside,
    metadata_path,
    move,
    parts_of,
    stem_of,
)
from orchestrator.model_io.quantization import quantize
from orchestrator.storage.model_files import ModelSpec
from orchestrator.tracking import MetricPoint
from pruning.user_code import own_code

Json = Any  # what json can write
AUTO = "auto"  # int8 where that is no slower than float32
QUANTIZATIONS = {"int8": ("onnx",), AUTO: ("onnx",), "fp16": ("onnx", "pt2", "openvino")}
HALF_FORM = "fp16"
HALF_TOLERANCE = 1e-2  # of fp16, whose numbers have eleven bits
HALF = "weights and operations in float16, input and output in float32"


@dataclass(frozen=True)
class ExportOptions:
    """How a network is written; every word is checked before anything is loaded."""

    format: str = "onnx"
    quantization: str = ""
    whole: bool = False
    input: str = "float32"
    output: str = "logits"
    scaling: bool = True

    def check(self) -> ExportFormat:
        """Return the format. UsageError for unknown words and for pairs that do not go together."""
        export_format = find_format(self.format)
        if self.quantization and self.quantization not in QUANTIZATIONS:
            raise UsageError(unknown_name("quantization", self.quantization, QUANTIZATIONS))
        allowed = QUANTIZATIONS.get(self.quantization, FORMATS)
        if self.format not in allowed:
            raise UsageError(
                f"--quantize {self.quantization} goes with --format {' or '.join(allowed)}, "
                f"not with {self.format}"
            )
        check_interface(input=self.input, output=self.output, scaling=self.scaling)
        if not export_format.computes and (self.input, self.output) != ("float32", "logits"):
            raise UsageError(
                f"{self.format} holds tensors and no program, so that nothing is scaled or turned into "
                "probabilities in it; take onnx or pt2, or leave --input and --output out"
            )
        return export_format

    @property
    def suffix(self) -> str:
        """The end of a file's name."""
        form = f"-{self.quantization}" if self.quantization not in ("", AUTO) else ""
        return form + FORMATS[self.format].ending


@dataclass(frozen=True, eq=False)
class WrittenNetwork:
    """A network in a file with its FILE.json; what was measured as `reduced` is in it if `is_reduced`."""

    path: Path
    metadata: Mapping[str, Json]
    reduced: Reduced | None
    is_reduced: bool
    predict: Predict
    interface: Interface


@dataclass(frozen=True)
class ExportedFile:
    """A finished file and the content of its FILE.json."""

    path: Path
    metadata: Mapping[str, Json]
    reduced: Reduced | None
    is_reduced: bool
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
        is_int8 = self.is_reduced and self.reduced is not None and self.reduced.form == "int8"
        yield (
            f"{'before quantization, ' if is_int8 else ''}largest output difference {check['largest']:.3g} "
            f"in batches of {', '.join(map(str, check['batches']))}; {check['allowed']:.3g} is allowed"
        )
        yield usage_text(self.metadata)
        if self.reduced is not None:
            yield from self.reduced.lines()
            objection, form = self.reduced.objection, self.reduced.form
            if not self.is_reduced:
                yield f"{form} is refused, and the file is float32: {objection}"
            elif objection and form == "int8":
                yield f"int8 as asked for; --quantize {AUTO} refuses it here: {objection}"


def export(
    source: str,
    *,
    format: str,
    out: Path,
    quantization: str = "",
    whole: bool = False,
    input: str = "float32",
    output: str = "logits",
    scaling: bool = True,
    uri: str,
) -> ExportedFile:
    """Write a recorded network to a new file, and FILE.json beside it.

    `out` is the file, or a folder for a file named after the run. The network scales pixels itself, unless
    `scaling` is False or the format holds no program. With `whole`, dead units and channels stay, as zeros.
    The accuracy, size and times of int8 and fp16 are recorded on the run. Raises UsageError for an unknown
    name or a file that exists, and ExportError where the file cannot be written or its outputs differ from
    the network's; nothing is left behind then.
    """
    options = ExportOptions(format, quantization, whole, input, output, scaling)
    options.check()
    return export_model(resolve_source(source, uri=uri), options, out)


def export_model(model: ModelSource, options: ExportOptions, out: Path) -> ExportedFile:
    """Write the network of a source that is known already; as `export`."""
    export_format = options.check()
    target = out / f"{stem_of(model)}{options.suffix}" if out.is_dir() else out
    check_free(parts_of(target, export_format.companions))
    with folder_aside(target) as folder:
        written = write_network(model, options, folder / target.name)
        move(parts_of(written.path, export_format.companions), target.parent)
    return exported_file(model, written, target)


def exported_file(model: ModelSource, written: WrittenNetwork, target: Path) -> ExportedFile:
    """Record what was measured on the run, and return the file in its place."""
    reduced = written.reduced
    if reduced is not None and model.tracker is not None:
        points = [MetricPoint(name, value) for name, value in reduced.metrics().items()]
        row = model.tracker.get_run(model.run_id)
        with model.tracker.translating_errors():
            model.tracker.attach(row).log(metrics=points, tags={reduced.form: reduced.method})
    reason = model.tags.get("stopped_because", "")
    return ExportedFile(target, written.metadata, reduced, written.is_reduced, reason)


def write_network(
    model: ModelSource, options: ExportOptions, path: Path, *, data: Dataset | None = None
) -> WrittenNetwork:
    """Write a network and its FILE.json to new files in an existing folder; the errors of `export`."""
    export_format = options.check()
    if options.quantization and "dataset" not in model.params:
        raise UsageError(
            f"{model.name} names no data set, and {options.quantization} needs its training images"
        )
    interface = interface_of_source(model, options)
    net, saved = load_module(model, cut=not options.whole)
    is_half = options.quantization == HALF_FORM
    shipped = net if interface.is_plain or not export_format.computes else Shipped(net, interface)
    written = shipped
    if is_half:
        written = half = Shipped(net, interface, is_half=True)
        half.check_runs(saved.spec.input_shape)
    export_format.write(written, saved.spec, path)
    # The file is opened again: what it computes counts, not what was meant to be written.
    tolerance = HALF_TOLERANCE if is_half else export_format.tolerance
    comparison = compare_outputs(
        shipped, export_format.load(path), saved.spec.input_shape, tolerance=tolerance
    )
    metadata = describe(model, saved, net, export_format, interface, comparison)
    if options.format == "onnx":  # a quantized file keeps it
        describe_onnx(path, file_metadata(metadata))
    reduced, is_reduced = None, False
    if options.quantization:
        data = data or recorded_data(model, "cpu")
        if is_half:
            reduced = _compare_half(path, export_format, shipped, saved.spec, data, interface)
            is_reduced = True
        else:
            reduced, is_reduced = _quantize(path, data, interface, is_optional=options.quantization == AUTO)
        metadata |= reduced.metadata() if is_reduced else {}
    metadata = with_digests(metadata, path, export_format.companions)
    save_metadata(path, metadata)
    return WrittenNetwork(path, metadata, reduced, is_reduced, export_format.load(path), interface)


def save_metadata(path: Path, metadata: Mapping[str, Json]) -> None:
    """Write FILE.json."""
    text = json.dumps(metadata, indent=1, sort_keys=True)
    metadata_path(path).write_text(f"{text}\n", encoding="utf-8")


def _quantize(path: Path, data: Dataset, interface: Interface, *, is_optional: bool) -> tuple[Reduced, bool]:
    """Replace an onnx file by its int8 form; an optional one only where nothing speaks against it."""
    int8 = path.with_name("int8.onnx")
    reduced = quantize(path, int8, data, interface)
    if is_optional and reduced.objection:
        int8.unlink()
        return reduced, False
    int8.replace(path)
    return reduced, True


def _compare_half(
    path: Path,
    export_format: ExportFormat,
    shipped: nn.Module,
    spec: ModelSpec,
    data: Dataset,
    interface: Interface,
) -> Reduced:
    """Hold a file in float16 against one in float32, which is removed again."""
    fp32 = path.with_name(f"fp32{export_format.ending}")
    export_format.write(shipped, spec, fp32)
    files = tuple(opened(part, export_format.load(part), export_format.companions) for part in (fp32, path))
    reduced = compare_forms(HALF_FORM, HALF, (files[0], files[1]), data, interface)
    for part in (fp32, *(fp32.with_suffix(ending) for ending in export_format.companions)):
        part.unlink()
    return reduced


def interface_of_source(model: ModelSource, options: ExportOptions) -> Interface:
    """Return what the file is to take and give; DataError or StoreError where its scaling cannot be known."""
    if not options.scaling or not FORMATS[options.format].computes:
        return Interface(None, options.input, options.output)
    scale = _recorded_scaling(model)
    if scale is None and options.input == "uint8":
        raise UsageError(
            f"{model.name} names no data set, so that its scaling is not known; leave --input out"
        )
    return Interface(scale, options.input, options.output)


def _recorded_scaling(model: ModelSource) -> Scaling | None:
    """Return how the data set of a network scales pixels; None where it names no data set."""
    try:
        dataset = recorded_dataset(model)
        return scaling(parse_dataset(dataset)[0]) if dataset else None
    except (DataError, StoreError) as error:
        hint = "--no-scaling writes the bare network, which takes floats that are scaled already"
        raise type(error)(f"{error}; {hint}") from error
