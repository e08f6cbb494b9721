"""`npz(path=...)` and `npy(x=..., y=...)`: images and labels in files of numpy.

Arrays: `x` and `y`; `x_test` and `y_test`, `x_val` and `y_val`, where there are such splits; or `split`,
which says for each image 0, 1, 2 or train, validation, test. A split that is missing is taken from the
training images by content (`content_split`). No pickle is ever loaded.

Images: uint8, or numbers that are turned into it by `array_images.to_bytes`. [N, H, W] is grey; [N, C, H, W]
and [N, H, W, C] are told apart by which of the two may be 1 or 3 channels, or by `layout`.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from orchestrator.data import paths
from orchestrator.data.array_reader import NamedArrays, existing_file
from orchestrator.data.content_split import SPLITS, content_splits, shared_notes, split_counts
from orchestrator.data.sources import DatasetInfo, Raw, Source, check_fits, one_of
from orchestrator.errors import DataError
from pruning.hyperparameters import Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Layout = Annotated[str, Converter(one_of("auto", "first", "last"), "auto, first or last")]
MAX_LABEL_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """Images and labels in arrays; `layout` is that of images with four dimensions."""

    layout: Layout = "auto"

    def facts(self) -> DatasetInfo:
        from orchestrator.data.array_images import image_shape

        with self._arrays() as arrays:
            shapes = [image_shape(arrays.shape(f"x{end}"), self.layout) for _, end in arrays.ends()]
            _check_equal(shapes)
            labels, class_names, splits = self._labels(arrays)
            sizes = _class_sizes(labels, splits, len(class_names))
            counts = [_counts(sizes, label, class_names) for label in range(len(class_names))]
        train, validation, test = (tuple(part) for part in zip(*counts, strict=True))
        return DatasetInfo(
            self.name,
            self.about,
            shapes[0],
            len(class_names),
            sum(train),
            sum(validation),
            sum(test),
            per_class=(train, validation, test),
            class_names=class_names,
        )

    def read(self) -> Raw:
        import numpy as np

        from orchestrator.data.array_images import to_bytes, to_channels_first

        with self._arrays() as arrays:
            labels, class_names, splits = self._labels(arrays)
            check_fits("it", len(labels) * int(np.prod(arrays.shape("x")[1:])))
            names = [f"x{end}" for _, end in arrays.ends()]
            parts = {name: to_channels_first(arrays.load(name), self.layout) for name in names}
            _check_equal([part.shape[1:] for part in parts.values()])
            images = to_bytes(parts)
            contents = [sha256(image.tobytes()).digest() for image in images]
            split_positions = content_splits(contents, labels.tolist(), splits, class_names)
        train, validation, test = (np.array(part, dtype=np.int64) for part in split_positions)
        notes = shared_notes(contents, split_positions, [f"image {number}" for number in range(len(labels))])
        return Raw(images, labels, 0, class_names, (train, validation, test), notes)

    def _labels(self, arrays: NamedArrays) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
        """Return the label, from 0, and the split of each image of all splits, with the classes' names."""
        import numpy as np

        from orchestrator.data.array_images import class_labels, split_names

        parts = []
        splits: list[str] = []
        for name, end in arrays.ends():
            labels, count = arrays.load(f"y{end}", at_most=MAX_LABEL_BYTES), arrays.shape(f"x{end}")[0]
            if labels.ndim == 2 and labels.shape[1] == 1:
                labels = labels[:, 0]
            if labels.shape != (count,):
                raise DataError(
                    f"y{end} is {list(labels.shape)}, and there are {count} images; give [{count}], one "
                    "number an image"
                )
            parts.append(labels)
            splits += [name] * count
        if "split" in arrays:
            if len(parts) > 1:
                raise DataError("it has split and x_test or x_val; leave one out")
            splits = split_names(arrays.load("split", at_most=MAX_LABEL_BYTES), len(splits))
        own_names = arrays.load("class_names", at_most=MAX_LABEL_BYTES) if "class_names" in arrays else None
        labels, class_names = class_labels(np.concatenate(parts), splits, own_names)
        return labels, class_names, splits

    @abstractmethod
    def _arrays(self) -> AbstractContextManager[NamedArrays]:
        """Have the arrays within a block; DataError for whatever is wrong with them."""


