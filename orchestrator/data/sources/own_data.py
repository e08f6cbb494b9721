"""`path/to/file.py:function(option=3)`: images that a function of one's own file returns.

The file is read, pinned by its digest and kept as the files of one's own models are: see `pruning.user_code`.
It returns arrays or map-style data sets (`returned_data`), which become images by the rules of `npz`.
What it reads itself has no stamp: it is called anew for every plan, and its images decide the digest.

What is large, or takes long, becomes a decoded file of the data folder. Workers read that file and do not
call the function; where its digest is not that of the plan, it is removed, and the function called.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.data import paths
from orchestrator.data.paths import data_folder
from orchestrator.data.sources.array_reader import NamedArrays, ReturnedArrays
from orchestrator.data.sources.array_source import ArraySource, ImageLabels, Layout, raw_of
from orchestrator.data.sources.base import DatasetInfo, Raw, check_fits
from orchestrator.errors import DataError, UnusableError
from orchestrator.system.console import stdout_to_stderr
from pruning.hyperparameters import hyperparameters
from pruning.registry import parse_method
from pruning.user_code import own_code
from pruning.user_code.functions import find_method
from pruning.user_code.imports import reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Decoded, Facts, Fill, Shape

    Arrays = Mapping[str, NDArray[Any]]

SLOW_SECONDS = 1.0  # a call that takes longer is not left to every worker, however small its images are
_waiting: dict[str, Arrays] = {}  # text -> what `facts` has seen and `read` has not taken yet: one at most
_steady: set[str] = set()  # texts whose function returned the same when it was called twice
_slow: set[str] = set()  # texts whose function took longer than SLOW_SECONDS


@dataclass(frozen=True, kw_only=True)
class OwnData(ArraySource):
    """Images that a function of one's own returns. `text` is its pinned name with its options."""

    name: ClassVar[str] = "own"
    about: ClassVar[str] = "images that a function of your own returns"
    is_stamped: ClassVar[bool] = False

    text: str
    layout: Layout = "first"  # as `returned_data` gives them

    def facts(self) -> DatasetInfo:
        for _, decoded in self._decoded_before():
            facts, (_, *shape) = decoded.facts, decoded.pixels.shape
            train, validation, test = map(tuple, facts["per_class"])
            channels, height, width = shape
            names = tuple(facts["class_names"])
            return self._describe((channels, height, width), names, (train, validation, test))
        with self._errors():
            before, arrays = _waiting.pop(self.text, None), self._call()
            if before is not None:
                self._check_equal(before, arrays)
            _wait(self.text, arrays)
        return super().facts()

    def files(self) -> list[Path]:
        return []

    def read(self) -> Raw:
        import numpy as np

        for _, decoded in self._decoded_before():
            labels = np.array(decoded.facts["labels"], dtype=np.int64)
            return raw_of(decoded, labels, tuple(decoded.facts["class_names"]))
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

    def forget_decoded(self) -> None:
        from orchestrator.data.decoded_files import remove_decoded

        for key, _ in self._decoded_before():
            remove_decoded(_decoded_folder(), key)

    @contextmanager
    def _arrays(self) -> Iterator[NamedArrays]:
        with self._errors():
            yield ReturnedArrays(_waiting[self.text])

    def _where(self) -> str:
        return own_code.shown(self.text)

    def _decoded(self, shape: Shape, fill: Fill) -> Decoded:
        from orchestrator.data.decoded_cache import SMALL_BYTES, decoded_key
        from orchestrator.data.decoded_files import decode_into_memory, load_or_decode

        is_small = prod(shape) <= SMALL_BYTES
        if is_small and self.text not in _slow:
            check_fits(self._where(), prod(shape))
            return decode_into_memory(shape, fill)
        key = decoded_key(self._set_name(), _digest(_waiting[self.text]))
        try:
            return load_or_decode(_decoded_folder(), key, shape=shape, fill=fill, name=self._where())
        except UnusableError:
            if not is_small:
                raise
            return decode_into_memory(shape, fill)  # workers call the function, as if it were quick

    def _fill(self, labels: ImageLabels, pixels: NDArray[np.uint8]) -> Facts:
        """Add what a worker needs beside the pixels."""
        return {
            **super()._fill(labels, pixels),
            "text": self.text,
            "labels": labels.values.tolist(),
            "class_names": labels.class_names,
            "per_class": labels.per_class(),
        }

    def _set_name(self) -> Mapping[str, str]:
        """Return what all versions of the function have in common: of these one file stays."""
        return {"name": self.name, "text": self._where(), "folder": str(paths.base())}

    def _decoded_before(self) -> Iterator[tuple[str, Decoded]]:
        """Yield (key, decoded) of what this function has returned before; in a worker alone.

        A worker compares the digest with that of the plan, for which the function was called.
        """
        from orchestrator.data.decoded_cache import set_digest
        from orchestrator.data.decoded_files import find_decoded

        if paths.is_worker():
            for key, decoded in find_decoded(_decoded_folder(), set_digest(self._set_name())):
                if decoded.facts.get("text") == self.text:
                    yield key, decoded

    def _call(self) -> Arrays:
        """Call the function, and return its images and labels as arrays by their names."""
        from orchestrator.data.sources.returned_data import to_arrays

        name, options = parse_method(self.text)
        start = perf_counter()
        with stdout_to_stderr(), _own_random_numbers():  # our stdout is for results
            function = own_code.find_function(name)
            # A space file has lists alone.
            parameters = hyperparameters(find_method("data set", name, (), ())[0])
            defaults = {key: option.default for key, option in parameters.items()}
            options = {key: tuple(v) if type(defaults[key]) is tuple else v for key, v in options.items()}
            arrays = to_arrays(function(**options))
        if perf_counter() - start > SLOW_SECONDS:
            _slow.add(self.text)
        return arrays

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


def _decoded_folder() -> Path:
    from orchestrator.data.decoded_cache import FOLDER

    return data_folder() / FOLDER


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
