"""A file of bytes [N, C, H, W] whose images are read by their positions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A decoded file, held open: its name may soon be that of another one, or of none.

    `mtime_ns` is the time of its last change when it was made. Threads may read it together.
    """

    stream: BinaryIO
    shape: tuple[int, int, int, int]
    mtime_ns: int

    def is_unchanged(self) -> bool:
        status = os.fstat(self.stream.fileno())
        return (status.st_size, status.st_mtime_ns) == (prod(self.shape), self.mtime_ns)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `rows`; the same errors as `read_into`."""
        images = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        self.read_into(images.reshape(-1), rows)
        return images

    def read_into(self, content: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Read the images at `rows` into `content`, flat. DataError where the file has changed."""
        size, buffer = prod(self.shape[1:]), content.data
        runs = np.flatnonzero(np.diff(rows) != 1) + 1  # images that lie one after another are read at once
        starts, ends = [0, *runs.tolist()], [*runs.tolist(), len(rows)]
        for start, end in zip(starts, ends, strict=True):
            if start < end:
                self._read(buffer[start * size : end * size], int(rows[start]) * size)
        if not self.is_unchanged():  # after: what another process wrote while it was read is not used
            self._refuse()

    def _read(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = os.preadv(self.stream.fileno(), [buffer], offset)
            if count == 0:
                self._refuse()
            buffer, offset = buffer[count:], offset + count

    def _refuse(self) -> None:
        raise DataError(
            f"{self.stream.name} was changed while it was in use, and is decoded again by the next run; "
            "leave the files in its folder as they are, and start again"
        )
