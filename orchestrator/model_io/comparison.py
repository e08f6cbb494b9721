"""Exported files held against others: outputs against the network's, int8 and fp16 against float32.

Of reduced precision also accuracy, loss, size and latency are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.data.loading import Dataset, Split
from orchestrator.data.scaled_images import Images
from orchestrator.errors import ExportError
from orchestrator.model_io.formats import Predict, interface_of
from orchestrator.model_io.interface import BARE, Interface
from orchestrator.system.timing import Timing, batch_suffix, side_by_side
from pruning.eval_mode import eval_mode

CHECKED_BATCHES = (1, 2, 7)  # several, as a file may be fixed to one batch size
SEED = 0
TIMED_BATCHES = (1, 256)
SECONDS = 2.0  # of timing, for each file and batch size
FP32 = "fp32"


@dataclass(frozen=True)
class OutputComparison:
    """`largest` absolute difference of an output; `allowed` is the limit, for outputs up to `output`."""

    largest: float
    allowed: float
    output: float
    batches: tuple[int, ...] = CHECKED_BATCHES


def compare_outputs(
    net: nn.Module, predict: Predict, shape: tuple[int, int, int], *, tolerance: float
) -> OutputComparison:
    """Run a network and its file on the same random images, in batches of several sizes.

    The images are those that the network takes: normal numbers for a bare one, or pixels. Raises ExportError
    where outputs differ by more than `tolerance` times the largest output (at least 1).
    """
    generator, interface = torch.Generator().manual_seed(SEED), interface_of(net)
    largest = output = 0.0
    for size in CHECKED_BATCHES:
        images = interface.random_images(size, shape, generator)
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


@dataclass(frozen=True)
class Quality:
    """Of one file: accuracy (a fraction) and loss (in nats) on test images, and its size."""

    accuracy: float
    loss: float
    bytes: int


@dataclass(frozen=True)
class Reduced:
    """The float32 file and the one in `form` compared; `timings` by batch size, on one thread.

    `float_layers` of `layers` stay float, for the accuracy that they would cost.
    """

    form: str
    method: str
    fp32: Quality
    reduced: Quality
    largest_difference: float
    timings: Mapping[int, Timing]
    float_layers: tuple[str, ...] = ()
    layers: int = 0

    @property
    def objection(self) -> str:
        """Why this form is not the default, with both times; empty where it is no slower than float32."""
        timing = self.timings[TIMED_BATCHES[0]]
        before, after = (timing.spreads[name].p50 for name in (FP32, self.form))
        numbers = f"{after:.3f} ms against {before:.3f} ms of float32 for one image"
        if timing.doubts:
            return f"its times are not reliable ({', '.join(timing.doubts)}): {numbers}"
        return f"it is slower: {numbers}" if timing.ratios[self.form] < 1 else ""

    def metadata(self) -> dict[str, object]:
        """Return what FILE.json has of it; no times, which depend on the machine."""
        fp32 = {f"fp32_{name}": value for name, value in vars(self.fp32).items()}
        facts = {"how": self.method, "loss": self.reduced.loss, "largest_difference": self.largest_difference}
        layers = {"float_layers": list(self.float_layers)} if self.layers else {}
        return {"accuracy": self.reduced.accuracy, self.form: {**facts, **fp32, **layers}}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that the run gets, `int8/...` and `int8/fp32_...`."""
        form = self.form
        metrics = {f"{form}/{name}": float(value) for name, value in vars(self.reduced).items()}
        metrics |= {f"{form}/fp32_{name}": float(value) for name, value in vars(self.fp32).items()}
        for size, timing in self.timings.items():
            metrics[f"{form}/latency_ms_p50{batch_suffix(size)}"] = timing.spreads[form].p50
            metrics[f"{form}/fp32_latency_ms_p50{batch_suffix(size)}"] = timing.spreads[FP32].p50
            metrics[f"{form}/aa{batch_suffix(size)}"] = timing.self_ratio
        return metrics

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        ratio = self.fp32.bytes / self.reduced.bytes
        change = f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x larger"
        yield f"{self.form}: {self.method}; fp32 -> {self.form}:"
        yield f"  test accuracy  {self.fp32.accuracy:.2%} -> {self.reduced.accuracy:.2%}"
        yield f"  test loss      {self.fp32.loss:.4f} -> {self.reduced.loss:.4f}"
        yield f"  bytes          {self.fp32.bytes:,} -> {self.reduced.bytes:,}, {change}"
        for size, timing in self.timings.items():
            before, after = (timing.spreads[name].p50 for name in (FP32, self.form))
            speed = f"{timing.ratios[self.form]:.2f}x as fast"
            claim = f"no claim: {', '.join(timing.doubts)}" if timing.doubts else speed
            yield f"  batch {size:<8} {before:.3f} ms -> {after:.3f} ms, {claim}"
        yield f"  (one thread, medians, the two in turn; {self.form} is not always faster)"
        if self.float_layers:
            count = f"{len(self.float_layers)} of {self.layers} layers stay float, for accuracy"
            yield f"  {count}: {', '.join(self.float_layers)}"


