"""Standard output and standard error of the command line.

Within a command no control character gets through, whoever wrote it. A result that cannot be written is an
error, a message that cannot be written is not.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, TextIO, cast

from orchestrator.errors import OutputError
from orchestrator.formatting import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text


STDOUT, STDERR = 1, 2
BROKEN_PIPE = 141  # a shell's exit code for SIGPIPE
LINES = "\n\t"  # control characters that a text of several lines may have


class OutputStream:
    """A text stream that shows control characters by name while it is `escaped`.

    Characters that the stream's encoding lacks are written as escapes. All else is the stream's own.
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
        """Flush, or give up, so that Python has nothing to write as it ends."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.give_up()

    def give_up(self) -> None:
        """Send all further output to the null device, what Python writes as it ends included."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:  # whatever a text stream has
        return getattr(self._stream, name)


@contextmanager
def output_streams() -> Iterator[bool]:
    """Make both streams of this process OutputStreams within the block; a bug's traceback comes after it.

    Yields whether standard output is open, as it has to be for results.
    """
    is_open = _open_closed_streams()
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
    """Escape control characters on both streams within the block."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, OutputStream)]
    for stream in streams:
        stream.escaped = True
    try:
        yield
    finally:
        for stream in streams:
            stream.escaped = False


class _Redirected:
    """How many blocks of `stdout_to_stderr` are entered, and what standard output was before the first."""

    lock = RLock()
    depth = 0
    stream: TextIO = sys.stdout
    descriptor: int | None = None


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to standard error what this process, its C libraries and its children write to standard output.

    Threads may enter it together: standard output is as it was when the last of them has left. What other
    threads print meanwhile goes to standard error, too.
    """
    with _Redirected.lock:
        if _Redirected.depth == 0:
            _redirect()
        _Redirected.depth += 1
    try:
        yield
    finally:
        with _Redirected.lock:
            _Redirected.depth -= 1
            if _Redirected.depth == 0:
                _restore()


def _redirect() -> None:
    _flush_stdout()
    _Redirected.stream, sys.stdout = sys.stdout, sys.stderr
    with suppress(OSError):  # either is closed
        _Redirected.descriptor = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)


def _restore() -> None:
    _flush_stdout()
    sys.stdout = _Redirected.stream
    if _Redirected.descriptor is not None:
        os.dup2(_Redirected.descriptor, STDOUT)
        os.close(_Redirected.descriptor)
        _Redirected.descriptor = None


def _flush_stdout() -> None:
    """Write what Python's and C's buffers of standard output hold to where it leads now."""
    from ctypes import CDLL

    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError, AttributeError):  # closed, or not there
            stream.flush()  # type: ignore[union-attr]
    with suppress(OSError, AttributeError):  # no C library by that name
        CDLL(None).fflush(None)


def drawn_on(stream: TextIO) -> TextIO:
    """Return the stream for what draws on a terminal and escapes its texts itself: bars, tables."""
    if not isinstance(stream, OutputStream):
        return stream
    return cast(TextIO, OutputStream(stream._stream, for_results=stream._for_results))


def _open_closed_streams() -> bool:
    """Open the null device for a closed standard stream: the next file would get its number.

    Returns whether standard output was open.
    """
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return 1 not in closed


def print_line(text: object, *, error: bool = False) -> None:
    """Print one line, with control characters escaped; `error` prints to stderr and flushes."""
    stream = sys.stderr if error else sys.stdout
    print(escape_controls(str(text)), file=stream, flush=error)


def print_text(text: str, *, error: bool = False) -> None:
    """Print a text of several lines; `error` prints to stderr and flushes."""
    print(escape_controls(text, allowed=LINES), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Print JSON in ASCII: its escapes keep control characters off the terminal."""
    print(json.dumps(content, indent=1, default=default).replace("\x7f", r"\u007f"))


def resume_hint() -> str:
    """Return the message for an interrupted command: the command that carries on."""
    return escape_controls(f"interrupted; to carry on: {shlex.join(['orchestrate', *sys.argv[1:]])}")


def plain(text: str) -> Text:
    """Return a text for rich, in one line and without markup."""
    from rich.text import Text

    return Text(escape_controls(text))
