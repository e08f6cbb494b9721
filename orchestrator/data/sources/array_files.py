"""`npz(path=...)` and `npy(x=..., y=...)`: images and labels in files of numpy.

No pickle is ever loaded. A large set becomes a decoded file, an npy too: its own file may be saved over, and
thus cut, while it is mapped.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.data import paths
from orchestrator.data.paths import data_folder
from orchestrator.data.sources.array_reader import NamedArrays, existing_file
from orchestrator.data.sources.array_source import ArraySource
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.decoded_files import Decoded, Fill, Shape


@dataclass(frozen=True, kw_only=True)
class FileArrays(ArraySource):
    """Arrays in files, which are open while they are read."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Mapping[str, Any]]:
        """Open the files within a block, as name -> (a function that opens an array, its bytes)."""

    def _decoded(self, shape: Shape, fill: Fill) -> Decoded:
        from orchestrator.data.decoded_cache import read_decoded

        options = {key: str(paths.absolute(getattr(self, key))) for key in self.paths if getattr(self, key)}
        return read_decoded(
            self.files,
            set_name={"name": self.name, "layout": self.layout, **options},
            shape=shape,
            fill=fill,
            data_folder=data_folder(),
            name=self._where(),
        )

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