@dataclass(frozen=True)
class OpenedFile:
    """A file with the function that runs it; `bytes` counts all its parts."""

    predict: Predict
    bytes: int


def opened(path: Path, predict: Predict, companions: tuple[str, ...] = ()) -> OpenedFile:
    """Return a file with its size, that of the files it comes with included."""
    paths = [path, *(path.with_suffix(suffix) for suffix in companions)]
    return OpenedFile(predict, sum(part.stat().st_size for part in paths))


def compare_forms(
    form: str,
    method: str,
    files: tuple[OpenedFile, OpenedFile],
    data: Dataset,
    interface: Interface = BARE,
    *,
    float_layers: tuple[str, ...] = (),
    layers: int = 0,
) -> Reduced:
    """Measure a float32 file and its reduced form on test images; ExportError if numbers are not finite."""
    fp32, reduced = files
    images = interface.feed(data.validation.images[:])
    return Reduced(
        form,
        method,
        _quality(fp32, data, interface),
        _quality(reduced, data, interface),
        float((fp32.predict(images) - reduced.predict(images)).abs().max()),
        {
            size: _timing(form, files, interface.feed(_batch(data.test.images, size)))
            for size in TIMED_BATCHES
        },
        float_layers,
        layers,
    )


def _quality(file: OpenedFile, data: Dataset, interface: Interface) -> Quality:
    return Quality(*accuracy_and_loss(file.predict, data.test, interface), file.bytes)


def accuracy_and_loss(predict: Predict, split: Split, interface: Interface = BARE) -> tuple[float, float]:
    """Return (accuracy, mean cross-entropy in nats) of a file; ExportError where it gives no numbers."""
    outputs = outputs_of(predict, split, interface)
    hits = int((outputs.argmax(1) == split.labels).sum())
    scores = outputs.double()
    if interface.output == "probabilities":
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
        return hits / len(split), float(functional.nll_loss(scores, split.labels))
    return hits / len(split), float(functional.cross_entropy(scores, split.labels))


def outputs_of(predict: Predict, split: Split, interface: Interface) -> Tensor:
    """Return the outputs [N, classes] of a file for all images of a split; ExportError if not finite."""
    outputs = torch.cat([predict(interface.feed(batch)) for batch in split.images.split(TIMED_BATCHES[-1])])
    if not torch.isfinite(outputs).all():
        raise ExportError("the exported network gives numbers that are not finite")
    return outputs


def _timing(form: str, files: tuple[OpenedFile, OpenedFile], images: Tensor) -> Timing:
    calls = {name: partial(file.predict, images) for name, file in zip((FP32, form), files, strict=True)}
    return side_by_side(calls, seconds=SECONDS)


def _batch(images: Images, size: int) -> Tensor:
    return images[torch.arange(size) % len(images)].contiguous()
