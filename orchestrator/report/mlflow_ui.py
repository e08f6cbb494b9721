"""The MLflow pages of a store, served on loopback, and the addresses within them that are worth a look."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import psutil

from orchestrator.errors import StoreError
from orchestrator.report import mlflow_page
from orchestrator.report.mlflow_page import TRAINING, VIEW_TAG
from orchestrator.storage.uri import SQLITE, redact_uri, store_folder
from orchestrator.system.console import print_line
from orchestrator.tracking import Tracker, open_store
from orchestrator.tracking.authentication import APP_NAME, TOKEN_VARIABLE

HOST = "127.0.0.1"
QUIET = "--no-access-log --log-level warning"
START_SECONDS, END_SECONDS = 180.0, 10.0
# Seven processes for jobs of other sides of MLflow, and word to its makers: neither is wanted here.
SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


def serve(uri: str, *, port: int) -> None:
    """The pages on 127.0.0.1 until this process is ended. StoreError where they cannot be served.

    They ask for a token, made anew at each start; the addresses that are printed hold it. A server has pages
    of its own: the addresses in those are printed.
    """
    if uri.startswith(("http://", "https://")):
        for line in addresses(uri, _public(uri)):
            print_line(line)
        return
    _check_installed()
    _check_port(port)
    open_store(uri)
    token = secrets.token_urlsafe(24)
    base = f"http://{HOST}:{port}"
    print_line("starting the pages; Ctrl-C ends them", error=True)
    with tempfile.TemporaryFile() as log, _ended_by_signals(), _server(uri, port, token, log) as process:
        _await(process, port, log)
        for line in (f"{base}/#/experiments?{TRAINING}", *addresses(uri, base)):
            print_line(line.replace("/#/", f"/?token={token}#/", 1))
        sys.stdout.flush()
        process.wait()
        raise StoreError(f"the MLflow server ended: {_last_line(log)}")


def _public(uri: str) -> str:
    """A server's address without user and password."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def addresses(uri: str, base: str) -> Iterator[str]:
    """A few lines for each space that was swept: its latest sweep, its trials, the best of them compared."""
    for name, experiment_id in open_store(uri).experiments().items():
        tracker = Tracker(uri, name)
        latest = next(iter(tracker.search("tags.kind = 'sweep'")), None)
        if latest is not None:
            sweep = f"{base}/#/experiments/{experiment_id}/runs/{latest.run_id}?{TRAINING}"
            places = mlflow_page.addresses(base, tracker, shared=VIEW_TAG in tracker.experiment_tags())
            for word, place in {"sweep": sweep, **places}.items():
                yield f"{name}: {word:<6}  {place}"


def _check_port(port: int) -> None:
    """StoreError, at once, where another program listens there."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise StoreError(
            f"port {port} cannot be listened on: {error.strerror}; try --port {port + 1}"
        ) from error


def _check_installed() -> None:
    """StoreError where MLflow does not know the app that asks for a token."""
    if not entry_points(group="mlflow.app", name=APP_NAME):
        raise StoreError(
            "this installation is older than its source, and MLflow does not know the app that asks for a "
            "token; install it again, as it was installed"
        )


@contextmanager
def _server(uri: str, port: int, token: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server and what it starts, in a group of processes that goes as one."""
    # Neither the store's address nor the token is among the words, which others on this machine can read.
    settings, folder = {**SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri, TOKEN_VARIABLE: token}, store_folder(uri)
    if folder is not None:
        settings["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = (folder / "artifacts").as_uri()
    if modules := os.environ.get("PYTHONPATH"):
        settings["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, modules.split(os.pathsep)))
    words = ["--host", HOST, "--port", str(port), "--workers", "1", "--app-name", APP_NAME]
    words += ["--no-serve-artifacts", "--uvicorn-opts", QUIET]
    # Python looks for modules in the working folder first: it is an empty one.
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=empty,
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)
            _remove_stray_folder(uri)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _remove_stray_folder(uri: str) -> None:
    """Of a SQLite path with escapes, MLflow makes the folder as it is written, too, and leaves it empty."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    if folder != store_folder(uri):
        with suppress(OSError):
            os.removedirs(folder)


def _await(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    """Until the server listens: it, and not a program of another user that was quicker. StoreError if not."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if _listens(process.pid, port):
            return
        time.sleep(0.2)
    raise StoreError(f"the MLflow server did not start: {_last_line(log)}")


def _listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it started, listens on the port."""
    try:
        parent = psutil.Process(pid)
        sockets = [
            held
            for each in (parent, *parent.children(recursive=True))
            for held in each.net_connections("tcp")
        ]
    except psutil.Error:  # it ended as we looked
        return False
    return any(held.status == psutil.CONN_LISTEN and held.laddr.port == port for held in sockets)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return redact_uri(lines[-1]) if lines else "it said nothing"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM leaves as an exception does, so that the server is ended as well; Ctrl-C is how one stops."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: Any = signal.signal(signal.SIGTERM, leave)  # a function, or one of signal's own
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
