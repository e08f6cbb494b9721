"""What a source of data is, and what it returns.

A source is a frozen class in a file of its own. Its fields are the options of its text, so that
`folder(path='photos', size=32)` is `ImageFolder(path="photos", size=32)`. `facts` and `files` answer from
names, sizes and headers, without decoding an image; `read` returns the arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.errors import DataError, unknown_name
from orchestrator.formatting import format_gigabytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import ImageFile

    Indices = NDArray[np.int64]

FLOAT_BYTES = 256_000_000  # of images as float32; larger data sets stay uint8, and are scaled by the batch


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as its authors published it: images uint8 [N, C, H, W] and labels int64 [N].

    The last `own_test` images are the authors' test set; 0 where they have none. `splits` has the indices of
    (train, validation, test) where the source decides them. `notes` are lines for people: what was left out,
    and what stands in two splits. `file` is what `images` are mapped from, if they are.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    own_test: int
    class_names: tuple[str, ...]
    splits: tuple[Indices, Indices, Indices] | None = None
    notes: tuple[str, ...] = ()
    file: ImageFile | None = None

    def read(self, index: Indices) -> NDArray[np.uint8]:
        """Return a copy of the images at `index`. DataError where their file has changed."""
        return self.images[index] if self.file is None else self.file.read(index)

    def blocks(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in order, about `size` bytes at a time; the same error."""
        import numpy as np

        step = max(1, size // max(1, prod(self.images.shape[1:])))
        for start in range(0, len(self.images), step):
            yield self.read(np.arange(start, min(start + step, len(self.images))))


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without its files.

    `source` is the name of torchvision's class, None for `digits` and for the data sets of other packages.
    Those `read` their files from the data folder, and raise DataError where they are not there. Images hold
    whole numbers from 0 to `levels`. `per_class`: images per class in (train, validation, test), None where
    the classes are (almost) equally frequent. `class_names`: () where they are known to the files alone.
    """

    name: str
    about: str
    input_shape: tuple[int, int, int]
    num_classes: int
    train_images: int
    validation_images: int
    test_images: int
    levels: int = 255
    source: str | None = None
    per_class: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    read: Callable[[Path], Raw] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def split_sizes(self) -> tuple[int, int, int]:
        """Images for (training, validation, test)."""
        return self.train_images, self.validation_images, self.test_images


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """One data set. ValueError for options that are not allowed; DataError from all methods for bad files.

    `paths` are the options that name files or folders, relative to the current folder where they are
    relative (see `paths`). `sample` has the options that an example of it needs.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()
    sample: ClassVar[Mapping[str, str]] = {}
    is_stamped: ClassVar[bool] = True  # whether `files` decide what is read

    @abstractmethod
    def facts(self) -> DatasetInfo:
        """Return what is known without decoding an image."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files that decide what is read."""

    @abstractmethod
    def read(self) -> Raw:
        """Return the arrays of all splits."""

    def broken(self) -> tuple[str, ...]:
        """Return a line for each file that the option `skip_broken` leaves out."""
        return ()

    def forget_decoded(self) -> None:  # noqa: B027  most sources tell by stamps what has changed
        """Forget what a function of one's own returned before, as it is not what a sweep was planned with."""

    def fetch(self) -> bool:
        """Download what is missing, or return False where nothing can be downloaded."""
        return False

    @classmethod
    def state(cls) -> str:
        """Return whether its files are on this machine: there, not there, or another word; not checked."""
        return "your files"


def one_of(*allowed: str) -> Callable[[Any], str]:
    """Return a converter for an option that is one of a few words."""

    def convert(value: Any) -> str:  # a literal of a space file
        if value not in allowed:
            raise ValueError(unknown_name("value", str(value), allowed))
        return str(value)

    return convert


def check_fits(name: str, pixels: int) -> None:
    """Raise DataError where images of this many pixels, all channels counted, do not fit into memory."""
    import psutil

    needed, free = pixels, int(psutil.virtual_memory().available)
    if 4 * pixels <= FLOAT_BYTES:
        needed += 4 * pixels  # uint8 as read, float32 as trained on
    if needed > free:
        raise DataError(
            f"{name} needs {format_gigabytes(needed)} of memory, and {format_gigabytes(free)} are free; "
            "give fewer or smaller images"
        )
