"""An exported file on the test images, fed as its users feed it, and one image as a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.loading import Dataset, Scaling
from orchestrator.model_io.comparison import outputs_of
from orchestrator.model_io.export import WrittenNetwork
from orchestrator.model_io.interface import Interface

Json = Any  # what json can write
SAMPLE, PICTURE = "sample.npy", "sample.png"
NORMAL_QUANTILE = 1.959964  # of 97.5%
SIDE = 128  # pixels of the picture at least, so that a person sees it
PICTURED = (1, 3)  # channels
# What `check.py` allows of outputs up to 1, in proportion: other processors add in another order.
ALLOWED = {"": 1e-4, "fp16": 1e-2, "int8": 5e-2}


@dataclass(frozen=True)
class FileAccuracy:
    """Accuracy (a fraction) of a file on `images` test images, with its 95% interval, and by class."""

    accuracy: float
    low: float
    high: float
    images: int
    by_class: tuple[tuple[str, float, int], ...]

    def to_json(self) -> dict[str, Json]:
        """Return what FILE.json has of it."""
        classes = {name: {"accuracy": value, "images": count} for name, value, count in self.by_class}
        interval = [self.low, self.high]
        return {"images": self.images, "accuracy": self.accuracy, "interval": interval, "by_class": classes}

    def text(self) -> str:
        """Return the accuracy with its interval, as `97.40% (95.61% to 98.47%) on 500 test images`."""
        return (
            f"{self.accuracy:.2%} ({self.low:.2%} to {self.high:.2%}, 95% interval) "
            f"on {self.images:,} test images"
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """A test image as the file takes it, and the file's output for it."""

    index: int
    label: int
    images: Tensor
    output: Tensor

    @property
    def predicted(self) -> int:
        return int(self.output.argmax())

    def to_json(self, class_names: tuple[str, ...], form: str) -> dict[str, Json]:
        """Return what FILE.json has of it; `form` is int8, fp16 or empty."""
        allowed = ALLOWED[form] * max(1.0, float(self.output.abs().max()))
        return {
            "file": SAMPLE,
            "test_image": self.index,
            "class": self.label,
            "class_name": class_names[self.label],
            "predicted": self.predicted,
            "output": self.output.tolist(),
            "allowed": allowed,
        }


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a fraction, Wilson's score (JASA 22, 1927, 209-212).

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    share, square = hits / count, NORMAL_QUANTILE**2
    centre = share + square / (2 * count)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + square / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def evaluate_file(written: WrittenNetwork, data: Dataset) -> tuple[FileAccuracy, Sample]:
    """Run a file on all test images; the sample is the first whose class it finds, or else the first."""
    outputs, labels = outputs_of(written.predict, data.test, written.interface), data.test.labels
    is_hit = outputs.argmax(1) == labels
    hits, count = int(is_hit.sum()), len(labels)
    by_class = []
    for label, name in enumerate(data.class_names):
        of_class = labels == label
        number = int(of_class.sum())
        share = int((is_hit & of_class).sum()) / number if number else math.nan
        by_class.append((name, share, number))
    accuracy = FileAccuracy(
        hits / count, *wilson_interval(hits, count), count, tuple(c for c in by_class if c[2])
    )
    index = int(is_hit.nonzero()[0]) if hits else 0
    images = written.interface.feed(data.test.images[torch.tensor([index])])
    # Run alone, as check.py runs it.
    return accuracy, Sample(index, int(labels[index]), images, written.predict(images)[0])


def write_sample(folder: Path, sample: Sample, interface: Interface, scaling: Scaling) -> list[str]:
    """Write the image as an array and, of one or three channels, as a picture; return the files' names."""
    np.save(folder / SAMPLE, sample.images.contiguous().numpy())
    picture = _picture(sample.images, interface, scaling)
    if picture.shape[0] not in PICTURED:
        return [SAMPLE]
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).squeeze(2).numpy())
    factor = -(-SIDE // min(image.size))
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(
        folder / PICTURE
    )
    return [SAMPLE, PICTURE]


def _picture(images: Tensor, interface: Interface, scaling: Scaling) -> Tensor:
    """Return the sample as bytes [C, H, W] from 0 to 255."""
    if interface.scaling is None:
        images = Interface(scaling).feed(images)
    levels = scaling.levels if interface.input == "uint8" else 1
    return (images[0].to(torch.float32) * (255 / levels)).round().to(torch.uint8)
