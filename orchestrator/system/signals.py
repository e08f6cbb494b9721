"""Handle Ctrl-C and SIGTERM: the first lets a command end by itself, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic, sleep
from types import FrameType

STOPPING = "stopping; once more to stop at once"
# One stop can come as two signals: `timeout` sends one to its child and one to its whole group.
SECONDS_OF_ONE = 0.3
RAISED = "interrupted"
SHOW_CURSOR = "\x1b[?25h"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    """State of this process: a handler gets no argument, and Tune pickles objects that hold one."""

    received: int = 0
    when: float = 0.0
    depth: int = 0  # of blocks that handle signals
    deferrals: int = 0  # blocks of defer_signals
    start_seconds: float | None = None  # in which a command that starts may end by itself
    exit_messages: list[str] = field(default_factory=list)
    closers: list[Callable[[str], None]] = field(default_factory=list)
    disk_full_reason: str = ""


_state = _State()


def received_signal() -> int:
    """Return the first signal since the outermost `handle_signals` or `defer_signals` began, or 0."""
    return _state.received


def disk_full_reason() -> str:
    """Return the message of `request_stop_disk_full` since that block began, or nothing."""
    return _state.disk_full_reason


def request_stop_disk_full(reason: str) -> None:
    """Ask the command to end by itself: nothing more can be written."""
    _state.disk_full_reason = _state.disk_full_reason or reason


def pending() -> bool:
    """Return whether a signal has come within the present block, and not in one that is over."""
    return bool(_state.depth and _state.received)


@contextmanager
def handle_signals(exit_message: str, *, start_seconds: float | None = None) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal, unless it is deferred; print and exit at the second.

    A signal before `has_begun` is called ends the process after `start_seconds`, if nothing else has:
    imports of C++ libraries swallow a KeyboardInterrupt, or raise it late.
    """
    with _handling():
        _state.exit_messages.append(exit_message)
        _state.start_seconds = start_seconds
        try:
            yield
        finally:
            _state.exit_messages.pop()
            _state.start_seconds = None


def has_begun() -> None:
    """Mark the start as over: from here on a stopped command closes its runs before it ends."""
    _state.start_seconds = None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Raise nothing within the block, which polls `received_signal` and ends by itself.

    An exception that is raised within Ray would become another error.
    """
    with _handling():
        _state.deferrals += 1
        try:
            yield
        finally:
            _state.deferrals -= 1


@contextmanager
def allow_interrupt() -> Iterator[None]:
    """Within `defer_signals`, raise KeyboardInterrupt all the same if a signal comes or has come."""
    before, _state.deferrals = _state.deferrals, 0
    try:
        if pending():
            raise KeyboardInterrupt(RAISED)
        yield
    finally:
        _state.deferrals = before


@contextmanager
def closing_at_end(close: Callable[[str], None]) -> Iterator[None]:
    """Have `close(reason)` called if this process is ended at once within the block."""
    _state.closers.append(close)
    try:
        yield
    finally:
        _state.closers.remove(close)


def close_all(reason: str) -> None:
    """Call what `closing_at_end` registered, in a thread that is about to end this process."""
    for close in reversed(_state.closers):
        # Nothing may keep the process from ending: what is left open, the next sweep closes.
        with suppress(Exception):
            close(reason)


def shown_cursor() -> str:
    """Return what shows the cursor again, below a bar, if stderr is a terminal."""
    return f"\n{SHOW_CURSOR}" if sys.stderr.isatty() else ""


def reinstall_handlers() -> None:
    """Install the handlers again after a library may have replaced them."""
    if _state.depth:
        for number in SIGNALS:
            signal.signal(number, _on_signal)


@contextmanager
def _handling() -> Iterator[None]:
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    if not _state.depth:
        _state.received, _state.disk_full_reason = 0, ""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.received:
        if monotonic() - _state.when > SECONDS_OF_ONE:
            _end_at_once(number)
        return
    _state.received, _state.when = number, monotonic()
    if _state.start_seconds is not None:
        Thread(target=_end_start, args=(number, _state.start_seconds), daemon=True).start()
    if not _state.deferrals:
        raise KeyboardInterrupt(RAISED)
    if not sys.stderr.isatty():  # there, the bar says so
        _write(STOPPING)


def _end_start(number: int, seconds: float) -> None:
    sleep(seconds)
    if _state.start_seconds is not None:
        close_all(RAISED)  # before any run is made
        _end_at_once(number)


def _end_at_once(number: int) -> None:
    import psutil  # imported here, since help does not need it

    if not _state.exit_messages:  # called as a library: other processes may belong to the caller
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for text in (shown_cursor(), *_state.exit_messages):
        _write(text)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)


def _write(text: str) -> None:
    """Write a line past sys.stderr, which may have been writing when the signal came."""
    if text:
        os.write(2, f"{text}\n".encode())
