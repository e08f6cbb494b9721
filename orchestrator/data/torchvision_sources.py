"""`torchvision.NAME`: published data sets in torchvision's layout below the data folder, read by torchvision.

The authors' test images are the test set, and their validation images that for validation; without these, a
tenth of the training images, stratified. Data without any split are split by content (`content_split`). A
file with a known MD5 is checked before it is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from orchestrator.data.content_split import content_splits, shared_notes, split_counts
from orchestrator.data.data_folder import data_folder
from orchestrator.data.downloads import reason_of
from orchestrator.data.image_folder import Fit
from orchestrator.data.published_files import check_published, fetch_published, missing_files
from orchestrator.data.sources import DatasetInfo, Raw, Source, check_fits, one_of
from orchestrator.data.torchvision_table import PUBLISHED, Keywords, Published
from orchestrator.errors import DataError
from orchestrator.system.machine import cores
from pruning.registry import Between, Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.sources import Indices

    Labels = NDArray[np.int64]

EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
EmnistSplit = Annotated[str, Converter(one_of(*EMNIST_SPLITS), ", ".join(EMNIST_SPLITS))]
DECODED_AT_ONCE = 256  # images that wait in memory as arrays of their own


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """What all of them share; `row` is what differs."""

    row: ClassVar[Published]

    def fetch(self) -> bool:
        fetch_published(self.name, data_folder(), self.row.files)
        return True

    @classmethod
    def state(cls) -> str:
        return "not there" if any(missing_files(data_folder(), cls.row.files)) else "there"

    @contextmanager
    def _files(self) -> Iterator[Path]:
        """Yield the data folder. DataError for missing or corrupt files, and what torchvision raises."""
        root = data_folder()
        check_published(self.name, root, self.row.files)
        try:
            yield root
        except DataError:
            raise
        except MemoryError as error:
            raise DataError(f"{self.name} does not fit into memory; give fewer or smaller images") from error
        except Exception as error:  # torchvision's parsers raise whatever they meet
            raise DataError(
                f"{self.name}: its files in {root} are damaged: {type(error).__name__}: {reason_of(error)}"
            ) from error

    def _describe(
        self, shape: tuple[int, int, int], names: tuple[str, ...], counts: Sequence[Sequence[int]]
    ) -> DatasetInfo:
        """Return the facts; `counts` are the images of each class in (train, validation, test)."""
        train, validation, test = map(tuple, counts)
        sizes = (sum(train), sum(validation), sum(test))
        return DatasetInfo(
            self.name,
            self.row.about,
            shape,
            len(names),
            *sizes,
            per_class=(train, validation, test),
            class_names=names,
        )


@dataclass(frozen=True, kw_only=True)
class ArraySet(TorchvisionSource):
    """Images in arrays, all of one shape."""

    def facts(self) -> DatasetInfo:
        import numpy as np

        from orchestrator.data.torchvision_arrays import from_zero, label_names, read_labels

        with self._files() as root:
            read = read_labels(self.row, root, self._keywords())
            parts, names = from_zero(read, label_names(self.row, self._keywords()))
        assert self.row.shape is not None
        splits = _indices(self.name, parts)
        labels = np.concatenate(list(parts.values()))
        counts = [np.bincount(labels[index], minlength=len(names)).tolist() for index in splits]
        return self._describe(self.row.shape, names, counts)

    def files(self) -> list[Path]:
        root = data_folder()
        check_published(self.name, root, self.row.files)
        return [root / file.path for file in self.row.files if not file.unpacks]

    def read(self) -> Raw:
        import numpy as np

        from orchestrator.data.torchvision_arrays import from_zero, label_names, read_arrays

        assert self.row.shape is not None
        facts = self.facts()
        check_fits(self.name, sum(facts.split_sizes) * prod(self.row.shape))
        with self._files() as root:
            images, labels = zip(*read_arrays(self.row, root, self._keywords()), strict=True)
            pixels = np.concatenate(images)
        parts, names = from_zero(
            dict(zip(self.row.splits, labels, strict=True)), label_names(self.row, self._keywords())
        )
        splits = _indices(self.name, parts)
        return Raw(np.ascontiguousarray(pixels), np.concatenate(list(parts.values())), 0, names, splits)

    def _keywords(self) -> Keywords:
        """Return the keywords of torchvision's class beside those of a split."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Emnist(ArraySet):
    """EMNIST, which has six parts; images lie on their side, as in torchvision."""

    split: EmnistSplit = "balanced"

    def _keywords(self) -> Keywords:
        return {"split": self.split}


