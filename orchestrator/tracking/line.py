"""The line to a store: once it is down, nobody in this process waits for it again for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from time import monotonic

from orchestrator.errors import AwayError
from orchestrator.tracking.faults import reaching

REST_SECONDS = 15.0  # a store that was away is not asked again for so long


class Line:
    """Calls of one store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._down_until = 0.0
        self._why = ""

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """As `faults.reaching`; AwayError at once where the store was away a moment ago."""
        if monotonic() < self._down_until:
            raise AwayError(self._why)
        try:
            with reaching(self.uri):
                yield
        except AwayError as error:
            self._down_until, self._why = monotonic() + REST_SECONDS, str(error)
            raise

    def ask_anew(self) -> None:
        """Whoever asks next asks the store."""
        self._down_until = 0.0


@lru_cache(maxsize=64)
def line_to(uri: str) -> Line:
    """The one line of this process to a store."""
    return Line(uri)
