"""Standard output and standard error as the command line writes them.

Within a command no control character gets through, whoever wrote it. Results that cannot be written are an
error; messages that cannot are not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from orchestrator.errors import OutputError
from orchestrator.formatting import escape_controls

BROKEN_PIPE = 141  # as a shell gives it for SIGPIPE
LINES = "\n\t"  # what may stand in a text of several lines


class OutputStream:
    """A text stream; `escaped` turns control characters into what they are called.

    What the stream's encoding does not have is written as an escape. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO, *, for_results: bool) -> None:
        self._stream, self._for_results = stream, for_results
        self.escaped = False

    def write(self, text: str) -> int:
        if self.escaped:
            text = escape_controls(text, allowed=LINES)
        if not text.isascii():
            encoding = self._stream.encoding or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:  # any return value
        try:
            action()
        except BrokenPipeError:
            self.give_up()
            if self._for_results:  # the reader had enough
                raise SystemExit(BROKEN_PIPE) from None
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.give_up()
            if self._for_results:
                reason = error.strerror if isinstance(error, OSError) else "it is closed"
                raise OutputError(f"standard output cannot be written: {reason}") from error

    def finish(self) -> None:
        """Write what waits, or give up: nothing is left for Python to write as it ends."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.give_up()

    def give_up(self) -> None:
        """Let all that is still to come go nowhere, what Python writes as it ends included."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:  # whatever a text stream has
        return getattr(self._stream, name)


@contextmanager
def output_streams() -> Iterator[bool]:
    """Both streams of this process as OutputStream, until the block ends; a bug's traceback comes after.

    What is given is whether standard output is open, as it has to be for results.
    """
    is_open = _open_closed()
    before = sys.stdout, sys.stderr
    results = OutputStream(sys.stdout, for_results=True)
    sys.stdout = cast(TextIO, results)
    sys.stderr = cast(TextIO, OutputStream(sys.stderr, for_results=False))
    try:
        yield is_open
    finally:
        sys.stdout = before[0]
        results.finish()
        if isinstance(sys.exception(), (SystemExit, type(None))):
            sys.stderr = before[1]
        else:
            sys.stderr.escaped = True  # type: ignore[attr-defined]  # set above


@contextmanager
def escaped() -> Iterator[None]:
    """No control character gets through either stream within the block."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, OutputStream)]
    for stream in streams:
        stream.escaped = True
    try:
        yield
    finally:
        for stream in streams:
            stream.escaped = False


def drawn_on(stream: TextIO) -> TextIO:
    """The stream for what draws on a terminal and escapes its texts itself: bars, tables."""
    if not isinstance(stream, OutputStream):
        return stream
    drawn = OutputStream(stream._stream, for_results=stream._for_results)
    return cast(TextIO, drawn)


def _open_closed() -> bool:
    """Put the null device where a standard stream is closed, or the next file opened would take its place.

    Whether standard output was open.
    """
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free is this
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return 1 not in closed
