"""`folder(path=..., size=64)`: images in folders, one a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.data import paths
from orchestrator.data.content_split import content_splits, shared_notes, split_counts
from orchestrator.data.folder_listing import ImageFile, Listing, list_images
from orchestrator.data.sources import DatasetInfo, Raw, Source, check_fits, one_of
from orchestrator.errors import DataError
from orchestrator.formatting import first_control, is_encodable
from orchestrator.system.machine import cores
from pruning.registry import Between, Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fit = Annotated[str, Converter(one_of("crop", "pad", "stretch"), "crop, pad or stretch")]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Images in folders, one a class, below `train/`, `val/` and `test/` or without them.

    A split that has no folder is taken from the training images by their content. JPEG, PNG,
    WebP and BMP are decoded to
    squares of `size` pixels: `fit: crop` takes the middle, `pad` adds black, `stretch` changes proportions;
    `grey: true` for one channel. `skip_broken: true` leaves out files that are no whole image, and says how
    many.
    """

    name: ClassVar[str] = "folder"
    about: ClassVar[str] = "one's own images, a folder a class"
    paths: ClassVar[tuple[str, ...]] = ("path",)
    sample: ClassVar[Mapping[str, str]] = {"path": "photos"}

    path: str = ""
    size: Annotated[int, Between(4, 1024)] = 64
    fit: Fit = "crop"
    grey: bool = False
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("folder needs a path; write folder(path='photos')")

    def facts(self) -> DatasetInfo:
        listing, names = self._listing()
        counts = Counter((image.split, image.label) for image in listing.images)
        per_class = []
        for label in names:
            try:
                parts = split_counts(counts["train", label], listing.splits)
            except ValueError as error:
                raise DataError(f"{self._root()}: class {label!r} has {error}") from error
            own = (0, counts["validation", label], counts["test", label])
            per_class.append(tuple(taken + there for taken, there in zip(parts, own, strict=True)))
        train, validation, test = (tuple(part) for part in zip(*per_class, strict=True))
        shape = (1 if self.grey else 3, self.size, self.size)
        return DatasetInfo(
            self.name,
            self.about,
            shape,
            len(names),
            sum(train),
            sum(validation),
            sum(test),
            per_class=(train, validation, test),
            class_names=names,
        )

    def files(self) -> list[Path]:
        return [image.path for image in self._listing()[0].images]

    def read(self) -> Raw:
        import numpy as np

        listing, names = self._listing()
        check_fits(f"folder {self._root()}", len(listing.images) * self.size**2 * (1 if self.grey else 3))
        images, contents, pixels = self._decode_all(listing.images)
        label_of = {name: label for label, name in enumerate(names)}
        labels = [label_of[image.label] for image in images]
        try:
            splits = content_splits(contents, labels, [image.split for image in images], names)
        except DataError as error:
            raise DataError(f"{self._root()}: {error}") from error
        train, validation, test = (np.array(split, dtype=np.int64) for split in splits)
        return Raw(
            pixels,
            np.array(labels, dtype=np.int64),
            0,
            names,
            (train, validation, test),
            (
                *_left_out(len(listing.images) - len(images), listing.others),
                *shared_notes(contents, splits, [image.name for image in images]),
            ),
        )

    def broken(self) -> tuple[str, ...]:
        results = map(self._decode, self._listing()[0].images)
        return tuple(result for result in results if isinstance(result, str))

    def _root(self) -> Path:
        return paths.absolute(self.path)

    def _listing(self) -> tuple[Listing, tuple[str, ...]]:
        """Return the files and the names of the classes, sorted."""
        root = self._root()
        if not root.is_dir():
            problem = "is a file" if root.exists() else "is not there"
            raise DataError(f"folder {root} {problem}; give a folder with a folder for each class")
        listing = list_images(root)
        names = tuple(dict.fromkeys(image.label for image in listing.images if image.split == "train"))
        names = tuple(sorted(names))
        if len(names) < 2:
            raise DataError(f"{root} has a single class, {names[0]!r}; two or more are needed")
        for image in listing.images:
            if image.label not in names:
                raise DataError(f"{root}: class {image.label!r} is in {image.split} alone, not in train")
        for name in names:
            if first_control(name) is not None or not is_encodable(name) or not name.strip():
                raise DataError(f"{root}: {name!r} cannot be the name of a class; rename its folder")
        return listing, names

    def _decode(self, image: ImageFile) -> tuple[bytes, NDArray[np.uint8]] | str:
        """Return the digest of a file and its pixels, or a line on what is wrong with it."""
        from orchestrator.data.image_files import BrokenImageError, decode, read_image_bytes

        try:
            content = read_image_bytes(image.path)
            return sha256(content).digest(), decode(content, size=self.size, fit=self.fit, grey=self.grey)
        except BrokenImageError as error:
            return f"{image.path} {error}"

    def _decode_all(
        self, images: Sequence[ImageFile]
    ) -> tuple[list[ImageFile], list[bytes], NDArray[np.uint8]]:
        """Return the images that are whole, the digests of their files, and their pixels.

        DataError for a broken one, unless they are skipped.
        """
        import numpy as np

        pixels = np.empty((len(images), 1 if self.grey else 3, self.size, self.size), dtype=np.uint8)
        whole: list[ImageFile] = []
        contents: list[bytes] = []
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            for start in range(0, len(images), 256):  # few at a time: all of them wait in memory as arrays
                block = images[start : start + 256]
                for image, result in zip(block, pool.map(self._decode, block), strict=True):
                    if isinstance(result, str):
                        if not self.skip_broken:
                            raise DataError(f"{result}; mend or remove it, or write skip_broken=True")
                        continue
                    digest, array = result
                    pixels[len(whole)] = array
                    whole.append(image)
                    contents.append(digest)
        return whole, contents, pixels[: len(whole)]


def _left_out(broken: int, others: Sequence[str]) -> Iterator[str]:
    """Yield how many broken images, and files that are no images by their names, are left out."""
    if broken:
        yield f"{broken} broken image{' is' if broken == 1 else 's are'} left out"
    if others:
        what = "file is no image by its name" if len(others) == 1 else "files are no images by their names"
        yield f"{len(others)} {what}: the first is {others[0]}"
