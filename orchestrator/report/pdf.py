"""Print the report as PDF with the headless Chromium of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.errors import UsageError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 180
OTHERWISE = "write FILE.html and print it from a browser"
# The page fetches nothing, and neither shall the browser.
OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--no-pdf-header-footer",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=20000",  # milliseconds: charts are drawn before the page is printed
)


def find_browser() -> str:
    """Return the path of a Chromium; UsageError, with what to do, where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise UsageError(
        f"--out FILE.pdf is printed by Chromium, and none of {', '.join(BROWSERS)} is on the PATH; install "
        f"one, or {OTHERWISE}"
    )


def print_pdf(page: str) -> bytes:
    """Return the PDF of an HTML page; UsageError where no browser is there or it fails."""
    browser = find_browser()
    with TemporaryDirectory(prefix="orchestrate-pdf-") as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(page, encoding="utf-8")
        # Chromium's sandbox cannot be set up by root, as in most containers.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [browser, *OPTIONS, *sandbox, f"--user-data-dir={folder}/profile"]
        command += [f"--print-to-pdf={target}", source.as_uri()]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UsageError(
                f"{browser} did not print the report within {SECONDS} s; write FILE.html"
            ) from error
        if not target.is_file():
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise UsageError(
                f"{browser} printed no PDF ({reason}); write FILE.html and print it from a browser"
            )
        return target.read_bytes()
