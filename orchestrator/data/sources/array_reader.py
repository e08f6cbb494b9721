"""Arrays in numpy's own format: their headers, then their numbers, without pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from orchestrator.data import paths
from orchestrator.errors import DataError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ARRAYS = ("x", "y", "x_test", "y_test", "x_val", "y_val", "split", "class_names")
BLOCK_NUMBERS = 1 << 21  # of an array, that are in memory at once
READ_BYTES = 1 << 20
ENDINGS = {"train": "", "validation": "_val", "test": "_test"}  # of the names x and y


class NamedArrays:
    """The arrays of a source by their names."""

    def __init__(self, openers: Mapping[str, Any]) -> None:  # name -> (function that opens it, its bytes)
        self._openers = openers
        for name in ("x", "y"):
            if name not in openers:
                raise DataError(
                    f"it has no array {name!r}; it has {', '.join(sorted(openers)[:20]) or 'none'}"
                )
        for name in set(openers) - set(ARRAYS):  # others may be there for other programs
            if name.lower().startswith(("x_", "y_")) or get_close_matches(name.lower(), ARRAYS, 1, 0.8):
                raise DataError(unknown_name("array", name[:80], ARRAYS))
        for end in ("_test", "_val"):
            if (f"x{end}" in openers) != (f"y{end}" in openers):
                raise DataError(f"it has only one of x{end} and y{end}; give both")

    def __contains__(self, name: str) -> bool:
        return name in self._openers

    def ends(self) -> list[tuple[str, str]]:
        """Return (split, ending of its arrays' names) of the splits that are there."""
        return [(name, end) for name, end in ENDINGS.items() if f"x{end}" in self]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape in an array's header."""
        with self._openers[name][0]() as stream:
            return self._header(name, stream)[0]

    def load(self, name: str, *, at_most: int = 0) -> NDArray[Any]:
        """Return an array. DataError for one of Python objects, or larger than `at_most` bytes."""
        import numpy as np

        opener, size = self._openers[name]
        with opener() as stream:
            shape, _, dtype = self._header(name, stream)
            count = _check_whole(name, shape, dtype, size)
            if at_most and count > at_most:
                raise DataError(f"{name} has {count} bytes; at most {at_most} are read")
        with opener() as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield an array in parts of its first axis, each read when it is asked for.

        Only one in Fortran's order, whose images lie across its file, is read as a whole.
        """
        import numpy as np

        opener, size = self._openers[name]
        with opener() as stream:
            shape, is_fortran, dtype = self._header(name, stream)
            _check_whole(name, shape, dtype, size)
            if is_fortran:
                yield from _slices(self.load(name))
                return
            for start, end in _block_ends(shape):
                block = np.empty((end - start, *shape[1:]), dtype)
                _read_into(name, block, stream)
                yield block
            stream.read(1)  # of a zip file: its end, where the checksum is compared

    @staticmethod
    def _header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        import numpy as np

        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(stream)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which are never loaded; save numbers or texts")
        if name.startswith("x") and (not shape or shape[0] == 0):
            raise DataError(f"{name} has no images")
        return shape, is_fortran, dtype


class ReturnedArrays(NamedArrays):
    """Arrays in memory by their names."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(arrays)
        self._arrays = arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def load(self, name: str, *, at_most: int = 0) -> NDArray[Any]:
        return self._arrays[name]

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        return _slices(self._arrays[name])


def _block_ends(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of blocks of about BLOCK_NUMBERS numbers."""
    step = max(1, BLOCK_NUMBERS // max(1, prod(shape[1:])))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _slices(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[start:end] for start, end in _block_ends(array.shape))


def _read_into(name: str, array: NDArray[Any], stream: IO[bytes]) -> None:
    """Read as many bytes as an array has into it."""
    content = array.reshape(-1).view("u1").data
    while content:
        part = stream.read(min(len(content), READ_BYTES))
        if not part:
            raise DataError(f"{name} is cut off: {len(content)} bytes are missing")
        content[: len(part)] = part
        content = content[len(part) :]


def _check_whole(name: str, shape: Sequence[int], dtype: np.dtype[Any], size: int) -> int:
    """Return the bytes of an array. DataError where fewer are there."""
    count = prod(shape) * dtype.itemsize
    if count > size:
        raise DataError(f"{name} is cut off: its header says {count} bytes, and {size} are there")
    return count


def existing_file(name: str, path: str) -> Path:
    """Return a file that is there and not empty, or raise DataError."""
    file = paths.absolute(path)
    try:
        if not file.is_file():
            problem = "is a folder" if file.is_dir() else "is not there"
            raise DataError(f"{name} {file} {problem}; give the path of a file")
        if file.stat().st_size == 0:
            raise DataError(f"{name} {file} is empty")
    except OSError as error:
        raise DataError(f"{name} {file} cannot be read: {error.strerror}") from error
    return file
