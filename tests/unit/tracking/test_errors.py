"""What a failure of a store means: away, full, or refused."""

from __future__ import annotations

import inspect
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectionError as Unconnected
from requests import HTTPError, Response
from sqlalchemy.exc import OperationalError

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.tracking import ActiveRun, Tracker, initialise
from orchestrator.tracking.artifacts import Artifacts
from orchestrator.tracking.errors import translating_errors

URI = "http://me:secret@host:5000"


def answer(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} for url", response=response)


def database(text: str) -> MlflowException:
    """As MLflow wraps what a database says."""
    cause = OperationalError("INSERT", {}, sqlite3.OperationalError(text))
    error = MlflowException(str(cause), error_code=503)
    error.error_code = "TEMPORARILY_UNAVAILABLE"
    error.__cause__ = cause
    return error


def rest(code: str) -> RestException:
    return RestException({"error_code": code, "message": "x"})


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (MlflowException("API request to http://x failed with exception: refused"), StoreUnavailableError),
        (database("database is locked"), StoreUnavailableError),
        (database("unable to open database file"), StoreUnavailableError),
        (rest("TEMPORARILY_UNAVAILABLE"), StoreUnavailableError),
        (rest("INTERNAL_ERROR"), StoreUnavailableError),
        (rest("REQUEST_LIMIT_EXCEEDED"), StoreUnavailableError),
        (answer(500), StoreUnavailableError),
        (answer(503), StoreUnavailableError),
        (answer(429), StoreUnavailableError),
        (Unconnected("refused"), StoreUnavailableError),
        (ConnectionResetError(104, "reset"), StoreUnavailableError),
        (OSError(5, "Input/output error"), StoreUnavailableError),
        (database("database or disk is full"), DiskFullError),
        (OSError(28, "No space left on device"), DiskFullError),
        (OSError(122, "Disk quota exceeded"), DiskFullError),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), DiskFullError),
        (database("file is not a database"), StoreError),
        (database("database disk image is malformed"), StoreError),
        (database("no such table: runs"), StoreError),
        (rest("RESOURCE_DOES_NOT_EXIST"), StoreError),
        (rest("INVALID_PARAMETER_VALUE"), StoreError),
        (rest("PERMISSION_DENIED"), StoreError),
        (answer(404), StoreError),
        (answer(413), StoreError),
        (PermissionError(13, "Permission denied"), StoreError),
    ],
)
def test_each_failure_has_its_meaning(error: Exception, meaning: type[StoreError]) -> None:
    with pytest.raises(StoreError) as caught, translating_errors(URI):
        raise error
    assert type(caught.value) is meaning
    assert caught.value.exit_code == 4
    assert caught.value.__cause__ is error
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no file"), ValueError("x"), StoreError("known")])
def test_what_is_no_failure_of_a_store_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translating_errors(URI):
        raise error
    assert caught.value is error


def test_a_message_that_quotes_a_whole_request_is_cut_to_its_heart() -> None:
    long = (
        "API request to http://me:secret@host/api failed with exception HTTPConnectionPool(host='host', "
        "port=5000): Max retries exceeded with url: /api (Caused by NewConnectionError('HTTPConnection("
        "host='host', port=5000): Failed to establish a new connection: [Errno 111] Connection refused\"))"
    )
    with pytest.raises(StoreUnavailableError) as caught, translating_errors(URI):
        raise MlflowException(long)
    assert str(caught.value) == (
        "the store http://***@host:5000 cannot be reached: [Errno 111] Connection refused"
    )


def test_a_real_file_that_another_connection_holds(tmp_path: Path) -> None:
    """As SQLite itself says it, without the 20 s for which MLflow waits."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    initialise(uri)
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        other = sqlite3.connect(tmp_path / "mlflow.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError) as told:
            other.execute("CREATE TABLE x (y)")
        other.close()
        with pytest.raises(StoreUnavailableError, match="database is locked"), translating_errors(uri):
            raise OperationalError("CREATE", {}, told.value)
    finally:
        holder.rollback()
        holder.close()


@pytest.mark.slow
def test_a_server_that_is_not_there_is_noticed_in_seconds() -> None:
    """With MLflow's own settings it takes more than a minute."""
    code = (
        "import time; from orchestrator.tracking import initialise\n"
        "start = time.monotonic()\n"
        "try: initialise('http://127.0.0.1:9')\n"
        "except Exception as error: print(type(error).__name__, time.monotonic() - start)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    name, seconds = told.split()
    assert name == "StoreError"
    assert float(seconds) < 20


@pytest.mark.parametrize("kind", [Artifacts, Tracker, ActiveRun])
def test_no_method_that_calls_the_store_forgets_to_say_what_its_failure_means(kind: type) -> None:
    """`client`, `uri` and `attach` do not call it yet; `try_set_tag` returns whether there was one."""
    own_ways = {"client", "uri", "attach", "try_set_tag"}
    methods = {name: getattr(member, "fget", member) for name, member in vars(kind).items()}
    callers = {
        name: method
        for name, method in methods.items()
        if inspect.isfunction(method) and "self.client" in inspect.getsource(method)
    }
    assert callers
    public = {name for name in callers if not name.startswith("_")} - own_ways
    assert public == {name for name in public if hasattr(callers[name], "__wrapped__")}


def test_a_read_only_store_is_no_store_that_is_away() -> None:
    with pytest.raises(StoreError) as caught, translating_errors(URI):
        raise database("attempt to write a readonly database")
    assert type(caught.value) is StoreError
    assert str(caught.value) == (
        "the store http://***@host:5000 cannot be written: it is read-only here; "
        "ask its owner, or set MLFLOW_TRACKING_URI to another one"
    )
