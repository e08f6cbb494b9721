"""Export a network to a file, and compare the file with it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ExportError, UsageError, unknown_name
from orchestrator.model_io.formats import find_format
from orchestrator.model_io.load import load_module, recorded_data
from orchestrator.model_io.metadata import compare, metadata, usage_text
from orchestrator.model_io.quantization import Int8, quantize
from orchestrator.model_io.source import ModelSource, resolve_source
from orchestrator.storage.manifest import make_entry
from orchestrator.system.files import FULL
from orchestrator.tracking import MetricPoint

QUANTIZED = ("int8",)


@dataclass(frozen=True)
class Exported:
    """A file that is done, and what is known of it."""

    path: Path
    about: Mapping[str, Any]  # JSON
    int8: Int8 | None
    stopped_because: str

    def lines(self) -> Iterator[str]:
        network, check = self.about["network"], self.about["check"]
        yield f"{self.about['name']} as {self.about['format']}: {self.path}"
        if self.stopped_because:
            yield f"its trial was stopped early: {self.stopped_because}"
        share = network["parameters"] / network["parameters_dense"]
        yield (
            f"{network['model']}: {network['parameters']:,} parameters ({share:.1%} of the dense network's), "
            f"{network['macs']:,} MACs an image, {self.about['bytes']:,} bytes"
        )
        what = "before quantization, " if self.int8 else ""
        yield (
            f"{what}largest output difference {check['largest']:.3g} in batches of "
            f"{', '.join(map(str, check['batches']))}; {check['allowed']:.3g} is allowed"
        )
        yield usage_text(self.about)
        yield from self.int8.lines() if self.int8 else ()


def export(
    source: str, *, format: str, out: Path, quantization: str = "", whole: bool = False, uri: str
) -> Exported:
    """Write a recorded network to a file that is not there yet, and FILE.json beside it.

    `out` is the file, or a folder for one that is named after the run. With `whole`, dead units and channels
    stay, as zeros. `quantization="int8"` goes with onnx; what it costs is recorded on the run. UsageError for
    an unknown word or a file that exists; ExportError where the file cannot be written, or does not compute
    what the network does: then there is none.
    """
    chosen = find_format(format)
    _check_quantization(quantization, format)
    origin = resolve_source(source, uri=uri)
    target = _target(out, origin, suffix=f"{'-int8' if quantization else ''}.{format}")
    net, saved = load_module(origin, cut=not whole)
    with _aside(target) as folder:
        written = folder / target.name
        chosen.write(net, saved.spec, written)
        run = chosen.runner(written)
        comparison = compare(net, run, saved.spec.input_shape, tolerance=chosen.tolerance)
        int8 = _quantized(written, origin) if quantization else None
        about = metadata(
            origin, saved, net, form=chosen, file=make_entry(written.read_bytes()), comparison=comparison
        )
        about |= int8.about() if int8 else {}
        _finish(written, about, target)
    _record(origin, int8)
    return Exported(target, about, int8, origin.tags.get("stopped_because", ""))


def _check_quantization(name: str, format: str) -> None:
    if name and name not in QUANTIZED:
        raise UsageError(unknown_name("quantization", name, QUANTIZED))
    if name and format != "onnx":
        raise UsageError(f"--quantize {name} goes with --format onnx, not with {format}")


def _target(out: Path, origin: ModelSource, *, suffix: str) -> Path:
    """The path of the file. UsageError where there is one already, or no folder for it."""
    if out.is_dir():
        name = re.sub(r"[^\w.=-]+", "-", origin.name).strip("-.")
        out = out / f"{name}{f'-{origin.run_id[:8]}' if origin.run_id else ''}{suffix}"
    for path in (out, _beside(out)):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already; remove it, or name another file with --out")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}; make it, or name another file with --out")
    return out


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end whatever happens. ExportError where none can be made."""
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        room = "no room is left" if error.errno in FULL else error.strerror or str(error)
        raise ExportError(f"{target} cannot be written: {room}; --out names another place") from error


def _quantized(written: Path, origin: ModelSource) -> Int8:
    """Put the int8 form in the place of a file."""
    if "dataset" not in origin.params:
        raise UsageError(f"{origin.name} names no data set, and int8 needs its training images")
    whole = written.with_name("fp32.onnx")
    written.rename(whole)
    found = quantize(whole, written, recorded_data(origin, "cpu"))
    whole.unlink()
    return found


def _finish(written: Path, about: Mapping[str, Any], target: Path) -> None:
    """Its name comes last: what bears it is whole, and described."""
    described = written.with_name("about.json")
    described.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    described.replace(_beside(target))
    written.replace(target)


def _record(origin: ModelSource, int8: Int8 | None) -> None:
    if int8 is None or origin.tracker is None:
        return
    points = [MetricPoint(name, value) for name, value in int8.metrics().items()]
    row = origin.tracker.get_run(origin.run_id)
    with origin.tracker.translating_errors():
        origin.tracker.attach(row).log(metrics=points, tags={"int8": int8.how})
