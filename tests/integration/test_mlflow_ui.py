"""The MLflow pages of a sweep, as a person sees them: in a headless Chromium, by visible text."""

from __future__ import annotations

import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import pytest
from whole_sweep import record_sweep

from orchestrator.errors import StoreError
from orchestrator.model_io.register import register
from orchestrator.report.mlflow_ui import serve
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri

pytest.importorskip("playwright", reason="the package playwright is not installed")
DOCS = Path(__file__).parents[2] / "docs"
PICTURES: dict[str, Any] = runpy.run_path(str(DOCS / "take_pictures.py"))  # functions of several types
visit = PICTURES["visit"]
needs_browser = pytest.mark.skipif(PICTURES["chromium"]() is None, reason="no Chromium on the PATH")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WHOLE = 2 * 3 * 2
INSIDE = ("blob:", "data:", "about:")  # the browser's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small sweep was run, and one of its networks registered."""
    place = tmp_path_factory.mktemp("pages")
    (place / "small.yaml").write_text(PICTURES["SPACE"])
    uri = default_uri(place)
    trial = record_sweep(uri, place / "state", load_space(str(place / "small.yaml"), ("train.epochs=2",)))
    register(trial, name="winner", alias="champion", uri=uri)
    return place


@pytest.fixture(scope="module")
def pages(folder: Path) -> Iterator[dict[str, str]]:
    with PICTURES["served"](folder) as found:
        yield found


@pytest.fixture(scope="module")
def requested() -> list[str]:
    """The addresses that `page` has asked for, and those that it opened."""
    return []


@pytest.fixture(scope="module")
def page(pages: dict[str, str], requested: list[str]) -> Iterator[Any]:  # playwright's Page
    with PICTURES["browser"]() as found:
        found.context.on("request", lambda request: requested.append(request.url))
        yield found


def text_of(page: Any) -> str:
    return str(page.inner_text("body"))


def split_token(address: str) -> tuple[str, str]:
    """An address in the pages without its token, and the token."""
    base, _, rest = address.partition("?token=")
    token, _, fragment = rest.partition("#")
    return f"{base}#{fragment}", token


# ---- the server, before there is a browser, whose charts move and take half a core while they are shown


def test_of_a_server_the_addresses_in_its_own_pages_are_told(
    pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, token = pages["sweep"].partition("/?")[0], split_token(pages["sweep"])[1]
    secret = base.replace("//", f"//user:{token}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    done = in_process.orchestrate("ui", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = {line.split()[1]: line.split()[2] for line in done.stdout.splitlines()}
    assert told == {word: split_token(address)[0] for word, address in pages.items()}
    assert token not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_one_of_loopback_and_ends_with_the_command(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "mlruns").symlink_to(folder / "mlruns")
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    base, token = split_token(first)
    assert base == f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning\n"
    assert re.fullmatch(r"[\w-]{32}", token)
    with pytest.raises(StoreError, match=f"port {port} cannot be listened on.*--port {port + 1}"):
        serve(default_uri(tmp_path), port=port)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "starting the pages; Ctrl-C ends them\n"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server outlives the command")


# ---- the pages


@needs_browser
def test_a_browser_enters_with_the_token_and_needs_it_once(pages: dict[str, str]) -> None:
    """Links without it, as reports and notes have them, open afterwards, as others do not."""
    plain, token = split_token(pages["sweep"])
    with PICTURES["browser"]() as page:
        visit(page, plain, "These pages ask for a token")
        visit(page, pages["sweep"], "sweep/done")
        assert token not in page.url
        visit(page, plain, "sweep/done")
        (cookie,) = page.context.cookies()
        assert (cookie["value"], cookie["httpOnly"], cookie["sameSite"]) == (token, True, "Lax")


@needs_browser
def test_the_page_of_a_sweep_says_what_it_is(page: Any, pages: dict[str, str]) -> None:
    visit(page, pages["sweep"], "sweep/done")
    shown = text_of(page)
    assert "Two techniques on a small network, three amounts, two seeds." in shown
    for name, value in {"planned": WHOLE, "done": WHOLE, "failed": 0}.items():
        assert re.search(rf"sweep/{name}\s+{value}\s", shown)
    assert re.search(r"technique\s+unstructured, structured\s", shown)
    assert re.search(r"amount\s+0.25, 0.5, 0.9\s", shown)
    assert re.search(r"Datasets\s+digits \(", shown)
    PICTURES["unfold"](page)
    assert "test accuracy in %" in text_of(page)


@needs_browser
def test_its_links_open_the_report_and_the_trials(page: Any, pages: dict[str, str]) -> None:
    visit(page, pages["sweep"], "sweep/done")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="report", exact=True).click()
    report = opened.value
    report.wait_for_function("document.querySelector('iframe') !== null")
    report.frame_locator("iframe").get_by_text("Two techniques on a small network").first.wait_for()
    report.close()
    for word, expected in {"trials": "You're viewing a shared view", "best": "Run details"}.items():
        with page.expect_popup() as opened:
            page.get_by_role("link", name=word, exact=True).click()
        opened.value.get_by_text(expected).first.wait_for()
        opened.value.close()


@needs_browser
def test_trials_open_beneath_their_sweep(page: Any, pages: dict[str, str]) -> None:
    runs = re.sub(r"/runs/\w+", "/runs", pages["sweep"])
    visit(page, runs, "matching runs")
    row = page.locator(".ag-row")
    row.first.wait_for()
    assert "structured 90% cnn" not in text_of(page)
    assert "digits (" in text_of(page)  # the data set, in its column
    row.locator("button").first.click()
    page.get_by_text("structured 90% cnn seed 0").first.wait_for()


@needs_browser
def test_the_view_of_the_trials_has_columns_and_charts(page: Any, pages: dict[str, str]) -> None:
    visit(page, pages["trials"], "final/sparsity")
    page.get_by_text("matching runs").first.wait_for()
    heads = page.locator(".ag-header").first.inner_text()
    for name in ("technique", "amount", "seed", "final/accuracy", "final/sparsity", "final/macs_effective"):
        assert name in heads
    assert re.search(rf"\b{WHOLE}\s+matching runs", text_of(page))
    visit(page, pages["charts"], "final/sparsity vs.")
    assert re.search(r"Trials\s+\(2\)", text_of(page))


@needs_browser
def test_the_best_are_compared(page: Any, pages: dict[str, str]) -> None:
    visit(page, pages["best"], "Run details")
    shown = text_of(page)
    assert re.search(r"Comparing [1-8] Runs? from 1 Experiment", shown)
    assert re.search(r"unstructured \d", shown)
    assert "final/accuracy" in shown


@needs_browser
def test_a_registered_network_is_among_the_models(page: Any, pages: dict[str, str]) -> None:
    visit(page, re.sub(r"/runs/\w+", "/models", pages["sweep"]), "winner")
    assert re.search(r"winner\s+Ready", text_of(page))
    base = pages["sweep"].partition("/?")[0]
    visit(page, f"{base}/#/models/winner", "champion")
    assert "Version 1" in text_of(page)


@needs_browser
def test_the_browser_is_sent_nowhere_else(page: Any, pages: dict[str, str], requested: list[str]) -> None:
    """By no page that a test above has opened: sweep, report, trials, charts, models."""
    if not requested:  # this test is run alone
        visit(page, pages["charts"], "final/sparsity vs.")
    own = [url for url in requested if "127.0.0.1" in url]
    assert any("/runs/search" in url for url in own)
    assert [url for url in requested if url not in own and not url.startswith(INSIDE)] == []
