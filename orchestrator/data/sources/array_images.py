"""Arrays as people save them, as images uint8 [N, C, H, W] and labels from 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.sources.content_split import SPLITS
from orchestrator.errors import DataError
from orchestrator.formatting import first_control, is_encodable

Blocks = Callable[[], Iterator[NDArray[Any]]]  # of an array, from the first to the last of its images
CHANNELS = (1, 3)
MAX_CLASSES = 100_000
NEARLY_UNIT = 2.0  # floats up to less are no pixels up to 255, but numbers up to 1 with some error


def is_channels_last(shape: Sequence[int], layout: str) -> bool:
    """Whether the channels of [N, ?, ?, ?] come last. DataError where both are possible, or neither."""
    if layout != "auto":
        return layout == "last"
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first != last:
        return last
    problem = "may have its channels first or last" if first else "has neither 1 nor 3 channels"
    raise DataError(f"x is {list(shape)} and {problem}; say layout: first or layout: last")


def image_shape(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """Return [C, H, W] of an array's shape. DataError for one that holds no images."""
    if len(shape) == 3:
        result = (1, shape[1], shape[2])
    elif len(shape) == 4 and is_channels_last(shape, layout):
        result = (shape[3], shape[1], shape[2])
    elif len(shape) == 4:
        result = (shape[1], shape[2], shape[3])
    else:
        raise DataError(f"x is {list(shape)}; images are [N, H, W], [N, C, H, W] or [N, H, W, C]")
    if 0 in result:
        raise DataError(f"x is {list(shape)}: its images have no pixels")
    return result


def to_channels_first(images: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return images as [N, C, H, W]."""
    image_shape(images.shape, layout)
    if images.ndim == 3:
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if is_channels_last(images.shape, layout) else images


def pixel_factor(name: str, blocks: Blocks) -> int:
    """Return what makes numbers from 0 to 255 of an array's: 255 for floats in [0, 1] and booleans, else 1.

    DataError for numbers outside [0, 255], and for floats of which the largest is a little above 1.
    """
    dtype = next(blocks()).dtype
    if dtype == np.uint8:
        return 1
    if dtype.kind not in "iufb":
        raise DataError(f"{name} holds {dtype}; give uint8, or floats in [0, 1] or [0, 255]")
    if dtype.kind == "b":
        return 255
    lows, highs = zip(*((block.min(), block.max()) for block in blocks()), strict=True)
    low, high = np.min(lows), np.max(highs)
    if not (low >= 0 and high <= 255):  # also where either is no number
        raise DataError(f"{name} has numbers from {low:g} to {high:g}; give uint8, or floats up to 1 or 255")
    if dtype.kind == "f" and 1 < high < NEARLY_UNIT:
        raise DataError(
            f"{name} has floats up to {high:g}, a little above 1; clip them to [0, 1], or give [0, 255]"
        )
    return 255 if dtype.kind == "f" and high <= 1 else 1


def write_bytes(parts: Mapping[str, Blocks], pixels: NDArray[np.uint8]) -> Iterator[int]:
    """Write the images of all splits into `pixels`: whole numbers as they are, floats rounded to even.

    Floats that all lie in [0, 1] are multiplied by 255 before. `parts` are functions that yield an array in
    blocks, by its name: uint8 is read once, other numbers twice. Yields how many images are written, block by
    block. DataError for numbers outside [0, 255], and for splits of which one goes up to 1 and another to
    255.
    """
    factors = {name: pixel_factor(name, blocks) for name, blocks in parts.items()}
    if len(set(factors.values())) > 1:
        texts = (f"{name} up to {255 // factor}" for name, factor in factors.items())
        raise DataError(f"the numbers of its images are of two scales, {', '.join(texts)}; give one")
    start = 0
    for name, blocks in parts.items():
        for block in blocks():
            place = pixels[start : start + len(block)]
            is_plain = block.dtype == np.uint8
            place[:] = block if is_plain else np.rint(block.astype(np.float64) * factors[name])
            start += len(block)
            yield len(block)


def class_labels(
    values: NDArray[Any], splits: Sequence[str], given: NDArray[Any] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels from 0 in the order of their values, and the names of the classes.

    `given` are names for the classes 0, 1, ...; without them a class is called by its value. DataError for a
    single class, and for one without training images.
    """
    if values.dtype.kind == "f" and np.all(np.isfinite(values)) and np.all(values == np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iubU":
        raise DataError(f"y holds {values.dtype}; give whole numbers, or texts")
    classes, labels = np.unique(values, return_inverse=True)
    names = tuple(str(value) for value in classes)
    if given is not None:
        numbered = values.dtype.kind in "iu" and int(classes[0]) >= 0 and int(classes[-1]) < given.size
        if (
            given.dtype.kind != "U"
            or given.ndim != 1
            or not numbered
            or len(set(given.tolist())) != given.size
        ):
            raise DataError("class_names has to be different texts, one for each label 0, 1, ... of y")
        names = tuple(str(given[value]) for value in classes)
    check_class_names(names)
    trained = set(np.unique(labels[np.array(splits) == "train"]).tolist())
    for label, name in enumerate(names):
        if label not in trained:
            raise DataError(f"class {name!r} has no training images")
    return labels.astype(np.int64), names


def check_class_names(names: Sequence[str]) -> None:
    """Raise DataError unless there are two or more classes, with names that can be printed."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(f"it has {len(names)} classes; two or more are needed")
    for name in names:
        if not name.strip() or len(name) > 200 or first_control(name) is not None or not is_encodable(name):
            raise DataError(f"{name!r:.200} cannot name a class; use printable letters, 200 at most")


def split_names(values: NDArray[Any], count: int) -> list[str]:
    """Return the split of each image from numbers 0, 1, 2 or names. DataError for anything else."""
    if values.shape != (count,):
        raise DataError(f"split is {list(values.shape)}, and there are {count} images; give [{count}]")
    names = {0: "train", 1: "validation", 2: "test", "val": "validation", "valid": "validation"}
    names |= {name: name for name in SPLITS}
    result = []
    for value in values.tolist():
        if value not in names or isinstance(value, (bool, float)):
            raise DataError(f"split has {value!r:.80}; give 0, 1, 2 or train, validation, test")
        result.append(names[value])
    return result
