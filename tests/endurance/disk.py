"""A small disk of its own that can be filled and freed: a tmpfs, for which a person must be root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEGABYTE = 1_000_000
BALLAST = ".ballast"


@contextmanager
def mounted(place: Path, megabytes: int = 96) -> Iterator[bool]:
    """Mount it, if that is allowed here."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    done = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, *, but: int) -> None:
    """Take all of a disk but so many bytes."""
    with (disk / BALLAST).open("wb") as file:
        while (room := shutil.disk_usage(disk).free - but) > 0:
            try:
                file.write(bytes(min(room, MEGABYTE)))
                file.flush()
            except OSError:  # the sweep took it first
                return


def free(disk: Path) -> None:
    (disk / BALLAST).unlink(missing_ok=True)
