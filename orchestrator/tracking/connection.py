"""Connect to a store, and check its health."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import DiskFullError, StoreError
from orchestrator.storage.uri import SQLITE, redact_uri, sqlite_path
from orchestrator.system.machine import environment_variables
from orchestrator.tracking.errors import STORE_FAULTS, is_disk_full, short_reason, translating_errors
from orchestrator.tracking.sqlite_store import (
    check_database,
    check_usable,
    create_if_missing,
    has_store,
    is_database,
)


def initialise(uri: str) -> None:
    """Make the store if there is none, and see that it can be written. StoreError, DiskFullError."""
    with _usable(uri):
        if uri.startswith(SQLITE):
            create_if_missing(uri)
        elif is_database(uri):
            check_database(uri, is_to_be_made=True)
            MlflowClient(uri)  # makes the tables
        connect(uri).search_experiments(max_results=1)


def connect(uri: str) -> MlflowClient:
    """A client of a store that is there. Writes nothing; StoreError for one that cannot be used."""
    with _usable(uri):
        if uri.startswith(SQLITE):
            check_usable(uri)
        elif is_database(uri):
            check_database(uri)
        try:
            return MlflowClient(uri)
        except STORE_FAULTS as error:
            if isinstance(error, MlflowException) and not isinstance(error.__cause__, SQLAlchemyError):
                raise  # an address that is none, or of a store that is refused
            with translating_errors(uri):
                raise


@contextmanager
def _usable(uri: str) -> Iterator[None]:
    try:
        yield
    except (
        *STORE_FAULTS,
        sqlite3.Error,
        ImportError,
        ValueError,
    ) as error:  # a driver may be missing, an address be none
        if is_disk_full(error):
            raise DiskFullError(
                f"no room is left for the store {redact_uri(uri)}: {short_reason(error)}"
            ) from error
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be used: {short_reason(error)}; set MLFLOW_TRACKING_URI"
        ) from error


ONE_SHORT_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
SECONDS = 3
COUNT = "SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'"


@dataclass(frozen=True)
class StoreHealth:
    """`problem` is empty where the store can be used; `runs` is None where counting them would take long."""

    runs: int | None = None
    problem: str = ""
    fix: str = ""


def is_present(uri: str) -> bool:
    """Whether there is a store to look at; one that cannot be looked into is one, too."""
    try:
        return has_store(uri)
    except StoreError:
        return True


def check_health(uri: str) -> StoreHealth:
    """Of a server or of a database that exists; never creates or migrates one."""
    try:
        if uri.startswith(("http://", "https://")):
            with environment_variables(ONE_SHORT_TRY):
                MlflowClient(uri).search_experiments(max_results=1)
            return StoreHealth()
        if uri.startswith(SQLITE):
            return _of_file(uri)
        return _of_database(uri)
    except StoreError as error:
        problem, _, do = str(error).rpartition("; ")
        return StoreHealth(problem=problem.removeprefix(f"the store {redact_uri(uri)} "), fix=do)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # a driver may be missing
        reason = next(iter(redact_uri(str(error)).splitlines()), type(error).__name__)
        return StoreHealth(
            problem=reason[:200], fix="start the server, or set MLFLOW_TRACKING_URI to another store"
        )


def _of_file(uri: str) -> StoreHealth:
    check_usable(uri)
    path = quote(str(sqlite_path(uri)))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=SECONDS)) as file:
        return StoreHealth(runs=int(file.execute(COUNT).fetchone()[0]))


def _of_database(uri: str) -> StoreHealth:
    engine = create_engine(uri, connect_args={"connect_timeout": SECONDS})
    try:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            runs = connection.execute(text(COUNT)).scalar()
    finally:
        engine.dispose()
    if found == (wanted := _get_latest_schema_revision()):
        return StoreHealth(runs=int(runs or 0))
    problem = f"its schema is {found}, and this MLflow wants {wanted}"
    return StoreHealth(int(runs or 0), problem, f"copy it, then `mlflow db upgrade {redact_uri(uri)}`")
