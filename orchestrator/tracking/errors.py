"""Errors of MLflow, databases and disks as errors of ours; a circuit breaker for stores that are down."""

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

COOLDOWN_SECONDS = 15.0  # a store that was away is not asked again for so long


class CircuitBreaker:
    """Calls of one store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._down_until = 0.0
        self._why = ""

    @contextmanager
    def translating_errors(self) -> Iterator[None]:
        """As `faults.reaching`; AwayError at once where the store was away a moment ago."""
        if monotonic() < self._down_until:
            raise StoreUnavailableError(self._why)
        try:
            with translating_errors(self.uri):
                yield
        except StoreUnavailableError as error:
            self._down_until, self._why = monotonic() + COOLDOWN_SECONDS, str(error)
            raise

    def reset(self) -> None:
        """Whoever asks next asks the store."""
        self._down_until = 0.0


@lru_cache(maxsize=64)
def breaker_for(uri: str) -> CircuitBreaker:
    """The one line of this process to a store."""
    return CircuitBreaker(uri)


os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # a server waits 20 s for its own SQLite file

# Its own tracebacks of a locked file would stand among the lines of a sweep.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it quotes addresses, with what is secret in them
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="HasUri")
STORE_FAULTS = (MlflowException, SQLAlchemyError, OSError)
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
FULL_TEXTS = ("database or disk is full", *(os.strerror(number) for number in FULL))
REASON = re.compile(r"\[Errno \d+\] [\w ]+|timed out|too many \d+ error responses|\(sqlite3\.\w+\) [^\n]+")
TRANSIENT = (408, 429)  # of the codes below 500, those that ask for another try


READ_ONLY = "attempt to write a readonly database"
REFUSED_TEXTS = (READ_ONLY, "is not a database", "is malformed", "database schema", "no such table")


class HasUri(Protocol):
    """What calls a store."""

    @property
    def uri(self) -> str: ...


def translates_errors(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that calls its store: what it raises is as within `reaching`."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with translating_errors(self.uri):
            return method(self, *args, **kwargs)

    return call


@contextmanager
def translating_errors(uri: str) -> Iterator[None]:
    """Calls of a store: AwayError where it cannot be reached now, DiskFullError where its disk is full.

    StoreError for what the store refuses for good. A file that is not there passes through.
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
    """The heart of a message that may quote a whole request, in one line without secrets."""
    text = redact_uri(str(error))
    if found := REASON.search(text):
        return found.group()
    lines = text.splitlines()
    return lines[0][:200] if lines else type(error).__name__


def is_disk_full(error: Exception) -> bool:
    """Whether a disk or a quota is what it is about."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # A copied folder's errors are texts, a database's are MLflow's; a server's own disk is not ours.
    local = isinstance(error, (shutil.Error, sqlite3.Error, DBAPIError)) or isinstance(
        error.__cause__, DBAPIError
    )
    return local and any(text in str(error) for text in FULL_TEXTS)


def _is_unavailable(error: Exception) -> bool:
    if any(text in str(error) for text in REFUSED_TEXTS):
        return False  # of a database: as good as it will get
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
    elif isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return not isinstance(error, PermissionError)  # a connection, a database's driver, a file system
    return status >= 500 or status in TRANSIENT
