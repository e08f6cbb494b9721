"""The watch page: behind a token, made at most once in a while, and fresh until the sweep ends."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_sweep import NAME, begin, record_sweep

from orchestrator.errors import StoreError
from orchestrator.execution.watch import HTML, WatchPage, WatchPages, _Server, make_page, watch
from orchestrator.storage.uri import default_uri

TOKEN = "a-token"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **keywords: object) -> None:  # type: ignore[override]
        return None


OPENER = urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler({}))


def pages(*, is_final: bool = False) -> tuple[WatchPages, list[int]]:
    made: list[int] = []

    def make() -> WatchPage:
        made.append(1)
        return WatchPage(200, HTML, b"<p>page</p>", is_final)

    return WatchPages(make, every=5.0), made


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(0, pages()[0], TOKEN)
    thread = threading.Thread(target=lambda: server.serve_forever(0.05))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: _Server, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with OPENER.open(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_address_logs_in_and_nobody_else_sees_the_page(server: _Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/", "/?token=wrong", "/other?token=a-token"):
        code, _, body = get(server, path)
        assert code == 401
        assert b"page" not in body.replace(b"pages", b"")
    code, headers, _ = get(server, f"/?token={TOKEN}")
    assert (code, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"].partition(";")[0]
    code, headers, body = get(server, "/", Cookie=cookie)
    assert (code, body) == (200, b"<p>page</p>")
    assert headers["refresh"] == "5"
    assert headers["cache-control"] == "no-store"
    assert get(server, "/etc/passwd", Cookie=cookie)[0] == 404
    assert get(server, "/", Cookie=cookie, Origin="http://evil.example")[0] == 403


def test_the_page_is_made_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("orchestrator.execution.watch.time.monotonic", lambda: clock[0])
    live, made = pages()
    for _ in range(3):
        live.get()
    assert len(made) == 1
    clock[0] += 5.0
    live.get()
    assert len(made) == 2
    final, made = pages(is_final=True)
    for _ in range(3):
        clock[0] += 60.0
        final.get()
    assert len(made) == 1


def test_a_finished_sweep_has_its_report(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    record_sweep(uri, tmp_path / "state")
    page = make_page(NAME, uri=uri)
    assert (page.status, page.is_final) == (200, True)
    assert b"What was found" in page.body
    assert b'class="progress"' not in page.body


def test_a_sweep_that_runs_says_how_far_it_is(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    begin(uri)
    page = make_page(NAME, uri=uri)
    assert (page.status, page.is_final) == (200, False)
    assert b'class="progress"' in page.body
    assert b"trials   0/2" in page.body


def test_a_store_that_cannot_tell_is_a_line(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    record_sweep(uri, tmp_path / "state")
    page = make_page("no-such-sweep", uri=uri)
    assert (page.status, page.is_final) == (503, False)
    assert page.body.startswith(b"unknown sweep 'no-such-sweep'")
    with pytest.raises(StoreError, match="unknown sweep 'no-such-sweep'"):
        watch("no-such-sweep", uri=uri, port=0, every=1.0)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, server: _Server) -> None:
    uri = default_uri(tmp_path)
    record_sweep(uri, tmp_path / "state")
    with pytest.raises(StoreError, match=rf"port {server.port} cannot be listened on: .* leave --port out"):
        watch(NAME, uri=uri, port=server.port, every=1.0)
