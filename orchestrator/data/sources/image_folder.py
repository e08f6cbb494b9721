"""`folder(path=..., size=64)`: images in folders, one a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.data import paths
from orchestrator.data.paths import data_folder
from orchestrator.data.sources.base import DatasetInfo, Raw, Source, one_of
from orchestrator.data.sources.content_split import content_splits, shared_notes, split_counts
from orchestrator.data.sources.folder_listing import ImageFile, Listing, list_images
from orchestrator.errors import DataError
from orchestrator.formatting import first_control, is_encodable
from pruning.hyperparameters import Between, Converter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Facts

Fit = Annotated[str, Converter(one_of("crop", "pad", "stretch"), "crop, pad or stretch")]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Images in folders, one a class, below `train/`, `val/` and `test/` or without them.

    A split that has no folder is taken from the training images by their content. JPEG, PNG, WebP and BMP
    are decoded to squares of `size` pixels: `fit: crop` takes the middle, `pad` adds black, `stretch` changes
    proportions; `grey: true` for one channel. `skip_broken: true` leaves out files that are no whole image,
    and says how many.
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
            per_class.append(tuple(drawn + listed for drawn, listed in zip(parts, own, strict=True)))
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

        from orchestrator.data.decoded_cache import read_decoded

        listing, names = self._listing()
        decoded = read_decoded(
            self.files,
            set_name={**asdict(self), "path": str(self._root()), "name": self.name},
            shape=(len(listing.images), 1 if self.grey else 3, self.size, self.size),
            fill=partial(self._decode_all, listing.images, names),
            data_folder=data_folder(),
            name=f"folder {self._root()}",
        )
        facts = decoded.facts
        train, validation, test = (np.array(split, dtype=np.int64) for split in facts["splits"])
        return Raw(
            decoded.pixels,
            np.array(facts["labels"], dtype=np.int64),
            0,
            names,
            (train, validation, test),
            (*_left_out(facts["broken"], listing.others), *facts["shared"]),
            decoded.file,
        )

    def broken(self) -> tuple[str, ...]:
        from orchestrator.data.decoded_cache import in_order
        from orchestrator.data.image_decoding import without_warnings

        images = self._listing()[0].images
        with without_warnings():
            results = [result for _, result in in_order(self._decode, images, name=f"folder {self._root()}")]
        return tuple(result for result in results if isinstance(result, str))

    def _root(self) -> Path:
        return paths.absolute(self.path)

    def _listing(self) -> tuple[Listing, tuple[str, ...]]:
        """Return the files and the names of the classes, sorted."""
        root = self._root()
        try:
            is_folder, problem = root.is_dir(), "is a file" if root.exists() else "is not there"
        except OSError as error:
            is_folder, problem = False, f"cannot be read: {error.strerror}"
        if not is_folder:
            raise DataError(f"folder {root} {problem}; give a folder with a folder for each class")
        listing = list_images(root)
        names = tuple(dict.fromkeys(image.label for image in listing.images if image.split == "train"))
        names = tuple(sorted(names))
        if len(names) < 2:
            single = f"a single class, {names[0]!r}" if names else "no class with training images"
            raise DataError(f"{root} has {single}; two or more are needed")
        for image in listing.images:
            if image.label not in names:
                raise DataError(f"{root}: class {image.label!r} is in {image.split} alone, not in train")
        for name in names:
            if first_control(name) is not None or not is_encodable(name) or not name.strip():
                raise DataError(f"{root}: {name!r} cannot be the name of a class; rename its folder")
        return listing, names

    def _decode(
        self, position: int, image: ImageFile, pixels: NDArray[np.uint8] | None = None
    ) -> bytes | str:
        """Decode a file into its place; return its digest, or a line on what is wrong with it."""
        from orchestrator.data.image_decoding import BrokenImageError, decode, read_image_bytes

        try:
            content = read_image_bytes(image.path)
            decoded = decode(content, size=self.size, fit=self.fit, grey=self.grey)
        except BrokenImageError as error:
            return f"{image.path} {error}"
        if pixels is not None:
            pixels[position] = decoded
        return sha256(content).digest()

    def _decode_all(
        self, images: Sequence[ImageFile], names: tuple[str, ...], pixels: NDArray[np.uint8]
    ) -> Facts:
        """Decode into `pixels`, whole images first, and return labels, splits and what is to be said of them.

        DataError for a broken image, unless they are skipped.
        """
        from orchestrator.data.decoded_cache import in_order
        from orchestrator.data.image_decoding import without_warnings

        whole: list[ImageFile] = []
        contents: list[bytes] = []
        decode = partial(self._decode, pixels=pixels)
        with without_warnings():
            results = enumerate(in_order(decode, images, name=f"folder {self._root()}"))
            for position, (image, result) in results:
                if isinstance(result, str):
                    if not self.skip_broken:
                        raise DataError(f"{result}; mend or remove it, or write skip_broken=True")
                    continue
                if position > len(whole):
                    pixels[len(whole)] = pixels[position]
                whole.append(image)
                contents.append(result)
        for split in sorted({image.split for image in images} - {image.split for image in whole}):
            raise DataError(
                f"{self._root()}: every image of {split} is broken; mend them, or remove its folder"
            )
        label_of = {name: label for label, name in enumerate(names)}
        labels = [label_of[image.label] for image in whole]
        try:
            splits = content_splits(contents, labels, [image.split for image in whole], names)
        except DataError as error:
            raise DataError(f"{self._root()}: {error}") from error
        return {
            "count": len(whole),
            "labels": labels,
            "splits": splits,
            "shared": shared_notes(contents, splits, [image.name for image in whole]),
            "broken": len(images) - len(whole),
        }


def _left_out(broken: int, others: Sequence[str]) -> Iterator[str]:
    """Yield how many broken images, and files that are no images by their names, are left out."""
    if broken:
        yield f"{broken} broken image{' is' if broken == 1 else 's are'} left out"
    if others:
        what = "file is no image by its name" if len(others) == 1 else "files are no images by their names"
        yield f"{len(others)} {what}: the first is {others[0]}"
