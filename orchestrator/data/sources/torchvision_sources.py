"""`torchvision.NAME`: published data sets in torchvision's layout below the data folder, read by torchvision.

The authors' test images are the test set, and their validation images that for validation; without these, a
tenth of the training images, stratified. Data without any split are split by content (`content_split`). A
file with a known MD5 is checked before it is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from orchestrator.data.paths import data_folder
from orchestrator.data.sources.base import DatasetInfo, Raw, one_of
from orchestrator.data.sources.published_datasets import PUBLISHED, Keywords, Published
from orchestrator.data.sources.published_files import check_published
from orchestrator.data.sources.torchvision_base import TorchvisionSource, published_indices
from orchestrator.data.sources.torchvision_images import ImageSet
from pruning.hyperparameters import Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Facts

EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
EmnistSplit = Annotated[str, Converter(one_of(*EMNIST_SPLITS), ", ".join(EMNIST_SPLITS))]


@dataclass(frozen=True, kw_only=True)
class ArraySet(TorchvisionSource):
    """Images in arrays, all of one shape."""

    def facts(self) -> DatasetInfo:
        import numpy as np

        assert self.row.shape is not None
        parts, names = self._labels()
        splits = published_indices(self.name, parts)
        labels = np.concatenate(list(parts.values()))
        counts = [np.bincount(labels[index], minlength=len(names)).tolist() for index in splits]
        return self.describe(self.row.shape, names, counts)

    def files(self) -> list[Path]:
        root = data_folder()
        check_published(self.name, root, self.row.files)
        return [root / file.path for file in self.row.files if not file.unpacks]

    def read(self) -> Raw:
        import numpy as np

        from orchestrator.data.decoded_cache import read_shared

        assert self.row.shape is not None
        parts, names = self._labels()
        labels = np.concatenate(list(parts.values()))
        decoded = read_shared(
            self.files(),
            set_name={"name": self.name, "path": str(data_folder()), **self._keywords()},
            shape=(len(labels), *self.row.shape),
            fill=self._fill,
            data_folder=data_folder(),
            name=self.name,
        )
        splits = published_indices(self.name, parts)
        return Raw(decoded.pixels, labels, 0, names, splits, (), decoded.file)

    def _labels(self) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
        """Return split -> labels 0, 1, ..., and their names, without reading images."""
        from orchestrator.data.sources.torchvision_arrays import from_zero, label_names, read_labels

        with self.checked_files() as root:
            read = read_labels(self.row, root, self._keywords())
            return from_zero(read, label_names(self.row, self._keywords()))

    def _fill(self, pixels: NDArray[np.uint8]) -> Facts:
        """Copy the images of all splits into `pixels`."""
        from orchestrator.data.sources.torchvision_arrays import read_images

        with self.checked_files() as root:
            start = 0
            for images in read_images(self.row, root, self._keywords()):
                pixels[start : start + len(images)] = images
                start += len(images)
            if start < len(pixels):
                raise ValueError(f"there are {start} images and {len(pixels)} labels")
        return {}

    def _keywords(self) -> Keywords:
        """Return the keywords of torchvision's class beside those of a split."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Emnist(ArraySet):
    """EMNIST, which has six parts; images lie on their side, as in torchvision."""

    split: EmnistSplit = "balanced"

    def _keywords(self) -> Keywords:
        return {"split": self.split}


def _class_of(name: str, row: Published) -> type[TorchvisionSource]:
    base = Emnist if row.source == "EMNIST" else ImageSet if row.shape is None else ArraySet
    members = {"name": name, "about": row.about, "row": row, "__doc__": _text(name, row)}
    return type(row.source, (base,), members)


def _text(name: str, row: Published) -> str:
    """Return what `orchestrate show` says of a data set."""
    images = f"Images {'x'.join(map(str, row.shape))}" if row.shape else "Images of many sizes"
    if name == "torchvision.eurosat":
        images = "Images 3x64x64"
    parts = ["for training and validation", "for the test"]
    if len(row.splits) == 3:
        parts = ["for training", "for validation", "for the test"]
    elif len(row.splits) == 1:
        parts = ["split by their content"]
    counts = ", ".join(f"{count:,} {part}" for count, part in zip(row.images, parts, strict=True))
    notes = ""
    if row.source == "EMNIST":
        notes = " These are numbers of the split `balanced`. Images lie on their side, as in torchvision."
    elif row.shape is None:
        notes = " Decoded to squares, as images of `folder`."
    return f"{images}, {row.classes} classes; {counts}.{notes} Files: `orchestrate data fetch {name}`."


CLASSES = {name: _class_of(name, row) for name, row in PUBLISHED.items()}


def __getattr__(name: str) -> type[TorchvisionSource]:  # registry.SOURCES names each by its text
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return CLASSES[name]
