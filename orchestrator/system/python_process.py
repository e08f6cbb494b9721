"""Run Python in a process of its own, which imports nothing from the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])  # of this package, which need not be installed


def run_python(
    *words: str, input: str | None = None, timeout: float | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and return its output as text; the errors of `subprocess.run`.

    The working folder is the user's: with a file `random.py` in it the process would not even start.
    """
    python_path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-P", *words],
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
        env={**os.environ, "PYTHONPATH": python_path},
    )
