"""A command in this process, which has imported everything already; a sweep takes a process of its own."""

from __future__ import annotations

import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from orchestrator import cli


def orchestrate(*words: str, cwd: Path) -> CompletedProcess[str]:
    """What it prints, and its exit code."""
    out, err, code = StringIO(), StringIO(), 0
    with (
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["orchestrate", *words]),
        patch.object(sys.modules["__main__"], "__package__", ""),  # `python -m pytest` is not its name
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())