@dataclass(frozen=True, kw_only=True)
class FileArrays(ArraySource):
    """Arrays in files, which are open while they are read."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Mapping[str, Any]]:
        """Open the files within a block, as name -> (a function that opens an array, its bytes)."""

    @contextmanager
    def _arrays(self) -> Iterator[NamedArrays]:
        """Open the files within the block; every error of theirs is a DataError with the file."""
        try:
            with self.opened() as openers:
                yield NamedArrays(openers)
        except DataError as error:
            if str(error).startswith(f"{self.name} "):  # with its file's name already
                raise
            raise DataError(f"{self._where()}: {error}") from error
        except MemoryError as error:
            raise DataError(f"{self._where()} does not fit into memory") from error
        except OSError as error:
            raise DataError(f"{self._where()} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # zip, zlib, numpy's parser of headers: each has its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{self._where()} is damaged: {reason}") from error

    def _where(self) -> str:
        return f"{self.name} {', '.join(str(paths.absolute(getattr(self, key))) for key in self.paths[:1])}"


@dataclass(frozen=True, kw_only=True)
class Npz(FileArrays):
    """Arrays `x`, `y`, and `x_test`, `y_test`, `x_val`, `y_val` or `split`, of one file of `numpy.savez`.

    Images are uint8, or floats in [0, 1] or [0, 255]; channels come first or last (`layout: first|last` where
    both are possible). `class_names` may name the classes.
    """

    name: ClassVar[str] = "npz"
    about: ClassVar[str] = "one's own arrays in a file of numpy.savez"
    paths: ClassVar[tuple[str, ...]] = ("path",)
    sample: ClassVar[Mapping[str, str]] = {"path": "images.npz"}

    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("npz needs a path; write npz(path='images.npz')")

    def files(self) -> list[Path]:
        return [existing_file(self.name, self.path)]

    @contextmanager
    def opened(self) -> Iterator[Mapping[str, Any]]:
        (file,) = self.files()
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            yield {
                name: (lambda info=info: archive.open(info), info.file_size) for name, info in members.items()
            }


@dataclass(frozen=True, kw_only=True)
class Npy(FileArrays):
    """Arrays in a file of `numpy.save` each: `x` and `y`, and those of the other splits, as for `npz`."""

    name: ClassVar[str] = "npy"
    about: ClassVar[str] = "one's own arrays, a file of numpy.save each"
    paths: ClassVar[tuple[str, ...]] = (
        "x",
        "y",
        "x_test",
        "y_test",
        "x_val",
        "y_val",
        "split",
        "class_names",
    )
    sample: ClassVar[Mapping[str, str]] = {"x": "x.npy", "y": "y.npy"}

    x: str = ""
    y: str = ""
    x_test: str = ""
    y_test: str = ""
    x_val: str = ""
    y_val: str = ""
    split: str = ""
    class_names: str = ""

    def __post_init__(self) -> None:
        if not (self.x and self.y):
            raise ValueError("npy needs x and y; write npy(x='x.npy', y='y.npy')")

    def files(self) -> list[Path]:
        return [existing_file(self.name, path) for path in self._file_options().values()]

    def _file_options(self) -> dict[str, str]:
        return {key: getattr(self, key) for key in self.paths if getattr(self, key)}

    @contextmanager
    def opened(self) -> Iterator[Mapping[str, Any]]:
        files = dict(zip(self._file_options(), self.files(), strict=True))
        yield {name: (lambda file=file: file.open("rb"), file.stat().st_size) for name, file in files.items()}


def _check_equal(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) > 1:
        texts = " and ".join("x".join(map(str, shape)) for shape in dict.fromkeys(shapes))
        raise DataError(f"images of its splits differ in shape: {texts}")


def _class_sizes(labels: NDArray[np.int64], splits: list[str], classes: int) -> dict[str, list[int]]:
    import numpy as np

    array = np.array(splits)
    return {
        name: np.bincount(labels[array == name], minlength=classes).tolist()
        for name in SPLITS
        if name == "train" or name in splits
    }


def _counts(sizes: Mapping[str, list[int]], label: int, class_names: tuple[str, ...]) -> tuple[int, int, int]:
    """Return a class's images for (train, validation, test)."""
    try:
        counts = split_counts(sizes["train"][label], tuple(sizes))
    except ValueError as error:
        raise DataError(f"class {class_names[label]!r} has {error}") from error
    train, validation, test = (
        count + (sizes[name][label] if name in sizes and name != "train" else 0)
        for name, count in zip(SPLITS, counts, strict=True)
    )
    return train, validation, test
