"""Published data sets of arrays, read by torchvision: SVHN, STL10 and the relatives of MNIST."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.torchvision_compat import datasets
from orchestrator.data.sources.published_datasets import Keywords, Published

Labels = NDArray[np.int64]
OF_MNIST = ("KMNIST", "EMNIST", "QMNIST")  # in files of the IDX format, packed


def label_names(row: Published, options: Keywords) -> Sequence[str]:
    """Return the names of the labels 0, 1, ..., also of labels that no image has."""
    source = getattr(datasets, row.source)
    if row.source == "EMNIST":
        names: Sequence[str] = source.classes_split_dict[options["split"]]
        return names
    return row.class_names or getattr(source, "classes", None) or [str(label) for label in range(row.classes)]


def read_labels(row: Published, root: Path, options: Keywords) -> dict[str, Labels]:
    """Return split -> labels, without reading images."""
    if row.source == "SVHN":
        from scipy.io import loadmat

        values = [loadmat(root / file.path, variable_names=["y"])["y"] for file in row.files]
        return _by_split(
            row, [array.astype(np.int64).reshape(-1) % 10 for array in values]
        )  # 10 stands for 0
    if row.source == "STL10":
        files = [file.path for file in row.files if file.path.endswith("_y.bin")]
        return _by_split(row, [np.fromfile(root / file, np.uint8).astype(np.int64) - 1 for file in files])
    with unpacked(row, root, options, kind="labels") as folder:
        files_of = sorted((folder / row.source / "raw").iterdir(), key=lambda file: "train" not in file.name)
        tensors = map(datasets.mnist.read_sn3_pascalvincent_tensor, map(str, files_of))
        return _by_split(row, [_first_column(tensor.long().numpy()) for tensor in tensors])


def read_images(row: Published, root: Path, options: Keywords) -> Iterator[NDArray[np.uint8]]:
    """Yield the images [N, C, H, W] of each split, as torchvision's class has them."""
    source = getattr(datasets, row.source)
    if row.source == "STL10":  # its images without labels, 2.7 GB, are neither needed nor checked
        source = type(source.__name__, (source,), {"train_list": source.train_list[:2]})
    with unpacked(row, root, options) as folder:
        for keywords in row.splits.values():
            images = np.asarray(source(folder, **options, **keywords).data)
            yield images[:, None] if images.ndim == 3 else images


@contextmanager
def unpacked(row: Published, root: Path, options: Keywords, *, kind: str = "") -> Iterator[Path]:
    """Yield a folder in torchvision's layout; for packed files a temporary one, for what lies unpacked beside
    them has no MD5. `kind` selects files by a part of their names.
    """
    if row.source not in OF_MNIST:
        yield root
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / row.source / "raw"
        folder.mkdir(parents=True)
        for file in row.files:
            if file.path.endswith(".zip"):
                _unpack_members(root / file.path, folder, f"emnist-{options['split']}-", kind)
            elif kind in file.path:
                datasets.utils.extract_archive(str(root / file.path), str(folder))
        yield Path(temporary)


def _unpack_members(archive: Path, folder: Path, prefix: str, kind: str) -> None:
    """Unpack the .gz files within a .zip file whose names have a prefix."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.namelist():
            name = member.rpartition("/")[2]
            if name.startswith(prefix) and name.endswith(".gz") and kind in name:
                with gzip.open(packed.open(member)) as stream, (folder / name[:-3]).open("wb") as out:
                    shutil.copyfileobj(stream, out)


def _first_column(labels: NDArray[Any]) -> Labels:
    """Return the class of each image: QMNIST has seven further numbers on each."""
    return labels[:, 0] if labels.ndim == 2 else labels


def _by_split(row: Published, arrays: Sequence[Labels]) -> dict[str, Labels]:
    return dict(zip(row.splits, arrays, strict=True))


def from_zero(parts: Mapping[str, Labels], names: Sequence[str]) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Return labels 0, 1, ... without gaps, and their names: EMNIST's letters are 1 to 26."""
    used = np.unique(np.concatenate(list(parts.values())))
    labels = {split: np.searchsorted(used, part).astype(np.int64) for split, part in parts.items()}
    return labels, tuple(names[label] for label in used)
