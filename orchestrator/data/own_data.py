"""`path/to/file.py:function(option=3)`: images that a function of one's own file returns.

The file is read, pinned by its digest and kept as the files of one's own models are (`pruning.own_code`). The
function returns arrays or map-style data sets (`returned_data`), which become images by the rules of `npz`.
What it reads itself has no stamp: it is called anew for every plan, and its images decide the digest.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.data import paths
from orchestrator.data.array_files import ArraySource, Layout
from orchestrator.data.array_reader import NamedArrays
from orchestrator.data.sources import DatasetInfo, Raw, options_of
from orchestrator.errors import DataError
from pruning import own_code
from pruning.own_imports import reason
from pruning.registry import parse_method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

_waiting: dict[str, Arrays] = {}  # text -> what `facts` has seen and `read` has not taken yet: one at most
_steady: set[str] = set()  # texts whose function returned the same when it was called twice


@dataclass(frozen=True, kw_only=True)
class OwnData(ArraySource):
    """Images that a function of one's own returns. `text` is its pinned name with its options."""

    name: ClassVar[str] = "own"
    about: ClassVar[str] = "images that a function of your own returns"
    is_stamped: ClassVar[bool] = False

    text: str
    layout: Layout = "first"  # as `returned_data` gives them

    def facts(self) -> DatasetInfo:
        with self._errors():
            before, arrays = _waiting.pop(self.text, None), self._call()
            if before is not None:
                self._check_equal(before, arrays)
            _wait(self.text, arrays)
        return super().facts()

    def files(self) -> list[Path]:
        return []

    def read(self) -> Raw:
        with self._errors():
            arrays = _waiting.get(self.text) or self._call()
            # A worker compares with the digest of the plan.
            if self.text not in _steady and not paths.is_worker():
                self._check_equal(arrays, self._call())
            _wait(self.text, arrays)
        try:
            return super().read()
        finally:
            _waiting.clear()

    @contextmanager
    def _arrays(self) -> Iterator[NamedArrays]:
        with self._errors():
            yield ReturnedArrays(_waiting[self.text])

    def _call(self) -> Arrays:
        """Call the function, and return its images and labels as arrays by their names."""
        from orchestrator.data.returned_data import to_arrays

        name, options = parse_method(self.text)
        function = own_code.find_function(name)
        # A space file has lists alone.
        defaults = {key: option.default for key, option in options_of(name).items()}
        options = {key: tuple(v) if type(defaults[key]) is tuple else v for key, v in options.items()}
        with redirect_stdout(sys.stderr), _own_random_numbers():  # our stdout is for results
            return to_arrays(function(**options))

    def _check_equal(self, first: Arrays, second: Arrays) -> None:
        if _digest(first) != _digest(second):
            raise DataError(
                "it returned other images or labels when it was called again; seed the random numbers that "
                "it draws, and leave what it reads as it is"
            )
        _steady.add(self.text)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn whatever the code raises into a DataError of one line."""
        shown = own_code.shown(self.text)
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except DataError as error:
            text = str(error)
            raise DataError(text if text.startswith(shown) else f"{shown}: {text}") from error
        except MemoryError as error:
            raise DataError(f"{shown} does not fit into memory; return fewer or smaller images") from error
        except BaseException as error:  # whatever another's code may raise, SystemExit too
            raise DataError(f"{shown}: {reason(error)}") from error


class ReturnedArrays(NamedArrays):
    """Arrays in memory by their names."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays)
        self._in_memory = arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._in_memory[name].shape

    def load(self, name: str, *, at_most: int = 0) -> NDArray[Any]:
        return self._in_memory[name]


def forget_waiting() -> None:
    """Forget what was returned and not read: files may have changed since."""
    _waiting.clear()


def _wait(text: str, arrays: Arrays) -> None:
    _waiting.clear()
    _waiting[text] = arrays


def _digest(arrays: Arrays) -> str:
    import numpy as np

    state = sha256()
    for name, array in sorted(arrays.items()):
        state.update(f"|{name}{array.dtype.str}{array.shape}|".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Seed the global generators anew within the block, and leave them as they were.

    Every call gets other seeds, so that a function which forgot its own is found out.
    """
    import numpy as np
    import torch

    seed = int.from_bytes(os.urandom(4), "big")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
