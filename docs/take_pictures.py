"""Take the pictures of the MLflow pages, docs/pictures/ui-*.png, of a small sweep in a temporary store.

    python docs/take_pictures.py

It needs Chromium on the PATH and the package playwright. tests/integration/test_mlflow_ui.py tests the same
pages.
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
# Without this the first visit opens a panel that asks for a language model.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
SECONDS = 300  # timeout of a page and of the server, on a busy machine


def orchestrate(*words: str, folder: Path) -> str:
    """Run a command in a folder, with its store below it; return its stdout."""
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return process.stdout


def sweep(folder: Path) -> None:
    """Run a small sweep with its store below the folder."""
    (folder / "small.yaml").write_text(SPACE)
    orchestrate("sweep", "--space", "small.yaml", "--device", "cpu", folder=folder)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serve `orchestrate ui` on a free port; yield the addresses that it prints for `small`, by label."""
    with socket.create_server(("127.0.0.1", 0)) as free_socket:
        port = free_socket.getsockname()[1]
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
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line.split() for line in file.read_text().splitlines() if line.startswith("small: ")]
        if lines and lines[-1][1] == "best":
            return {label: address for _, label, address in lines}
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {file.read_text()}")


def chromium() -> str | None:
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def browser() -> Iterator[Page]:
    """Yield a page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(SECONDS * 1000)
        page.add_init_script(NO_ASSISTANT)
        try:
            yield page
        finally:
            browser.close()


def visit(page: Page, address: str, text: str) -> None:
    """Open an address and wait until it shows a text."""
    page.goto("about:blank")  # otherwise an address that differs only after # is not reloaded
    page.goto(address)
    page.get_by_text(text).first.wait_for()


def unfold(page: Page) -> None:
    """Unfold a description and wait for its picture."""
    page.get_by_text("Show more").click()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 400)")


def picture(page: Page, name: str) -> None:
    page.wait_for_timeout(3000)  # charts are animated
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
