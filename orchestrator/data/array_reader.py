"""Arrays in numpy's own format: their headers, then their numbers, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from orchestrator.data import paths
from orchestrator.errors import DataError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ARRAYS = ("x", "y", "x_test", "y_test", "x_val", "y_val", "split", "class_names")
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
            shape, dtype = self._header(name, stream)
            count = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
            if count > size:
                raise DataError(f"{name} is cut off: its header says {count} bytes, and {size} are there")
            if at_most and count > at_most:
                raise DataError(f"{name} has {count} bytes; at most {at_most} are read")
        with opener() as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array

    @staticmethod
    def _header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        import numpy as np

        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which are never loaded; save numbers or texts")
        if name.startswith("x") and (not shape or shape[0] == 0):
            raise DataError(f"{name} has no images")
        return shape, dtype


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
