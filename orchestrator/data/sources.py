"""Where data come from: a source for each data set that a text with options describes.

A source is a frozen class in a file of its own. Its fields are the options of its text, so that
`folder(path='photos', size=32)` is `ImageFolder(path="photos", size=32)`. `facts` and `files` answer from
names, sizes and headers, without decoding an image; `read` returns the arrays. A class is imported when its
name is used: nothing here needs numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.config import method_text
from orchestrator.data import paths
from orchestrator.data.data_folder import data_folder
from orchestrator.data.torchvision_table import PUBLISHED
from orchestrator.errors import DataError, SpaceError, unknown_name
from orchestrator.formatting import format_gigabytes
from pruning import own_code, own_functions
from pruning.hyperparameters import Hyperparameter, convert_option, hyperparameters
from pruning.registry import parse_method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.image_file import ImageFile

    Indices = NDArray[np.int64]

Options = dict[str, Any]  # literals of a space file
Stamps = list[list[str | int]]
SELECTION = ("classes", "samples_per_class")  # options of every data set; see `datasets.check_options`


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


# Name in a text -> module:class.
SOURCES: dict[str, str] = {
    "mnist-5k": "orchestrator.data.mnist_5k:Mnist5k",
    "folder": "orchestrator.data.image_folder:ImageFolder",
    "npz": "orchestrator.data.array_files:Npz",
    "npy": "orchestrator.data.array_files:Npy",
    **{name: f"orchestrator.data.torchvision_sources:{name}" for name in PUBLISHED},
}
FLOAT_BYTES = 256_000_000  # of images as float32; larger data sets stay uint8, and are scaled by the batch


def source_class(name: str) -> type[Source]:
    """Return the class of a source by its name."""
    module, _, attribute = SOURCES[name].partition(":")
    result: type[Source] = getattr(import_module(module), attribute)
    return result


def parse_dataset(text: str) -> tuple[str, Options]:
    """Split the text of a data set into (text without the options of SELECTION, those options)."""
    name, options = parse_method(text)
    selection = {key: options.pop(key) for key in SELECTION if key in options}
    return method_text(name, options), selection


@lru_cache(maxsize=256)
def find_source(text: str) -> Source | None:
    """Return the source of a text without options of SELECTION; None for what is known by its name alone.

    SpaceError for options that it does not have.
    """
    if "(" not in text and not is_source(text):
        return None
    try:
        name, options = parse_method(text)
    except ValueError as error:
        raise SpaceError(str(error)) from error
    if not is_source(name):
        return None
    if own_code.is_own(name):
        return _own_source(name, options)
    try:
        cls = source_class(name)
        return cls(**_bind(name, options))
    except ValueError as error:
        raise SpaceError(str(error)) from error


def is_source(name: str) -> bool:
    """Whether a name without options is that of a source, or of a function of one's own file."""
    return name in SOURCES or own_code.is_own(name)


def _own_source(name: str, options: Options) -> Source:
    """Return the source of a function. DataError where this process has not its code."""
    from orchestrator.data.own_data import OwnData

    if not own_code.split(name).pin:  # as a store shows it: which file was meant is not known
        raise DataError(
            f"{name} is written without the digest of its file here, and is not read; name it in a space file"
        )
    try:
        own_code.code_of(name)
    except ValueError as error:
        raise DataError(str(error)) from error
    try:
        return OwnData(text=method_text(name, _bind(name, options)))
    except ValueError as error:
        raise SpaceError(str(error)) from error


def canonical_options(name: str, options: Mapping[str, Any]) -> Options:
    """Return a source's own options in canonical form: those that differ from their default, paths recorded.

    ValueError for an option that it does not have, or a value that is not allowed; no file is looked at.
    """
    bound = _bind(name, options)
    if own_code.is_own(name):
        allowed = options_of(name)
        return {key: value for key, value in bound.items() if not _is_default(value, allowed[key].default)}
    cls = source_class(name)
    for key in cls.paths:
        if bound.get(key):
            bound[key] = paths.recorded(bound[key])
    source, defaults = cls(**bound), options_of(name)
    values = {key: getattr(source, key) for key in defaults}
    return {key: value for key, value in values.items() if value != defaults[key].default}


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value is the default; a list, as space files have it, is the tuple of the same."""
    return bool(value == (list(default) if type(default) is tuple else default))


def _bind(name: str, options: Mapping[str, Any]) -> Options:
    allowed, shown = options_of(name), own_code.shown(name)
    for key in options:
        if key in SELECTION:
            raise ValueError(f"{shown}: {key} is no part of the text here; give it as an argument")
        if key not in allowed:
            raise ValueError(unknown_name(f"option of {shown}", key, [*allowed, *SELECTION]))
    return {key: convert_option(f"{shown}({key})", value, allowed[key]) for key, value in options.items()}


def options_of(name: str) -> Mapping[str, Hyperparameter]:
    """Return name -> hyper-parameter of a source's own options. ValueError for a function that has none."""
    if own_code.is_own(name):
        return hyperparameters(own_functions.find_method("data set", name, (), ())[0])
    if name not in SOURCES:
        return {}
    constructor: Callable[..., Source] = source_class(name)
    return hyperparameters(constructor)


@lru_cache(maxsize=256)
def _facts(source: Source, folder: Path, data: Path) -> DatasetInfo:
    return source.facts()


def source_facts(source: Source) -> DatasetInfo:
    """Return `source.facts()`, cached until `clear_facts`: a plan asks once per trial."""
    return _facts(source, paths.base(), data_folder())


def clear_facts() -> None:
    """Forget what was known: files may have changed since."""
    _facts.cache_clear()


def stamps_of(source: Source) -> Stamps:
    """Return one [common folder, number of files, SHA-256 of their names, sizes and times of change]."""
    digest, files = hashlib.sha256(), sorted(source.files(), key=os.fsencode)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        times = status.st_mtime_ns, status.st_ctime_ns  # the second is set back by no program
        digest.update(json.dumps([os.fsencode(file).hex(), status.st_size, *times]).encode())
    if not files:
        return []
    folder = os.path.commonpath([file.parent for file in files])
    return [[str(folder), len(files), digest.hexdigest()]]


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
