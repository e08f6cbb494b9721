"""Images and labels in arrays: what `npz`, `npy` and a function of one's own file share.

Arrays: `x` and `y`; `x_test` and `y_test`, `x_val` and `y_val`, where there are such splits; or `split`,
which says for each image 0, 1, 2 or train, validation, test. A split that is missing is taken from the
training images by content (`content_split`).

Images: uint8, or numbers that are turned into it by `array_images.write_bytes`. [N, H, W] is grey;
[N, C, H, W] and [N, H, W, C] are told apart by which of the two may be 1 or 3 channels, or by `layout`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

from orchestrator.data.sources.array_reader import NamedArrays
from orchestrator.data.sources.base import DatasetInfo, Raw, Source, one_of
from orchestrator.data.sources.content_split import SPLITS, content_splits, shared_notes, split_counts
from orchestrator.errors import DataError
from pruning.hyperparameters import Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Decoded, Facts, Fill, Shape

PerClass = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Layout = Annotated[str, Converter(one_of("auto", "first", "last"), "auto, first or last")]
MAX_LABEL_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """The label of each image, from 0, the names of the classes, and the split in which each image lies."""

    values: NDArray[np.int64]
    class_names: tuple[str, ...]
    splits: list[str]

    def per_class(self) -> PerClass:
        """Return the images of each class in (train, validation, test). DataError for too few."""
        sizes = _class_sizes(self.values, self.splits, len(self.class_names))
        counts = [_counts(sizes, label, self.class_names) for label in range(len(self.class_names))]
        train, validation, test = (tuple(part) for part in zip(*counts, strict=True))
        return train, validation, test


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """Images and labels in arrays; `layout` is that of images with four dimensions."""

    layout: Layout = "auto"

    def facts(self) -> DatasetInfo:
        with self._arrays() as arrays:
            shape = self._image_shape(arrays)
            labels = self._labels(arrays)
            per_class = labels.per_class()
        return self._describe(shape, labels.class_names, per_class)

    def _describe(
        self, shape: tuple[int, int, int], class_names: tuple[str, ...], per_class: PerClass
    ) -> DatasetInfo:
        train, validation, test = per_class
        return DatasetInfo(
            self.name,
            self.about,
            shape,
            len(class_names),
            sum(train),
            sum(validation),
            sum(test),
            per_class=(train, validation, test),
            class_names=class_names,
        )

    def read(self) -> Raw:
        with self._arrays() as arrays:
            labels = self._labels(arrays)
            shape = (len(labels.values), *self._image_shape(arrays))
        decoded = self._decoded(shape, partial(self._fill, labels))
        return raw_of(decoded, labels.values, labels.class_names)

    @abstractmethod
    def _decoded(self, shape: Shape, fill: Fill) -> Decoded:
        """Return what `fill` decodes: in memory, or for a large set from a file that was made of it."""

    def _fill(self, labels: ImageLabels, pixels: NDArray[np.uint8]) -> Facts:
        """Write the images into `pixels`; return the splits, and what is to be said of them."""
        from orchestrator.data.decoded_cache import progress_bar
        from orchestrator.data.sources.array_images import to_channels_first, write_bytes

        with self._arrays() as arrays, progress_bar(self._where(), len(pixels)) as advance:

            def blocks(name: str) -> Iterator[NDArray[Any]]:
                return (to_channels_first(block, self.layout) for block in arrays.blocks(name))

            names = [f"x{end}" for _, end in arrays.ends()]
            for count in write_bytes({name: partial(blocks, name) for name in names}, pixels):
                advance(count)
            contents = [sha256(image).digest() for image in pixels]
            positions = content_splits(contents, labels.values.tolist(), labels.splits, labels.class_names)
        images = [f"image {number}" for number in range(len(pixels))]
        return {"splits": positions, "notes": shared_notes(contents, positions, images)}

    def _image_shape(self, arrays: NamedArrays) -> tuple[int, int, int]:
        from orchestrator.data.sources.array_images import image_shape

        shapes = [image_shape(arrays.shape(f"x{end}"), self.layout) for _, end in arrays.ends()]
        _check_equal(shapes)
        return shapes[0]

    def _labels(self, arrays: NamedArrays) -> ImageLabels:
        import numpy as np

        from orchestrator.data.sources.array_images import class_labels, split_names

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
        return ImageLabels(*class_labels(np.concatenate(parts), splits, own_names), splits)

    @abstractmethod
    def _arrays(self) -> AbstractContextManager[NamedArrays]:
        """Have the arrays within a block; DataError for whatever is wrong with them."""

    @abstractmethod
    def _where(self) -> str:
        """Return what names the arrays to a person."""


def raw_of(decoded: Decoded, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> Raw:
    """Return a data set of the pixels and facts that `_fill` made."""
    import numpy as np

    train, validation, test = (np.array(part, dtype=np.int64) for part in decoded.facts["splits"])
    splits, notes = (train, validation, test), tuple(decoded.facts["notes"])
    return Raw(decoded.pixels, labels, 0, class_names, splits, notes, decoded.file)


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
