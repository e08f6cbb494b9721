"""Ctrl-C and SIGTERM: the first lets a command end by itself, the second ends it at once."""

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
    """A handler has nowhere else to look; Tune pickles what it is given, so it stays in this module."""

    received: int = 0
    when: float = 0.0
    depth: int = 0  # blocks within blocks
    holding: int = 0
    start_seconds: float | None = None  # for what is being started to end by itself
    last_words: list[str] = field(default_factory=list)
    closers: list[Callable[[str], None]] = field(default_factory=list)
    no_room: str = ""


_state = _State()


def received_signal() -> int:
    """The first signal since `listening` or `held` began, or 0."""
    return _state.received


def disk_full_reason() -> str:
    """What was said of a full disk since `listening` or `held` began; nothing if there was room."""
    return _state.no_room


def request_stop_disk_full(reason: str) -> None:
    """The command is to end by itself: nothing more can be written."""
    _state.no_room = _state.no_room or reason


def pending() -> bool:
    """Whether a signal has come within the block that handles them now, and not in one that is over."""
    return bool(_state.depth and _state.received)


@contextmanager
def handle_signals(exit_message: str, *, start_seconds: float | None = None) -> Iterator[None]:
    """The first signal raises KeyboardInterrupt, unless it is `held`; a second one prints and exits.

    One that comes before `has_begun` is called ends the process after `start_seconds`, if nothing else has:
    imports of C++ libraries swallow a KeyboardInterrupt, or hear of it late.
    """
    with _handling():
        _state.last_words.append(exit_message)
        _state.start_seconds = start_seconds
        try:
            yield
        finally:
            _state.last_words.pop()
            _state.start_seconds = None


def has_begun() -> None:
    """The start is over: from here on a stopped command closes its runs before it ends."""
    _state.start_seconds = None


@contextmanager
def defer_signals() -> Iterator[None]:
    """The block asks `received`, and ends by itself: what is raised within Ray becomes another error."""
    with _handling():
        _state.holding += 1
        try:
            yield
        finally:
            _state.holding -= 1


@contextmanager
def allow_interrupt() -> Iterator[None]:
    """Within `held`: KeyboardInterrupt at once, all the same, if a signal comes or has come already."""
    before, _state.holding = _state.holding, 0
    try:
        if pending():
            raise KeyboardInterrupt(RAISED)
        yield
    finally:
        _state.holding = before


@contextmanager
def closing_at_end(close: Callable[[str], None]) -> Iterator[None]:
    """Within the block, who has to end this process at once calls `close` before, with the reason."""
    _state.closers.append(close)
    try:
        yield
    finally:
        _state.closers.remove(close)


def close_all(reason: str) -> None:
    """What is open is closed, by a thread that is about to end this process."""
    for close in reversed(_state.closers):
        # Nothing may keep the process: what cannot be closed, the next sweep closes.
        with suppress(Exception):
            close(reason)


def shown_cursor() -> str:
    """What shows the cursor again, below a bar, where there is a terminal."""
    return f"\n{SHOW_CURSOR}" if sys.stderr.isatty() else ""


def reinstall_handlers() -> None:
    """Install the handlers again, where others may have put theirs."""
    if _state.depth:
        for number in SIGNALS:
            signal.signal(number, _hear)


@contextmanager
def _handling() -> Iterator[None]:
    before = {number: signal.signal(number, _hear) for number in SIGNALS}
    if not _state.depth:
        _state.received, _state.no_room = 0, ""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def _hear(number: int, frame: FrameType | None) -> None:
    if _state.received:
        if monotonic() - _state.when > SECONDS_OF_ONE:
            _end_at_once(number)
        return
    _state.received, _state.when = number, monotonic()
    if _state.start_seconds is not None:
        Thread(target=_end_start, args=(number, _state.start_seconds), daemon=True).start()
    if not _state.holding:
        raise KeyboardInterrupt(RAISED)
    if not sys.stderr.isatty():  # there, the bar says so
        _say(STOPPING)


def _end_start(number: int, seconds: float) -> None:
    sleep(seconds)
    if _state.start_seconds is not None:
        close_all(RAISED)  # before any run is made
        _end_at_once(number)


def _end_at_once(number: int) -> None:
    import psutil  # help, too, listens to signals, and does not need it

    if not _state.last_words:  # not a command of ours: whoever called has processes that we do not know
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for words in (shown_cursor(), *_state.last_words):
        _say(words)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)


def _say(words: str) -> None:
    """Past sys.stderr: the signal may have come while that was writing."""
    if words:
        os.write(2, f"{words}\n".encode())
