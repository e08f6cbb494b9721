"""Run the command with `orchestrate` or `python -m orchestrator`."""

from __future__ import annotations

import os


def main() -> None:
    """Run `cli.main`; Ctrl-C while it is imported ends in one line, too."""
    try:
        from orchestrator.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
