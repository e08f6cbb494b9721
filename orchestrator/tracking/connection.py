"""The one place where a client of a store is made: never for a SQLite file that is absent, or not whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import DiskFullError, StoreError
from orchestrator.store.address import SQLITE, shown
from orchestrator.tracking.faults import STORE_FAULTS, is_full, reaching, reason_of
from orchestrator.tracking.sqlite_store import check_database, check_usable, is_database, make


def initialise(uri: str) -> None:
    """Make the store if there is none, and see that it can be written. StoreError, DiskFullError."""
    with _usable(uri):
        if uri.startswith(SQLITE):
            make(uri)
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
            with reaching(uri):
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
        if is_full(error):
            raise DiskFullError(f"no room is left for the store {shown(uri)}: {reason_of(error)}") from error
        raise StoreError(
            f"the store {shown(uri)} cannot be used: {reason_of(error)}; set MLFLOW_TRACKING_URI"
        ) from error
