"""Take the pictures of the MLflow pages, docs/pictures/ui-*.png, after a small sweep in a store of its own.

    python docs/take_pictures.py

It needs a Chromium on the PATH and the package playwright. tests/test_pages.py looks at the same pages.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
ROOT = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SPACE = """\
version: 1
about: Two techniques on a small network, three amounts, two seeds.
axes:
  model: ["cnn(widths=[16, 32])"]
  dataset: [digits]
  technique: [unstructured, structured]
  amount: [25%, 50%, 90%]
  seed: [0, 1]
train: {epochs: 8, lr: 3e-3}
recover: finetune(epochs=1)
"""
# The first visit would open a panel that asks for a language model.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
SECONDS = 300  # that a page, or the server, may take on a machine that is busy


def orchestrate(*words: str, folder: Path) -> str:
    """What a command prints, run in a folder; its store is below it."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def sweep(folder: Path) -> None:
    """A small sweep, whose store is below the folder."""
    (folder / "small.yaml").write_text(SPACE)
    orchestrate("sweep", "--space", "small.yaml", "--device", "cpu", folder=folder)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """`orchestrate ui` on a free port: word -> address, as it prints them for the space `small`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "ui.txt").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _addresses(process, folder / "ui.txt")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def _addresses(process: subprocess.Popen[bytes], file: Path) -> dict[str, str]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        lines = [line.split() for line in file.read_text().splitlines() if line.startswith("small: ")]
        if lines and lines[-1][1] == "best":
            return {word: address for _, word, address in lines}
        time.sleep(0.2)
    raise RuntimeError(f"the pages did not come up: {file.read_text()}")


def chromium() -> str | None:
    """Where the browser is; None where there is none."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def browser() -> Iterator[Page]:
    """One page of a headless Chromium."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = started.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(SECONDS * 1000)
        page.add_init_script(NO_ASSISTANT)
        try:
            yield page
        finally:
            started.close()


def visit(page: Page, address: str, text: str) -> None:
    """Open an address, and wait until it shows a text."""
    page.goto("about:blank")  # an address that differs behind # alone would not load anew
    page.goto(address)
    page.get_by_text(text).first.wait_for()


def unfold(page: Page) -> None:
    """Show a description whole, its picture included."""
    page.get_by_text("Show more").click()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 400)")


def picture(page: Page, name: str) -> None:
    page.wait_for_timeout(3000)  # charts move into place
    page.screenshot(path=PICTURES / f"ui-{name}.png")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        sweep(Path(name))
        with served(Path(name)) as pages, browser() as page:
            visit(page, pages["sweep"], "sweep/done")
            unfold(page)
            picture(page, "sweep")
            visit(page, pages["trials"], "final/sparsity")
            picture(page, "trials")
            visit(page, pages["charts"], "final/sparsity vs.")
            picture(page, "charts")
            visit(page, pages["best"], "Run details")
            picture(page, "compare")


if __name__ == "__main__":
    main()
