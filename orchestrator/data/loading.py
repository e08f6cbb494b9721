"""Data sets as they are trained on: their splits, scaled, with a digest.

Split: `digits` is always 1257 / 180 / 360. Other data sets keep their own test set, and a tenth of their
training images, stratified, is for validation; a source may decide all three (see `Raw`). Options
(`classes`, `samples_per_class`) choose from these splits, so an image never moves from one to another.

Scale: `digits` / 16. Others / 255, then minus the mean and by the standard deviation of each channel over the
full training split, with options too: a part is scaled as the full set, and transfer sees equal inputs.

Memory: up to FLOAT_BYTES the images are a float tensor. Larger sets stay bytes, which are scaled batch by
batch with the same bits (see `scaled_images`); of a decoded file all processes share the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config import DenseConfig
from orchestrator.data.datasets import Raw, check_options, info, parse_dataset
from orchestrator.data.files import read_raw
from orchestrator.data.paths import from_data_dir
from orchestrator.data.scaled_images import Images, PixelScale, ScaledImages, pixels_of
from orchestrator.data.sources.base import FLOAT_BYTES
from orchestrator.data.sources.registry import clear_facts, find_source
from orchestrator.data.splits import SPLIT_SEED, Index, check_splits, first_per_class, split_indices
from orchestrator.errors import DataError
from orchestrator.system.memory import moved_if_it_fits

GPU_BYTES = 1_000_000_000  # of images that are held by a GPU as bytes; more are sent batch by batch
READ_BYTES = 1 << 22  # at once, where all images are read


@dataclass(frozen=True, eq=False)
class Split:
    """Images float32 [N, C, H, W] and labels int64 [N] on one device.

    Those of large sets are `ScaledImages`, whose items are such tensors. `pixel_scale` is what they were made
    with from bytes.
    """

    images: Images
    labels: Tensor
    pixel_scale: PixelScale | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set. `digest`: SHA-256 (hex) of the arrays as read, the indices of each split, and the scale."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, int, int]
    digest: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Scaling:
    """The scale of inputs: (pixel / levels - mean) / deviation, for whole pixels from 0 to `levels`.

    `mean` and `deviation` have one entry per channel.
    """

    levels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@from_data_dir
def scaling(name: str, *, data_dir: Path | None = None) -> Scaling:
    """Return the scale of a data set. SpaceError for unknown names, DataError for missing or bad files."""
    levels = info(name).levels
    raw = read_raw(name, data_dir)
    mean, deviation = _scale(raw, split_indices(name, raw)[0], levels=levels)
    return Scaling(levels, tuple(mean.tolist()), tuple(deviation.tolist()))


@from_data_dir
def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    device: str | torch.device = "cpu",
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
) -> Dataset:
    """Load a data set for `device`; the same bits whatever the global seeds.

    `classes` keeps only these, relabelled 0, 1, ... in the order given; `samples_per_class` keeps at most
    that many training images of each. SpaceError for an unknown name or a bad option, DataError for missing
    or corrupt files.
    """
    selection = _select(name, data_dir, classes=classes, samples_per_class=samples_per_class)
    pixel_scale = _pixel_scale(selection, info(name).levels)
    images_of = _images_of(selection, pixel_scale, torch.device(device))

    def split(index: Index) -> Split:
        return Split(images_of(index), _labels(selection, index).to(device), pixel_scale)

    return Dataset(
        name=name,
        train=split(selection.train),
        validation=split(selection.validation),
        test=split(selection.test),
        num_classes=len(selection.classes),
        input_shape=selection.input_shape,
        digest=_digest(name, selection),
        class_names=tuple(selection.raw.class_names[label] for label in selection.classes),
    )


@from_data_dir
def digest(
    name: str,
    *,
    data_dir: Path | None = None,
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
) -> str:
    """Return the `digest` of what `load_dataset` loads, without making tensors of it; the same errors."""
    return _digest(name, _select(name, data_dir, classes=classes, samples_per_class=samples_per_class))


@dataclass(frozen=True, eq=False)
class _Selection:
    """A data set as read, the indices of each split, the selected classes, and the scale."""

    raw: Raw
    train: Index
    validation: Index
    test: Index
    classes: Index
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.raw.images.shape[1:]
        return channels, height, width


def _select(
    name: str, data_dir: Path | None, *, classes: Sequence[int] | None, samples_per_class: int | None
) -> _Selection:
    clear_facts()  # the files may have changed since they were looked at
    check_options(name, classes=classes, samples_per_class=samples_per_class)
    raw = read_raw(name, data_dir)
    splits = split_indices(name, raw)
    labels = np.arange(info(name).num_classes) if classes is None else np.array(classes, dtype=np.int64)
    train, validation, test = (index[np.isin(raw.labels[index], labels)] for index in splits)
    check_splits(name, (train, validation, test), [raw.class_names[label] for label in labels])
    mean, deviation = _scale(raw, splits[0], levels=info(name).levels)
    if samples_per_class is not None:
        train = train[first_per_class(raw.labels[train], samples_per_class, seed=SPLIT_SEED)]
    return _Selection(raw, train, validation, test, labels, mean, deviation)


def _digest(name: str, selection: _Selection) -> str:
    """Return the SHA-256 over each array's type, shape and little-endian bytes."""
    raw = selection.raw
    arrays: list[NDArray[Any]] = [raw.labels, selection.train, selection.validation, selection.test]
    arrays += [selection.classes, selection.mean, selection.deviation]
    # Ours never change their levels; another package may, and with them the inputs.
    if info(name).read is not None:
        arrays.append(np.array(info(name).levels, dtype=np.int64))
    # The path of a folder decides nothing, the order of its classes does.
    if (source := find_source(name)) is not None:
        name = "|".join((source.name, *map(ascii, raw.class_names)))
    state = sha256(name.encode())
    state.update(_header(raw.images))
    for block in raw.blocks(READ_BYTES):
        state.update(_plain(block).data)
    for array in arrays:
        state.update(_header(array))
        state.update(_plain(array).data)
    return state.hexdigest()


