"""Published data sets of image files, listed by torchvision and decoded to squares as images of `folder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from orchestrator.data.paths import data_folder
from orchestrator.data.sources.base import DatasetInfo, Raw
from orchestrator.data.sources.content_split import content_splits, shared_notes, split_counts
from orchestrator.data.sources.image_folder import Fit
from orchestrator.data.sources.torchvision_base import TorchvisionSource, published_indices
from orchestrator.errors import DataError
from pruning.hyperparameters import Between

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Facts


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
            splits = published_indices(self.name, labels)
            counts = [np.bincount(every[index], minlength=len(names)).tolist() for index in splits]
        else:
            of_class = np.bincount(every, minlength=len(names)).tolist()
            counts = list(
                zip(*(self._counts(*pair) for pair in zip(names, of_class, strict=True)), strict=True)
            )
        return self.describe((1 if self.grey else 3, self.size, self.size), names, counts)

    def _counts(self, name: str, count: int) -> tuple[int, int, int]:
        """Return how many of a class's images the split by content takes for (train, validation, test)."""
        try:
            return split_counts(count, ())
        except ValueError as error:
            raise DataError(f"{self.name}: class {name!r} has {error}") from error

    def files(self) -> list[Path]:
        parts, _ = self._listing()
        return [path for part in parts.values() for path, _ in part]

    def read(self) -> Raw:
        import numpy as np

        from orchestrator.data.decoded_cache import read_decoded

        parts, names = self._listing()
        paths = [path for part in parts.values() for path, _ in part]
        decoded = read_decoded(
            lambda: paths,
            set_name={
                "name": self.name,
                "size": self.size,
                "fit": self.fit,
                "grey": self.grey,
                "path": str(data_folder()),
            },
            shape=(len(paths), 1 if self.grey else 3, self.size, self.size),
            fill=partial(self._decode_all, paths),
            data_folder=data_folder(),
            name=self.name,
        )
        contents, pixels = [bytes.fromhex(digest) for digest in decoded.facts["contents"]], decoded.pixels
        labels = {split: np.array([label for _, label in part]) for split, part in parts.items()}
        every = np.concatenate(list(labels.values()))
        if len(parts) > 1:
            splits = published_indices(self.name, labels)
        else:
            try:
                split_positions = content_splits(contents, every.tolist(), ["train"] * len(every), names)
            except DataError as error:
                raise DataError(f"{self.name}: {error}") from error
            train, validation, test = (np.array(split, dtype=np.int64) for split in split_positions)
            splits = train, validation, test
        shown = [str(path.relative_to(data_folder())) for path in paths]
        notes = shared_notes(contents, [split.tolist() for split in splits], shown)
        notes = (*self._size_note(parts), *notes)
        return Raw(pixels, every, 0, names, splits, notes, decoded.file)

    def _size_note(self, parts: Mapping[str, Sequence[Any]]) -> Iterator[str]:
        """Yield a line where the images are not as many as were published: it may be half unpacked."""
        counts = [len(part) for part in parts.values()]
        if tuple(counts) != self.row.images:
            here, published = (", ".join(f"{n:,}" for n in part) for part in (counts, self.row.images))
            yield f"{' and '.join(parts)} have {here} images, and {published} were published"

    def _listing(self) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...]]:
        """Return split -> (file, label) of each image, and the names of the classes."""
        from models.torchvision_compat import datasets
        from orchestrator.data.sources.array_images import check_class_names

        with self.checked_files() as root:
            opened = {
                split: getattr(datasets, self.row.source)(root, **keywords)
                for split, keywords in self.row.splits.items()
            }
            parts = {split: _LISTINGS[self.row.source](data) for split, data in opened.items()}
            first = opened["train"]
            names = getattr(first, "classes", None) or getattr(first, "categories", None)
            names = tuple(names or (str(label) for label in range(self.row.classes)))
            check_class_names(names)
            _check_lists(parts, names, root)
        return parts, names

    def _decode(self, position: int, path: Path, pixels: NDArray[np.uint8]) -> str:
        """Decode a file into its place; return its digest. DataError for one that is no whole image."""
        from orchestrator.data.image_decoding import BrokenImageError, decode, read_image_bytes

        try:
            content = read_image_bytes(path)
            pixels[position] = decode(
                content, size=self.size, fit=self.fit, grey=self.grey, formats=self.row.formats
            )
        except BrokenImageError as error:
            raise DataError(
                f"{self.name}: {path} {error}; remove the folder that has it, and run "
                f"`orchestrate data fetch {self.name}`"
            ) from error
        return sha256(content).hexdigest()

    def _decode_all(self, paths: Sequence[Path], pixels: NDArray[np.uint8]) -> Facts:
        """Decode into `pixels`; return the digests of the files. DataError for the first broken one."""
        from orchestrator.data.decoded_cache import in_order
        from orchestrator.data.image_decoding import without_warnings

        with without_warnings():
            results = in_order(partial(self._decode, pixels=pixels), paths, name=self.name)
            return {"contents": [digest for _, digest in results]}


def _check_lists(parts: Mapping[str, Sequence[tuple[Path, int]]], names: Sequence[str], root: Path) -> None:
    """Raise ValueError for lists that no published data set has: they were changed, or are not whole."""
    labels = {label for part in parts.values() for _, label in part}
    if labels != {label for _, label in parts["train"]} or not labels <= set(range(len(names))):
        raise ValueError("there are labels without a name or without training images")
    for split, part in parts.items():
        if not part:
            raise ValueError(f"there are no images for {split}")
        for path, _ in part:
            if ".." in path.parts or not path.is_relative_to(root):
                raise ValueError(f"{path} is no image of this folder")


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
    "GTSRB": lambda data: [(Path(path), label) for path, label in data._samples],
    "Flowers102": lambda data: _pairs(data._image_files, data._labels),
    "OxfordIIITPet": lambda data: _pairs(data._images, data._labels),
    "Food101": lambda data: _pairs(data._image_files, data._labels),
    "Caltech101": _caltech,
    "EuroSAT": lambda data: [(Path(path), label) for path, label in data.samples],
}
