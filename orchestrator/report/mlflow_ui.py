"""`orchestrate ui`: the MLflow UI of a store, served on loopback, and the addresses of its sweeps."""

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
from orchestrator.report.mlflow_page import TRAINING, VIEW_TAG, trial_addresses
from orchestrator.storage.uri import SQLITE, redact_uri, store_folder
from orchestrator.system.console import print_line
from orchestrator.tracking import Tracker, open_store
from orchestrator.tracking.authentication import APP_NAME, TOKEN_VARIABLE

HOST = "127.0.0.1"
UVICORN_OPTIONS = "--no-access-log --log-level warning"
START_SECONDS, TERMINATE_SECONDS = 180.0, 10.0
SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for features that no sweep uses
    "PYTHONWARNINGS": "ignore",
}


def serve(uri: str, *, port: int) -> None:
    """Serve the UI of a store on 127.0.0.1 until this process is stopped, and print its addresses.

    The UI asks for a token, which is new at each start; the printed addresses hold it. Where `uri` is an
    MLflow server, nothing is served, and the addresses in that server's own UI are printed.

    Raises StoreError where the UI cannot be served.
    """
    if uri.startswith(("http://", "https://")):
        for line in address_lines(uri, _without_password(uri)):
            print_line(line)
        return
    _check_app_installed()
    _check_port_free(port)
    open_store(uri)
    token = secrets.token_urlsafe(24)
    base = f"http://{HOST}:{port}"
    print_line("starting the pages; Ctrl-C ends them", error=True)
    with (
        tempfile.TemporaryFile() as log,
        _exit_on_signals(),
        _mlflow_server(uri, port, token, log) as process,
    ):
        _wait_until_listening(process, port, log)
        for line in (f"{base}/#/experiments?{TRAINING}", *address_lines(uri, base)):
            print_line(line.replace("/#/", f"/?token={token}#/", 1))
        sys.stdout.flush()
        process.wait()
        raise StoreError(f"the MLflow server ended: {_last_line(log)}")


def _without_password(uri: str) -> str:
    """Return a server's address without user and password."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def address_lines(uri: str, base: str) -> Iterator[str]:
    """Yield lines for each space that was swept: its latest sweep, its trials, the best of them compared."""
    for name, experiment_id in open_store(uri).experiments().items():
        tracker = Tracker(uri, name)
        latest = next(iter(tracker.search("tags.kind = 'sweep'")), None)
        if latest is not None:
            sweep = f"{base}/#/experiments/{experiment_id}/runs/{latest.run_id}?{TRAINING}"
            trials = trial_addresses(base, tracker, has_view=VIEW_TAG in tracker.experiment_tags())
            for page, address in {"sweep": sweep, **trials}.items():
                yield f"{name}: {page:<6}  {address}"


def _check_port_free(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise StoreError(
            f"port {port} cannot be listened on: {error.strerror}; try --port {port + 1}"
        ) from error


def _check_app_installed() -> None:
    """Raise StoreError where MLflow does not know the app that asks for a token."""
    if not entry_points(group="mlflow.app", name=APP_NAME):
        raise StoreError(
            "this installation is older than its source, and MLflow does not know the app that asks for a "
            "token; install it again, as it was installed"
        )


@contextmanager
def _mlflow_server(uri: str, port: int, token: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server in a process group of its own, so that its children end with it."""
    # The store's address and the token go by environment: other users can read a command line.
    settings, folder = {**SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri, TOKEN_VARIABLE: token}, store_folder(uri)
    if folder is not None:
        settings["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = (folder / "artifacts").as_uri()
    if python_path := os.environ.get("PYTHONPATH"):
        settings["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, python_path.split(os.pathsep)))
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--app-name", APP_NAME]
    options += ["--no-serve-artifacts", "--uvicorn-opts", UVICORN_OPTIONS]
    # Python imports from the working folder first, so the server gets an empty one.
    with tempfile.TemporaryDirectory() as empty_folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=empty_folder,
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _terminate(process)
            _remove_stray_folder(uri)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(TERMINATE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _remove_stray_folder(uri: str) -> None:
    """Remove the empty folder that MLflow also makes for a SQLite path with escapes, as it is written."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    if folder != store_folder(uri):
        with suppress(OSError):
            os.removedirs(folder)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    """Wait until the server listens; StoreError if it ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if is_listening(process.pid, port):
            return
        time.sleep(0.2)
    raise StoreError(f"the MLflow server did not start: {_last_line(log)}")


def is_listening(pid: int, port: int) -> bool:
    """Return whether a process, or one that it started, listens on a port.

    That something listens there is not enough: another user's program may have taken the port first, and
    would receive the token.
    """
    try:
        parent = psutil.Process(pid)
        connections = [
            connection
            for process in (parent, *parent.children(recursive=True))
            for connection in process.net_connections("tcp")
        ]
    except psutil.Error:  # the process ended meanwhile
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return redact_uri(lines[-1]) if lines else "it said nothing"


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that the server is ended too; Ctrl-C just leaves the block."""

    def raise_exit(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous: Any = signal.signal(signal.SIGTERM, raise_exit)  # a function or a constant of signal
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)
