"""Run the command with `orchestrate` or `python -m orchestrator`."""

from __future__ import annotations

import os
import signal
from types import FrameType


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
        raise SystemExit(130) from None


def _end_while_importing(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
