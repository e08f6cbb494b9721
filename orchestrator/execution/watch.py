"""`orchestrate watch`: the report of a sweep, served on loopback and made anew while the sweep runs."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.execution.status import status
from orchestrator.redaction import redact
from orchestrator.report.data import ReportData, ReportOptions
from orchestrator.report.page import render_page
from orchestrator.system.console import print_line
from orchestrator.tracking import open_store
from orchestrator.tracking.authentication import Refusal, refusal

HOST = "127.0.0.1"
IDLE_SECONDS = 30  # after which a connection without a request is closed
HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


@dataclass(frozen=True)
class WatchPage:
    """A page as it was made: its body, and whether it changes any more."""

    status: int
    kind: str
    body: bytes
    is_final: bool


class WatchPages:
    """The page of a sweep, made at most once in `every` seconds whoever asks, and once after its end."""

    def __init__(self, make: Callable[[], WatchPage], *, every: float) -> None:
        self._make = make
        self.every = every
        self._lock = threading.Lock()
        self._page: WatchPage | None = None
        self._made = 0.0

    def get(self) -> WatchPage:
        """Return the page, made now or less than `every` seconds ago."""
        with self._lock:
            is_old = time.monotonic() - self._made >= self.every
            if self._page is None or (is_old and not self._page.is_final):
                self._page = self._make()
                self._made = time.monotonic()
            return self._page


def make_page(sweep: str, *, uri: str) -> WatchPage:
    """Return the report of a sweep as it is now; a line of text where the store cannot tell."""
    try:
        now = status(sweep, uri=uri)
        tracker = open_store(uri, now.space)
        run = tracker.get_run(now.sweep)
        data = ReportData(tracker, run, load_results(tracker, run))
        is_running = now.state == "running"
        body = render_page(data, ReportOptions(), progress=list(now.lines()) if is_running else ())
    except OrchestrateError as error:
        return WatchPage(503, TEXT, f"{redact(str(error))}\n".encode(), False)
    return WatchPage(200, HTML, body.encode(), not is_running)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, pages: WatchPages, token: str) -> None:
        self.pages, self.token = pages, token
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # a reader that has gone away
        return


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS
    server: _Server
    server_version = "orchestrate"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the first address holds the token."""

    def _answer(self) -> None:
        address = urlsplit(self.path)
        encoded = ((name, value.encode("latin-1", "replace")) for name, value in self.headers.items())
        scope = {
            "method": self.command,
            "path": address.path,
            "query_string": address.query.encode("latin-1", "replace"),
            "headers": [(name.lower().encode("latin-1", "replace"), value) for name, value in encoded],
            "server": (HOST, self.server.port),
        }
        refused = refusal(scope, self.server.token)
        if refused is None and address.path != "/":
            refused = Refusal(404, "There is one page here: /\n")
        if refused is not None:
            self._send(refused.status, TEXT, refused.text.encode(), dict(refused.headers))
            return
        page = self.server.pages.get()
        refresh = {} if page.is_final else {"refresh": f"{self.server.pages.every:g}"}
        self._send(page.status, page.kind, page.body, refresh)

    def _send(self, code: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        always = {
            "content-type": kind,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        for name, value in {**always, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def watch(sweep: str, *, uri: str, port: int, every: float) -> None:
    """Serve the report of a sweep on 127.0.0.1 until this process is stopped, and print its address.

    The page asks for a token, which is new at each start; the printed address holds it. StoreError if there
    is no such sweep, or the port is taken.
    """
    find_sweep(open_store(uri, sweep), sweep, latest_of_any=True)  # refused here, and not by the page
    token = secrets.token_urlsafe(24)
    pages = WatchPages(lambda: make_page(sweep, uri=uri), every=every)
    try:
        server = _Server(port, pages, token)
    except OSError as error:
        raise StoreError(
            f"port {port} cannot be listened on: {error.strerror}; leave --port out for a free one"
        ) from error
    with server:
        print_line(f"http://{HOST}:{server.port}/?token={token}")
        sys.stdout.flush()
        print_line(f"made anew every {every:g} s while {sweep} runs; Ctrl-C ends it", error=True)
        _serve(server)


def _serve(server: _Server) -> None:
    """Serve until SIGINT or SIGTERM: SystemExit for the latter."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous: Any = signal.signal(signal.SIGTERM, end)  # a function or a constant of signal
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)
