"""Downloads of published files: with time-outs, into a temporary folder first, and checked by their MD5."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.system.console import drawn_on

FETCH_TIMEOUT_SECONDS = 30.0
DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError)  # torchvision raises the last for a wrong MD5


def problem_of(file: Path, md5: str) -> str | None:
    """Return why a file is not the published one; None where it is."""
    from models.torchvision_compat import datasets

    try:
        if not file.is_file():
            return f"{file} is missing (expected md5 {md5})"
        actual = datasets.utils.calculate_md5(file)
        if actual == md5:
            return None
        return f"{file} is corrupt: {file.stat().st_size} bytes with md5 {actual}, expected md5 {md5}"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"


def reason_of(error: BaseException) -> str:
    """Return what a library said of a failure, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def download(urls: Sequence[str], file: Path, md5: str) -> None:
    """Download into a temporary folder, then rename. Raises the last address's error where all fail."""
    from models.torchvision_compat import datasets

    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".fetch-") as folder, _download_settings():
        for url in urls:
            try:
                datasets.utils.download_url(url, folder, file.name, md5)
                break
            except DOWNLOAD_ERRORS:
                if url == urls[-1]:
                    raise
        os.replace(Path(folder) / file.name, file)


@contextmanager
def _download_settings() -> Iterator[None]:
    """Set a timeout, and show torchvision's progress bar on terminals only."""
    # torchvision sets no timeout: a silent server would hang for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(FETCH_TIMEOUT_SECONDS)
    try:
        if sys.stderr.isatty():
            with redirect_stderr(drawn_on(sys.stderr)):
                yield
        else:
            with open(os.devnull, "w") as devnull, redirect_stderr(devnull):
                yield
    finally:
        socket.setdefaulttimeout(before)
