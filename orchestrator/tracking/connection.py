"""Connect to a store, and check its health."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import DiskFullError, StoreError
from orchestrator.storage.uri import SQLITE, redact_uri, sqlite_path
from orchestrator.system.machine import environment_variables
from orchestrator.tracking.errors import STORE_FAULTS, is_disk_full, short_reason, translating_errors
from orchestrator.tracking.mlflow_patches import latest_revision
from orchestrator.tracking.sqlite_store import (
    check_database,
    check_usable,
    create_if_missing,
    has_store,
    is_database,
)

# One try of three seconds: `orchestrate doctor` shall answer soon, even for a server that does not.
ONE_SHORT_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
CONNECT_SECONDS = 3
COUNT = "SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'"


def initialise(uri: str) -> None:
    """Create the store if there is none, and check that it can be written. StoreError, DiskFullError."""
    with _usable(uri):
        if uri.startswith(SQLITE):
            create_if_missing(uri)
        elif is_database(uri):
            check_database(uri, may_be_empty=True)
            MlflowClient(uri)  # creates the tables
        connect(uri).search_experiments(max_results=1)


def connect(uri: str) -> MlflowClient:
    """Return a client of an existing store. Writes nothing; StoreError for a store that cannot be used."""
    with _usable(uri):
        if uri.startswith(SQLITE):
            check_usable(uri)
        elif is_database(uri):
            check_database(uri)
        try:
            return MlflowClient(uri)
        except STORE_FAULTS as error:
            if isinstance(error, MlflowException) and not isinstance(error.__cause__, SQLAlchemyError):
                raise  # the URI is invalid, or of a kind of store that MLflow refuses
            with translating_errors(uri):
                raise


@contextmanager
def _usable(uri: str) -> Iterator[None]:
    """Turn what MLflow and drivers raise within the block into StoreError or DiskFullError."""
    try:
        yield
    except (*STORE_FAULTS, sqlite3.Error, ImportError, ValueError) as error:
        # ImportError: a database's driver is not installed; ValueError: no valid URI.
        if is_disk_full(error):
            raise DiskFullError(
                f"no room is left for the store {redact_uri(uri)}: {short_reason(error)}"
            ) from error
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be used: {short_reason(error)}; set MLFLOW_TRACKING_URI"
        ) from error


@dataclass(frozen=True)
class StoreHealth:
    """`problem` is empty for a store that can be used; `runs` is None where counting them takes long."""

    runs: int | None = None
    problem: str = ""
    fix: str = ""


def is_present(uri: str) -> bool:
    """Whether there is a store to check; also True for a store that cannot be read."""
    try:
        return has_store(uri)
    except StoreError:
        return True


def check_health(uri: str) -> StoreHealth:
    """Check an existing store; never creates or migrates it."""
    try:
        if uri.startswith(("http://", "https://")):
            with environment_variables(ONE_SHORT_TRY):
                MlflowClient(uri).search_experiments(max_results=1)
            return StoreHealth()
        return _check_file(uri) if uri.startswith(SQLITE) else _check_server(uri)
    except StoreError as error:
        problem, _, fix = str(error).rpartition("; ")
        return StoreHealth(problem=problem.removeprefix(f"the store {redact_uri(uri)} "), fix=fix)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = next(iter(redact_uri(str(error)).splitlines()), type(error).__name__)
        fix = "start the server, or set MLFLOW_TRACKING_URI to another store"
        return StoreHealth(problem=reason[:200], fix=fix)


def _check_file(uri: str) -> StoreHealth:
    check_usable(uri)
    address = f"file:{quote(str(sqlite_path(uri)))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=CONNECT_SECONDS)) as connection:
        return StoreHealth(runs=int(connection.execute(COUNT).fetchone()[0]))


def _check_server(uri: str) -> StoreHealth:
    """Check a database server, such as PostgreSQL."""
    engine = create_engine(uri, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        with engine.connect() as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            runs = int(connection.execute(text(COUNT)).scalar() or 0)
    finally:
        engine.dispose()
    if revision == latest_revision():
        return StoreHealth(runs)
    problem = f"its schema is {revision}, and this MLflow wants {latest_revision()}"
    return StoreHealth(runs, problem, f"copy it, then `mlflow db upgrade {redact_uri(uri)}`")