def _header(array: NDArray[Any]) -> bytes:
    return f"|{array.dtype.newbyteorder('<').str}{array.shape}|".encode()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _scale(raw: Raw, train: Index, *, levels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation [C] of the training images / levels; 0 and 1 without own splits.

    They are computed from counts of each whole number: exact, and the same at every thread count.
    """
    channels = raw.images.shape[1]
    if not raw.own_test and raw.splits is None:
        return np.zeros(channels), np.ones(channels)
    counts = np.zeros((channels, 256), dtype=np.int64)
    step = max(1, READ_BYTES // max(1, raw.images[0].nbytes))
    for start in range(0, len(train), step):
        images = torch.from_numpy(raw.read(train[start : start + step]))
        for channel in range(channels):
            counts[channel] += torch.bincount(images[:, channel].flatten(), minlength=256).numpy()
    value = np.arange(256) / levels
    mean = counts @ value / counts.sum(axis=1)
    deviation = np.sqrt((counts * (value - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _pixel_scale(selection: _Selection, levels: int) -> PixelScale:
    mean, deviation = (torch.from_numpy(values).float() for values in (selection.mean, selection.deviation))
    return PixelScale(levels, mean, deviation)


def _images_of(
    selection: _Selection, pixel_scale: PixelScale, device: torch.device
) -> Callable[[Index], Images]:
    """Return the function that makes the images of a split from its indices."""
    raw = selection.raw
    count = sum(map(len, (selection.train, selection.validation, selection.test)))

    def as_bytes(index: Index, on_device: Tensor | None = None) -> ScaledImages:
        pixels, file = (pixels_of(raw.images), raw.file) if on_device is None else (on_device, None)
        return ScaledImages(pixels, torch.from_numpy(index).to(pixels.device), pixel_scale, device, file)

    def as_floats(index: Index) -> Images:
        # Scaled on the CPU and then moved: a GPU divides by a number in other bits.
        images = pixel_scale.on_cpu(torch.from_numpy(raw.read(index)))
        moved = moved_if_it_fits(lambda: images.to(device))
        return as_bytes(index) if moved is None else moved

    if 4 * count * prod(selection.input_shape) <= FLOAT_BYTES:
        return as_floats
    if device.type == "cuda" and raw.images.nbytes <= GPU_BYTES:
        moved = moved_if_it_fits(lambda: _moved(pixels_of(raw.images), raw, device))
        return partial(as_bytes, on_device=moved)
    return as_bytes


def _moved(pixels: Tensor, raw: Raw, device: torch.device) -> Tensor:
    """Return the bytes of all images on a device."""
    moved, start = torch.empty_strided(pixels.shape, pixels.stride(), dtype=torch.uint8, device=device), 0
    for block in raw.blocks(READ_BYTES):
        moved[start : start + len(block)] = torch.from_numpy(block).to(device)
        start += len(block)
    return moved


def _labels(selection: _Selection, index: Index) -> Tensor:
    """Return the labels of a split, numbered as the classes were selected."""
    new_label = np.zeros(len(selection.raw.class_names), dtype=np.int64)
    new_label[selection.classes] = np.arange(len(selection.classes))
    return torch.from_numpy(new_label[selection.raw.labels[index]])


def load_planned_data(dense: DenseConfig, data_dir: str | None) -> Dataset:
    """Load the data set of a training. DataError unless it is that with which the training was planned."""
    dataset = load_data(dense.dataset, data_dir, dense.numerics.device)
    if not _is_unchanged(dataset) or (dense.data_sha256 and dataset.digest != dense.data_sha256):
        load_data.cache_clear()  # the files may have changed since they were loaded
        source = find_source(parse_dataset(dense.dataset)[0])
        if source is not None and _is_unchanged(dataset):
            source.forget_decoded()
        dataset = load_data(dense.dataset, data_dir, dense.numerics.device)
    if dense.data_sha256 and dataset.digest != dense.data_sha256:
        raise DataError(
            f"{dense.dataset}: the data read here (SHA-256 {dataset.digest[:12]}) are not those with which "
            f"the sweep was planned ({dense.data_sha256[:12]}); leave them as they are while a sweep runs, "
            "and sweep again"
        )
    return dataset


def _is_unchanged(dataset: Dataset) -> bool:
    """Whether the file from which images are mapped, if there is one, is as it was."""
    images = dataset.train.images
    return not isinstance(images, ScaledImages) or images.file is None or images.file.is_unchanged()


@lru_cache(maxsize=4)
def load_data(text: str, data_dir: str | None, device: str) -> Dataset:
    """Load a data set by its text form; the last few stay in memory."""
    name, options = parse_dataset(text)
    return load_dataset(name, data_dir=None if data_dir is None else Path(data_dir), device=device, **options)
