"""Quantize an onnx file to int8 after pruning, and measure its accuracy, size and speed.

Networks with convolutions get quantize and dequantize nodes with ranges observed on training images, a scale
per channel (Jacob et al., CVPR 2018); others get int8 weights, and ranges of activations at run time.
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
from orchestrator.data.scaled_images import Images
from orchestrator.errors import ExportError
from orchestrator.model_io.formats import IMAGES, Predict, load_onnx
from orchestrator.system.timing import Timing, batch_suffix, side_by_side

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 64
LARGEST_DROP = 0.05  # of validation accuracy
BATCHES = (1, 256)
SECONDS = 2.0  # of timing, for each file and batch size


@dataclass(frozen=True)
class Quality:
    """Of one file: accuracy (a fraction) and loss (in nats) on test images, and its size."""

    accuracy: float
    loss: float
    bytes: int


@dataclass(frozen=True)
class Int8:
    """The fp32 and the int8 file compared; `timings` by batch size, on one thread."""

    method: str
    fp32: Quality
    int8: Quality
    largest_difference: float
    timings: Mapping[int, Timing]

    def metadata(self) -> dict[str, object]:
        """Return what FILE.json has of it; no times, which depend on the machine."""
        fp32 = {f"fp32_{name}": value for name, value in vars(self.fp32).items()}
        facts = {"how": self.method, "loss": self.int8.loss, "largest_difference": self.largest_difference}
        return {"accuracy": self.int8.accuracy, "int8": {**facts, **fp32}}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that the run gets, `int8/...` and `int8/fp32_...`."""
        metrics = {f"int8/{name}": float(value) for name, value in vars(self.int8).items()}
        metrics |= {f"int8/fp32_{name}": float(value) for name, value in vars(self.fp32).items()}
        for size, timing in self.timings.items():
            metrics[f"int8/latency_ms_p50{batch_suffix(size)}"] = timing.spreads["int8"].p50
            metrics[f"int8/fp32_latency_ms_p50{batch_suffix(size)}"] = timing.spreads["fp32"].p50
            metrics[f"int8/aa{batch_suffix(size)}"] = timing.self_ratio
        return metrics

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        smaller = self.fp32.bytes / self.int8.bytes
        yield f"int8: {self.method}; fp32 -> int8:"
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

    Raises ExportError where it loses more than 5 points of validation accuracy, or gives numbers that are not
    finite.
    """
    with _no_logging():
        method = _write(source, target, data.train.images[:CALIBRATION_IMAGES])
    fp32, int8 = load_onnx(source), load_onnx(target)
    drop = _accuracy(fp32, data.validation)[0] - _accuracy(int8, data.validation)[0]
    if drop > LARGEST_DROP:
        raise ExportError(
            f"int8 loses {drop:.1%} of validation accuracy, and {LARGEST_DROP:.0%} is the most allowed"
        )
    images = data.validation.images[:]
    return Int8(
        method,
        Quality(*_accuracy(fp32, data.test), source.stat().st_size),
        Quality(*_accuracy(int8, data.test), target.stat().st_size),
        float((fp32(images) - int8(images)).abs().max()),
        {size: _timing(fp32, int8, _batch(data.test.images, size)) for size in BATCHES},
    )


def _timing(fp32: Predict, int8: Predict, images: Tensor) -> Timing:
    return side_by_side({"fp32": partial(fp32, images), "int8": partial(int8, images)}, seconds=SECONDS)


@contextmanager
def _no_logging() -> Iterator[None]:
    """Silence onnxruntime's advice on the root logger to simplify a graph that torch has simplified."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _write(source: Path, target: Path, images: Tensor) -> str:
    """Quantize the file, and return a description of the method."""
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

    batches = iter(images.split(CALIBRATION_BATCH))

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    return Images()


def _accuracy(predict: Predict, split: Split) -> tuple[float, float]:
    """(accuracy, mean cross-entropy in nats)."""
    logits = torch.cat([predict(batch) for batch in split.images.split(BATCHES[-1])])
    if not torch.isfinite(logits).all():
        raise ExportError("the quantized network gives numbers that are not finite")
    hits = int((logits.argmax(1) == split.labels).sum())
    return hits / len(split), float(functional.cross_entropy(logits.double(), split.labels))


def _batch(images: Images, size: int) -> Tensor:
    return images[torch.arange(size) % len(images)].contiguous()
