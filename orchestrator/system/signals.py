"""Handle Ctrl-C and SIGTERM: the first lets a command end by itself, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread, Timer
from time import monotonic, sleep
from types import FrameType

STOPPING = "stopping; once more to stop at once"
# One stop can come as two signals: `timeout` sends one to its child and one to its whole group.
SECONDS_OF_ONE = 0.3
RAISED = "interrupted"
SECONDS_TO_PASS = 0.05  # in which a callback, where nothing can be raised, is over
SHOW_CURSOR = "\x1b[?25h"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
UnraisableHook = Callable[["sys.UnraisableHookArgs"], object]  # a type of the stubs alone


class SignalHandler:
    """What one command knows of signals; it is created where the command begins, and passed on.

    `received` is the first signal since the outermost block of `handling` or `deferring` began, or 0, and
    `disk_full_reason` the message of `request_stop` since then, or nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self.disk_full_reason = ""
        self._received_at = 0.0
        self._depth = 0  # of blocks that handle signals
        self._deferrals = 0  # blocks of `deferring`
        self._start_seconds: float | None = None  # in which a command that starts may end by itself
        self._exit_messages: list[str] = []
        self._closers: list[Callable[[str], None]] = []

    # Tune pickles what stops a sweep. Another process gets signals of its own: there it is a new one.
    def __reduce__(self) -> tuple[type[SignalHandler], tuple[()]]:
        return SignalHandler, ()

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal has come within the present block, and not in one that is over."""
        return bool(self._depth and self.received)

    @property
    def is_stopping(self) -> bool:
        """Whether the sweep ends early: what fails now was cut off."""
        return bool(self.received or self.disk_full_reason)

    def request_stop(self, disk_full_reason: str) -> None:
        """Ask the command to end by itself: nothing more can be written."""
        self.disk_full_reason = self.disk_full_reason or disk_full_reason

    @contextmanager
    def handling(self, exit_message: str, *, start_seconds: float | None = None) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first signal, unless it is deferred; print and exit at the second.

        A signal before `mark_started` ends the process after `start_seconds`, if nothing else has: imports
        of C++ libraries swallow a KeyboardInterrupt, or raise it late.
        """
        with self._installed():
            self._exit_messages.append(exit_message)
            self._start_seconds = start_seconds
            try:
                yield
            finally:
                self._exit_messages.pop()
                self._start_seconds = None

    def mark_started(self) -> None:
        """End the start: from here on a stopped command closes its runs before it ends."""
        self._start_seconds = None

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Raise nothing within the block, which polls `received` and ends by itself.

        An exception that is raised within Ray would become another error.
        """
        with self._installed():
            self._deferrals += 1
            try:
                yield
            finally:
                self._deferrals -= 1

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within `deferring`, raise KeyboardInterrupt all the same if a signal comes or has come."""
        before, self._deferrals = self._deferrals, 0
        try:
            if self.is_interrupted:
                raise KeyboardInterrupt(RAISED)
            yield
        finally:
            self._deferrals = before

    @contextmanager
    def closing_at_end(self, close: Callable[[str], None]) -> Iterator[None]:
        """Have `close(reason)` called if this process is ended at once within the block."""
        self._closers.append(close)
        try:
            yield
        finally:
            self._closers.remove(close)

    def close_all(self, reason: str) -> None:
        """Call what `closing_at_end` registered, in a thread that is about to end this process."""
        for close in reversed(self._closers):
            # Nothing may keep the process from ending: what is left open, the next sweep closes.
            with suppress(Exception):
                close(reason)

    def reinstall(self) -> None:
        """Install the handlers again after a library may have replaced them."""
        if self._depth:
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    @contextmanager
    def _installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        hook, sys.unraisablehook = sys.unraisablehook, partial(self._on_unraisable, sys.unraisablehook)
        if not self._depth:
            self.received, self.disk_full_reason = 0, ""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if monotonic() - self._received_at > SECONDS_OF_ONE:
                self._end_at_once(number)
            return
        self.received, self._received_at = number, monotonic()
        if self._start_seconds is not None:
            Thread(target=self._end_start, args=(number, self._start_seconds), daemon=True).start()
        if not self._deferrals:
            raise KeyboardInterrupt(RAISED)
        if not sys.stderr.isatty():  # there, the bar says so
            _write(STOPPING)

    def _on_unraisable(self, hook: UnraisableHook, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again, a moment later, where Python could not pass the interruption on.

        That is so in the callbacks of weak references, such as importlib has, and in `__del__`.
        """
        is_ours = isinstance(unraisable.exc_value, KeyboardInterrupt)
        if not is_ours or str(unraisable.exc_value) != RAISED or not self.received:
            hook(unraisable)
            return
        number, self.received = self.received, 0
        Timer(SECONDS_TO_PASS, os.kill, (os.getpid(), number)).start()

    def _end_start(self, number: int, seconds: float) -> None:
        sleep(seconds)
        if self._start_seconds is not None:
            self.close_all(RAISED)  # before any run is made
            self._end_at_once(number)

    def _end_at_once(self, number: int) -> None:
        import psutil  # imported here, since help does not need it

        if not self._exit_messages:  # called as a library: other processes may belong to the caller
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for text in (shown_cursor(), *self._exit_messages):
            _write(text)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        os._exit(128 + number)


def shown_cursor() -> str:
    """Return what shows the cursor again, below a bar, if stderr is a terminal."""
    return f"\n{SHOW_CURSOR}" if sys.stderr.isatty() else ""


def _write(text: str) -> None:
    """Write a line past sys.stderr, which may have been writing when the signal came."""
    if text:
        os.write(2, f"{text}\n".encode())
