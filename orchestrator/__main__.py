"""Run the command with `orchestrate` or `python -m orchestrator`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALLED = 128  # exit codes above it are 128 plus the number of a signal


def main() -> None:
    """Run `cli.main`; Ctrl-C while it is imported ends in one line, too."""
    # What is raised in a callback of importlib is printed and lost. SIGINT that is ignored stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_while_importing)
    try:
        from orchestrator.cli import main as run

        if signal.getsignal(signal.SIGINT) is _end_while_importing:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        _end(130)
    except SystemExit as error:
        if isinstance(error.code, int) and error.code > SIGNALLED:
            _end(error.code)
        raise


def _end(code: int) -> NoReturn:
    """End a process that a signal has stopped, with what is registered for its end, but not Python's own.

    Python would take down modules while C++ threads of Ray or torch, cut off as they started, still run:
    now and then that is a segmentation fault.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_while_importing(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
