"""What a process imported that ran with PYTHONPROFILEIMPORTTIME."""

from __future__ import annotations


def imported(stderr: str) -> list[str]:
    """The names of the modules, from what it said on stderr."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines[1:]]
