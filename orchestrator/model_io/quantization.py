"""Int8 after pruning: a smaller onnx file, and what it costs in accuracy and gains in time, if it does.

Networks with convolutions get quantize and dequantize nodes with ranges that were observed on training
images, a scale per channel (Jacob et al., CVPR 2018); others get int8 weights, and ranges as they run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.data.loading import Dataset, Split
from orchestrator.errors import ExportError
from orchestrator.model_io.format import Run
from orchestrator.model_io.onnx_format import IMAGES, runner
from orchestrator.system.timing import Timing, batch_suffix, side_by_side

CALIBRATION_IMAGES, AT_ONCE = 256, 64
MOST_LOST = 0.05  # of validation accuracy; more than that is no use to anybody
BATCHES = (1, 256)
SECONDS = 2.0  # of timing, for each file and batch size


@dataclass(frozen=True)
class Quality:
    """Of one file: fractions and nats on test images."""

    accuracy: float
    loss: float
    bytes: int


@dataclass(frozen=True)
class Int8:
    """Both files side by side; `timings` by batch size, on one thread."""

    how: str
    fp32: Quality
    int8: Quality
    largest_difference: float
    timings: Mapping[int, Timing]

    def about(self) -> dict[str, object]:
        """For FILE.json: the accuracy is this file's; no times, which are one machine's."""
        fp32 = {f"fp32_{name}": value for name, value in vars(self.fp32).items()}
        facts = {"how": self.how, "loss": self.int8.loss, "largest_difference": self.largest_difference}
        return {"accuracy": self.int8.accuracy, "int8": {**facts, **fp32}}

    def metrics(self) -> dict[str, float]:
        found = {f"int8/{name}": float(value) for name, value in vars(self.int8).items()}
        found |= {f"int8/fp32_{name}": float(value) for name, value in vars(self.fp32).items()}
        for size, timing in self.timings.items():
            found[f"int8/latency_ms_p50{batch_suffix(size)}"] = timing.spreads["int8"].p50
            found[f"int8/fp32_latency_ms_p50{batch_suffix(size)}"] = timing.spreads["fp32"].p50
            found[f"int8/aa{batch_suffix(size)}"] = timing.self_ratio
        return found

    def lines(self) -> Iterator[str]:
        smaller = self.fp32.bytes / self.int8.bytes
        yield f"int8: {self.how}; fp32 -> int8:"
        yield f"  test accuracy  {self.fp32.accuracy:.2%} -> {self.int8.accuracy:.2%}"
        yield f"  test loss      {self.fp32.loss:.4f} -> {self.int8.loss:.4f}"
        yield f"  bytes          {self.fp32.bytes:,} -> {self.int8.bytes:,}, {smaller:.1f}x smaller"
        for size, timing in self.timings.items():
            before, after = (timing.spreads[name].p50 for name in ("fp32", "int8"))
            speed = f"{timing.ratios['int8']:.2f}x as fast"
            claim = f"no claim: {', '.join(timing.doubts)}" if timing.doubts else speed
            yield f"  batch {size:<8} {before:.3f} ms -> {after:.3f} ms, {claim}"
        yield "  (one thread, medians, the two in turn; int8 is always smaller, and not always faster)"


def quantize(source: Path, target: Path, data: Dataset) -> Int8:
    """Write `target`, the int8 form of the onnx file `source`, and compare the two.

    ExportError where it loses too much accuracy on validation images, or gives numbers that are not finite.
    """
    with _quietly():
        how = _write(source, target, data.train.images[:CALIBRATION_IMAGES])
    fp32, int8 = runner(source), runner(target)
    lost = _accuracy(fp32, data.validation)[0] - _accuracy(int8, data.validation)[0]
    if lost > MOST_LOST:
        raise ExportError(
            f"int8 loses {lost:.1%} of validation accuracy, and {MOST_LOST:.0%} is the most allowed"
        )
    images = data.validation.images
    return Int8(
        how,
        Quality(*_accuracy(fp32, data.test), source.stat().st_size),
        Quality(*_accuracy(int8, data.test), target.stat().st_size),
        float((fp32(images) - int8(images)).abs().max()),
        {size: _timing(fp32, int8, _batch(data.test.images, size)) for size in BATCHES},
    )


def _timing(fp32: Run, int8: Run, images: Tensor) -> Timing:
    return side_by_side({"fp32": partial(fp32, images), "int8": partial(int8, images)}, seconds=SECONDS)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without onnxruntime's advice, on the root logger, to simplify a graph that torch has simplified."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _write(source: Path, target: Path, images: Tensor) -> str:
    import onnx
    from onnxruntime import quantization as ort

    graph = onnx.load(source).graph
    if not any(node.op_type == "Conv" for node in graph.node):
        ort.quantize_dynamic(source, target, per_channel=True, weight_type=ort.QuantType.QInt8)
        return "int8 weights by channel, activations as they come"
    ort.quantize_static(
        source,
        target,
        _calibration(images),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QUInt8,  # three times as fast on a CPU as int8 ones
        weight_type=ort.QuantType.QInt8,
    )
    return f"static, weights by channel, ranges of {len(images)} training images"


def _calibration(images: Tensor) -> Any:  # onnxruntime has no types
    from onnxruntime.quantization import CalibrationDataReader

    parts = iter(images.split(AT_ONCE))

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            part = next(parts, None)
            return None if part is None else {IMAGES: part.numpy()}

    return Images()


def _accuracy(run: Run, split: Split) -> tuple[float, float]:
    """(accuracy, mean cross-entropy in nats)."""
    logits = torch.cat([run(part) for part in split.images.split(BATCHES[-1])])
    if not torch.isfinite(logits).all():
        raise ExportError("the quantized network gives numbers that are not finite")
    hits = int((logits.argmax(1) == split.labels).sum())
    return hits / len(split), float(functional.cross_entropy(logits.double(), split.labels))


def _batch(images: Tensor, size: int) -> Tensor:
    return images[torch.arange(size) % len(images)].contiguous()