@dataclass(frozen=True, kw_only=True)
class ImageSet(TorchvisionSource):
    """Images in files, decoded to squares as those of `folder`."""

    size: Annotated[int, Between(4, 1024)] = 64
    fit: Fit = "crop"
    grey: bool = False

    def facts(self) -> DatasetInfo:
        import numpy as np

        parts, names = self._listing()
        labels = {split: np.array([label for _, label in part]) for split, part in parts.items()}
        every = np.concatenate(list(labels.values()))
        if len(parts) > 1:
            splits = _indices(self.name, labels)
            counts = [np.bincount(every[index], minlength=len(names)).tolist() for index in splits]
        else:
            of_class = np.bincount(every, minlength=len(names)).tolist()
            counts = list(zip(*(split_counts(count, ()) for count in of_class), strict=True))
        return self._describe((1 if self.grey else 3, self.size, self.size), names, counts)

    def files(self) -> list[Path]:
        parts, _ = self._listing()
        return [path for part in parts.values() for path, _ in part]

    def read(self) -> Raw:
        import numpy as np

        parts, names = self._listing()
        paths = [path for part in parts.values() for path, _ in part]
        check_fits(self.name, len(paths) * self.size**2 * (1 if self.grey else 3))
        contents, pixels = self._decode_all(paths)
        labels = {split: np.array([label for _, label in part]) for split, part in parts.items()}
        every = np.concatenate(list(labels.values()))
        if len(parts) > 1:
            splits = _indices(self.name, labels)
        else:
            try:
                chosen = content_splits(contents, every.tolist(), ["train"] * len(every), names)
            except DataError as error:
                raise DataError(f"{self.name}: {error}") from error
            train, validation, test = (np.array(split, dtype=np.int64) for split in chosen)
            splits = train, validation, test
        root = data_folder()
        shown = [str(path.relative_to(root)) for path in paths]
        notes = shared_notes(contents, [split.tolist() for split in splits], shown)
        return Raw(pixels, every, 0, names, splits, (*self._size_note(parts), *notes))

    def _size_note(self, parts: Mapping[str, Sequence[Any]]) -> Iterator[str]:
        """Yield a line where the images are not as many as were published: it may be half unpacked."""
        counts = [len(part) for part in parts.values()]
        if tuple(counts) != self.row.images:
            here, published = (", ".join(f"{n:,}" for n in part) for part in (counts, self.row.images))
            yield f"{' and '.join(parts)} have {here} images, and {published} were published"

    def _listing(self) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...]]:
        """Return split -> (file, label) of each image, and the names of the classes."""
        from models.torchvision_compat import datasets
        from orchestrator.data.array_images import check_class_names

        with self._files() as root:
            opened = {
                split: getattr(datasets, self.row.source)(root, **keywords)
                for split, keywords in self.row.splits.items()
            }
            parts = {split: _LISTINGS[self.row.source](data) for split, data in opened.items()}
        first = opened["train"]
        names = getattr(first, "classes", None) or getattr(first, "categories", None)
        names = tuple(names or (str(label) for label in range(self.row.classes)))
        try:
            check_class_names(names)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        labels = {label for part in parts.values() for _, label in part}
        trained = {label for _, label in parts["train"]}
        if not labels <= set(range(len(names))) or labels != trained:
            raise DataError(
                f"{self.name}: its lists in {data_folder()} have labels without a name or without training "
                f"images; run `orchestrate data fetch {self.name}` in another folder"
            )
        return parts, names

    def _decode(self, path: Path) -> tuple[bytes, NDArray[np.uint8]]:
        from orchestrator.data.image_files import BrokenImageError, decode, read_image_bytes

        try:
            content = read_image_bytes(path)
            pixels = decode(content, size=self.size, fit=self.fit, grey=self.grey, formats=self.row.formats)
        except BrokenImageError as error:
            raise DataError(
                f"{self.name}: {path} {error}; remove the folder that has it, and run "
                f"`orchestrate data fetch {self.name}`"
            ) from error
        return sha256(content).digest(), pixels

    def _decode_all(self, paths: Sequence[Path]) -> tuple[list[bytes], NDArray[np.uint8]]:
        """Return the digests of the files and the pixels. DataError for the first that is no whole image."""
        import numpy as np

        pixels = np.empty((len(paths), 1 if self.grey else 3, self.size, self.size), dtype=np.uint8)
        contents: list[bytes] = []
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            for start in range(0, len(paths), DECODED_AT_ONCE):
                for digest, image in pool.map(self._decode, paths[start : start + DECODED_AT_ONCE]):
                    pixels[len(contents)] = image
                    contents.append(digest)
        return contents, pixels


Listing = Callable[[Any], list[tuple[Path, int]]]  # of one of torchvision's untyped data sets


def _caltech(data: Any) -> list[tuple[Path, int]]:
    folder = Path(data.root) / "101_ObjectCategories"
    names = [f"image_{number:04d}.jpg" for number in data.index]
    return [
        (folder / data.categories[label] / name, label) for name, label in zip(names, data.y, strict=True)
    ]


def _pairs(paths: Sequence[Any], labels: Sequence[Any]) -> list[tuple[Path, int]]:
    return [(Path(path), int(label)) for path, label in zip(paths, labels, strict=True)]


_LISTINGS: dict[str, Listing] = {
    "GTSRB": lambda data: _pairs(*zip(*data._samples, strict=True)),
    "Flowers102": lambda data: _pairs(data._image_files, data._labels),
    "OxfordIIITPet": lambda data: _pairs(data._images, data._labels),
    "Food101": lambda data: _pairs(data._image_files, data._labels),
    "Caltech101": _caltech,
    "EuroSAT": lambda data: _pairs(*zip(*data.samples, strict=True)),
}


def _indices(name: str, parts: Mapping[str, Labels]) -> tuple[Indices, Indices, Indices]:
    """Return the indices of (train, validation, test) of published splits that lie one after another.

    Without validation images a tenth of the training images are taken, as for the other data sets.
    """
    import numpy as np

    from orchestrator.data.splits import split_indices

    labels = np.concatenate(list(parts.values()))
    if "validation" in parts:
        ends = np.cumsum([len(part) for part in parts.values()])
        train, validation, test = np.split(np.arange(len(labels)), ends[:-1])
        return train, validation, test
    empty = np.empty((0, 0, 0, 0), dtype=np.uint8)
    return split_indices(name, Raw(empty, labels, len(parts["test"]), ()))


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


def __getattr__(name: str) -> type[TorchvisionSource]:  # sources.SOURCES names each by its text
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return CLASSES[name]
