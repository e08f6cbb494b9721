"""Data as resident tensors: name -> splits with a digest; batches by index; augmentation by the batch.

Split: `digits` is 1257 / 180 / 360 for good. Other data sets keep their own test set, and a tenth of their
training images, stratified, is for validation. Options (`classes`, `samples_per_class`) choose from these
splits, so an image never moves from one to another.

Scale: `digits` / 16. Others / 255, then minus the mean and by the standard deviation of each channel over the
whole training split, options or not: a part is scaled as the whole, and transfer sees equal inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config import DenseConfig
from orchestrator.data.datasets import DATASETS, DatasetInfo, Raw, check_options, info, split_sizes
from orchestrator.data.files import default_data_dir, fetch, path, read, verify
from orchestrator.data.splits import SPLIT_SEED, first_per_class, split_indices
from orchestrator.errors import DataError
from pruning.registry import parse

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Index = NDArray[np.int64]

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "Scaling",
    "Split",
    "default_data_dir",
    "digest",
    "fetch",
    "info",
    "load_data",
    "load_dataset",
    "load_planned_data",
    "path",
    "scaling",
    "split_sizes",
    "verify",
]


@dataclass(frozen=True, eq=False)
class Split:
    """Images float32 [N, C, H, W] and labels int64 [N] on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """`digest`: SHA-256 (hex) of the arrays that were read, the indices of each split, and the scale."""

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
    """How pixels, whole numbers from 0 to `levels`, become input: (pixel / levels - mean) / deviation.

    `mean` and `deviation` have one entry per channel.
    """

    levels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def scaling(name: str, *, data_dir: Path | None = None) -> Scaling:
    """That of a data set; SpaceError for an unknown name, DataError for missing or corrupt files."""
    levels = info(name).levels
    raw = read(name, data_dir)
    mean, deviation = _scale(raw, split_indices(name, raw)[0], levels=levels)
    return Scaling(levels, tuple(mean.tolist()), tuple(deviation.tolist()))


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    device: str | torch.device = "cpu",
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
) -> Dataset:
    """A data set, whole, on `device`; the same bits whatever the global seeds.

    `classes` keeps these alone, relabelled 0, 1, ... in the order given; `samples_per_class` keeps at most
    that many training images of each. SpaceError for an unknown name or a bad option, DataError for missing
    or corrupt files.
    """
    parts = _parts(name, data_dir, classes=classes, samples_per_class=samples_per_class)

    def split(index: Index) -> Split:
        return _tensors(parts, index, levels=info(name).levels, device=device)

    return Dataset(
        name=name,
        train=split(parts.train),
        validation=split(parts.validation),
        test=split(parts.test),
        num_classes=len(parts.classes),
        input_shape=info(name).input_shape,
        digest=_digest_of(name, parts),
        class_names=tuple(parts.raw.class_names[label] for label in parts.classes),
    )


def digest(
    name: str,
    *,
    data_dir: Path | None = None,
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
) -> str:
    """The `digest` of what `load` gives, without making tensors of it; the same errors."""
    return _digest_of(name, _parts(name, data_dir, classes=classes, samples_per_class=samples_per_class))


@dataclass(frozen=True, eq=False)
class _Parts:
    """What was read, and which of it is for what: indices, the classes chosen, and the scale."""

    raw: Raw
    train: Index
    validation: Index
    test: Index
    classes: Index
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def _parts(
    name: str, data_dir: Path | None, *, classes: Sequence[int] | None, samples_per_class: int | None
) -> _Parts:
    import numpy as np

    check_options(name, classes=classes, samples_per_class=samples_per_class)
    raw = read(name, data_dir)
    whole = split_indices(name, raw)
    mean, deviation = _scale(raw, whole[0], levels=info(name).levels)
    chosen = np.arange(info(name).num_classes) if classes is None else np.array(classes, dtype=np.int64)
    train, validation, test = (part[np.isin(raw.labels[part], chosen)] for part in whole)
    if samples_per_class is not None:
        train = train[first_per_class(raw.labels[train], samples_per_class, seed=SPLIT_SEED)]
    return _Parts(raw, train, validation, test, chosen, mean, deviation)


def _digest_of(name: str, parts: _Parts) -> str:
    import numpy as np

    arrays = (parts.raw.images, parts.raw.labels, parts.train, parts.validation, parts.test)
    known = info(name)
    # Ours have their levels for good; another package may change them, and with them the inputs.
    levels = () if known.read is None else (np.array(known.levels, dtype=np.int64),)
    return _digest(name, *arrays, parts.classes, parts.mean, parts.deviation, *levels)


def _scale(raw: Raw, train: Index, *, levels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [C] of the training images / levels; 0 and 1 for `digits`.

    By counts of each whole number, so exact and the same at every thread count.
    """
    import numpy as np

    channels = raw.images.shape[1]
    if not raw.own_test:
        return np.zeros(channels), np.ones(channels)
    counts = np.stack([_histogram(raw.images[train, channel]) for channel in range(channels)])
    value = np.arange(256) / levels
    mean = counts @ value / counts.sum(axis=1)
    deviation = np.sqrt((counts * (value - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    import torch

    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(values).flatten(), minlength=256).numpy()
    return counts


def _tensors(parts: _Parts, index: Index, *, levels: int, device: str | torch.device) -> Split:
    """Scaled on the CPU, then moved: a GPU divides by a number in other bits."""
    import numpy as np
    import torch

    raw = parts.raw
    images = torch.from_numpy(raw.images[index]).to(torch.float32).div_(levels)
    images.sub_(torch.from_numpy(parts.mean).float()[:, None, None])
    images.div_(torch.from_numpy(parts.deviation).float()[:, None, None])
    new_label = np.zeros(len(raw.class_names), dtype=np.int64)
    new_label[parts.classes] = np.arange(len(parts.classes))
    return Split(images.to(device), torch.from_numpy(new_label[raw.labels[index]]).to(device))


def _digest(name: str, *arrays: NDArray[Any]) -> str:
    """SHA-256 over each array's type, shape and little-endian bytes."""
    import numpy as np

    state = sha256(name.encode())
    for array in arrays:
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        state.update(f"|{plain.dtype.str}{plain.shape}|".encode())
        state.update(plain.data)
    return state.hexdigest()


def load_planned_data(dense: DenseConfig, data_dir: str | None) -> Dataset:
    """The data set of a training; DataError unless it is that with which the training was planned."""
    images = load_data(dense.dataset, data_dir, dense.numerics.device)
    if dense.data_sha256 and images.digest != dense.data_sha256:
        load_data.cache_clear()  # what is in memory may be of before
        images = load_data(dense.dataset, data_dir, dense.numerics.device)
    if dense.data_sha256 and images.digest != dense.data_sha256:
        raise DataError(
            f"{dense.dataset}: the data read here (SHA-256 {images.digest[:12]}) are not those with which "
            f"the sweep was planned ({dense.data_sha256[:12]}); leave them as they are while a sweep runs, "
            "and sweep again"
        )
    return images


@lru_cache(maxsize=4)
def load_data(text: str, data_dir: str | None, device: str) -> Dataset:
    """A data set by its text form, kept in memory."""
    name, options = parse(text)
    return load_dataset(name, data_dir=None if data_dir is None else Path(data_dir), device=device, **options)
