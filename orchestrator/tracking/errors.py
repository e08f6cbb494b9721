"""Translate errors of MLflow, databases and disks; a circuit breaker for stores that are down."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from time import monotonic
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from mlflow.exceptions import MlflowException
from requests import HTTPError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.storage.uri import redact_uri
from orchestrator.system.files import FULL

COOLDOWN_SECONDS = 15.0  # how long a store that could not be reached is not called again


class CircuitBreaker:
    """Calls of one store, which fail at once for a while after the store could not be reached."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._open_until = 0.0
        self._reason = ""

    @contextmanager
    def translating_errors(self) -> Iterator[None]:
        """Translate as the function of this name; StoreUnavailableError at once during the cooldown."""
        if monotonic() < self._open_until:
            raise StoreUnavailableError(self._reason)
        try:
            with translating_errors(self.uri):
                yield
        except StoreUnavailableError as error:
            self._open_until, self._reason = monotonic() + COOLDOWN_SECONDS, str(error)
            raise

    def reset(self) -> None:
        """End the cooldown: the next call goes to the store."""
        self._open_until = 0.0


@lru_cache(maxsize=64)
def breaker_for(uri: str) -> CircuitBreaker:
    """Return this process's one circuit breaker for a store."""
    return CircuitBreaker(uri)


os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # a server waits 20 s for its own SQLite file

# It logs a traceback for each try at a locked file, amid the lines of a sweep.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs URIs with their passwords
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="HasUri")
STORE_FAULTS = (MlflowException, SQLAlchemyError, OSError)
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
FULL_TEXTS = ("database or disk is full", *(os.strerror(number) for number in FULL))
REASON = re.compile(r"\[Errno \d+\] [\w ]+|timed out|too many \d+ error responses|\(sqlite3\.\w+\) [^\n]+")
TRANSIENT = (408, 429)  # the codes below 500 that ask for another try
READ_ONLY = "attempt to write a readonly database"
REFUSED_TEXTS = (READ_ONLY, "is not a database", "is malformed", "database schema", "no such table")


class HasUri(Protocol):
    """An object whose methods call the store at `uri`."""

    @property
    def uri(self) -> str: ...


def translates_errors(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method that calls its store within `translating_errors`."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with translating_errors(self.uri):
            return method(self, *args, **kwargs)

    return call


@contextmanager
def translating_errors(uri: str) -> Iterator[None]:
    """Within the block, turn errors of MLflow, databases and disks into errors of this package.

    StoreUnavailableError: the store cannot be reached now; DiskFullError: its disk is full; StoreError: it
    refuses for good. A missing file passes through.
    """
    try:
        yield
    except NOT_THERE:
        raise
    except STORE_FAULTS as error:
        raise _translate(error, uri) from error


def _translate(error: Exception, uri: str) -> StoreError:
    reason = short_reason(error)
    if is_disk_full(error):
        return DiskFullError(f"no room is left for the store {redact_uri(uri)}: {reason}")
    if _is_unavailable(error):
        return StoreUnavailableError(f"the store {redact_uri(uri)} cannot be reached: {reason}")
    if READ_ONLY in str(error):
        return StoreError(
            f"the store {redact_uri(uri)} cannot be written: it is read-only here; "
            "ask its owner, or set MLFLOW_TRACKING_URI to another one"
        )
    return StoreError(f"the store {redact_uri(uri)} refuses: {reason}")


def short_reason(error: Exception) -> str:
    """Return an error's reason in one line without secrets: its message may quote a whole request."""
    text = redact_uri(str(error))
    if match := REASON.search(text):
        return match.group()
    lines = text.splitlines()
    return lines[0][:200] if lines else type(error).__name__


def is_disk_full(error: Exception) -> bool:
    """Whether an error is about a full disk or quota."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # shutil.Error holds the errors of a copied folder as texts, and MLflow wraps a database's. The same text
    # from a server is about the server's disk.
    is_local = isinstance(error, (shutil.Error, sqlite3.Error, DBAPIError))
    is_local = is_local or isinstance(error.__cause__, DBAPIError)
    return is_local and any(text in str(error) for text in FULL_TEXTS)


def _is_unavailable(error: Exception) -> bool:
    if any(text in str(error) for text in REFUSED_TEXTS):
        return False  # of a database: waiting does not help
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
    elif isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return not isinstance(error, PermissionError)  # an OSError or a database driver's error
    return status >= 500 or status in TRANSIENT
