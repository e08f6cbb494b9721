"""Check the tables of a SQLite store, and create a new store.

MLflow creates the tables in dozens of migrations, each committed on its own, and cannot go on from a half
of them: it can never use a file that a killed process left. So a new store is created in another file,
which is renamed once it is whole.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from filelock import FileLock
from mlflow.version import VERSION
from sqlalchemy import create_engine, inspect, text

from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage.uri import SQLITE, no_store_error, redact_uri, sqlite_path, sqlite_uri, store_exists
from orchestrator.system.console import print_line
from orchestrator.tracking.errors import translating_errors
from orchestrator.tracking.mlflow_patches import (
    create_tables,
    first_table_names,
    known_revisions,
    latest_revision,
    table_names,
)

LOCK, LOCK_SECONDS = ".mlflow.lock", 60.0
QUIET_SECONDS = 2.0  # a process without our lock that is creating a store writes more often than that
BUSY_SECONDS = 20.0  # to wait for SQLite's own lock
SIDE_FILES = ("-journal", "-wal", "-shm")  # beside a SQLite file, and part of its content
UNFINISHED = ".unfinished"
VERSIONS = "alembic_version"
DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
# Rows that MLflow itself puts into a new store are no content.
CONTENT = {"experiments": "experiment_id <> 0", "workspaces": "name <> 'default'"}


@dataclass(frozen=True)
class Contents:
    """The tables of a database. `revision`: of its schema, empty if none is recorded; `is_empty`: no rows."""

    tables: frozenset[str]
    revision: str
    is_empty: bool

    @property
    def is_unfinished(self) -> bool:
        """Whether its creation was interrupted: then it holds nothing that could be lost."""
        if not self.is_empty:
            return False
        if not self.revision:
            return self.tables <= first_table_names() | {VERSIONS}
        is_latest = self.revision == latest_revision()
        return self.revision in known_revisions() and not (is_latest and self.has_all_tables)

    @property
    def is_of_mlflow(self) -> bool:
        return {"experiments", "runs"} <= self.tables

    @property
    def has_all_tables(self) -> bool:
        return table_names() <= self.tables


def has_store(uri: str) -> bool:
    """Whether there is a store to read: a server, or a SQLite file whose creation was not interrupted."""
    return not uri.startswith(SQLITE) or (store_exists(uri) and not read_contents(uri).is_unfinished)


def check_usable(uri: str) -> None:
    """Raise StoreError unless the SQLite store has the installed MLflow's schema. Writes nothing."""
    if not has_store(uri):
        raise no_store_error(uri)
    _check_schema(uri, read_contents(uri))


def is_database(uri: str) -> bool:
    """Whether MLflow opens the store itself, and creates or migrates its tables."""
    return urlsplit(uri).scheme.partition("+")[0] in DATABASES


def check_database(uri: str, *, may_be_empty: bool = False) -> None:
    """Raise StoreError unless a database of any kind has the installed MLflow's schema.

    With `may_be_empty` a database without any table passes: a sweep creates them.
    """
    engine = create_engine(uri)
    try:
        with translating_errors(uri), engine.connect() as connection:
            tables = frozenset(inspect(connection).get_table_names())
            query = text(f"SELECT version_num FROM {VERSIONS}")
            rows = connection.execute(query).fetchall() if VERSIONS in tables else []
    finally:
        engine.dispose()
    if tables:
        _check_schema(uri, Contents(tables, _revision(rows), is_empty=False))
    elif not may_be_empty:
        raise no_store_error(uri)


def _revision(rows: Iterable[Sequence[Any]]) -> str:  # rows of a database
    return " and ".join(str(row[0]) for row in rows)


def _check_schema(uri: str, contents: Contents) -> None:
    if not contents.is_of_mlflow:
        raise StoreError(f"{redact_uri(uri)} is a database of something else; set MLFLOW_TRACKING_URI")
    if contents.revision not in known_revisions():
        raise StoreError(
            f"the store {redact_uri(uri)} is of the schema {contents.revision or 'without a name'}, "
            f"which MLflow {VERSION} does not know; use the MLflow that made it, or set MLFLOW_TRACKING_URI"
        )
    if contents.revision != latest_revision():
        raise StoreError(
            f"the store {redact_uri(uri)} is of the schema {contents.revision}, and MLflow {VERSION} wants "
            f"{latest_revision()}; make a copy, then `mlflow db upgrade '{redact_uri(uri)}'`"
        )
    if not contents.has_all_tables:
        missing = min(table_names() - contents.tables)
        raise StoreError(
            f"the store {redact_uri(uri)} lacks the table {missing}; restore the file from a copy, "
            "or set MLFLOW_TRACKING_URI"
        )


def create_if_missing(uri: str) -> None:
    """Create a SQLite store where there is none, or where an earlier creation was interrupted.

    One process at a time. StoreError for a store that cannot be used or written; OSError, SQLAlchemyError.
    """
    path = Path(os.path.realpath(sqlite_path(uri)))
    if path.exists():
        _check_writable(uri, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / LOCK, timeout=LOCK_SECONDS):
        _remove_new_files(path)
        if not path.exists() or _is_abandoned(uri, path):
            _create(path, uri)
    check_usable(uri)


def read_contents(uri: str) -> Contents:
    """Read which tables the file has, without changing it. StoreError for a file that is no database."""
    path = sqlite_path(uri)
    if not path.is_file():  # a folder; or a FIFO, on which the open would block
        raise StoreError(f"the store {redact_uri(uri)} is no regular file; set MLFLOW_TRACKING_URI")
    try:
        try:
            return _read_contents(path, "ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_READONLY_ROLLBACK":
                raise
            # A process was killed while writing: SQLite has to roll that back first, which is a write.
            return _read_contents(path, "rw")
    except sqlite3.OperationalError as error:
        if "readonly" in str(error) or not os.access(path, os.R_OK):
            raise StoreError(f"the store {redact_uri(uri)} cannot be read: {error}; ask its owner") from error
        raise StoreUnavailableError(f"the store {redact_uri(uri)} cannot be reached: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be used: {error}; set MLFLOW_TRACKING_URI"
        ) from error


def _read_contents(path: Path, mode: str) -> Contents:
    address = f"file:{quote(str(path))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as connection:
        connection.execute("BEGIN")  # one transaction, so that another process's writes do not come between
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        tables = frozenset(name for (name,) in names)
        rows = connection.execute(f"SELECT * FROM {VERSIONS}").fetchall() if VERSIONS in tables else []
        has_content = any(_has_rows(connection, name) for name in tables - {VERSIONS})
        return Contents(tables, _revision(rows), is_empty=not has_content)


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    name = table.replace('"', '""')
    query = f'SELECT 1 FROM "{name}" WHERE {CONTENT.get(table, "1")} LIMIT 1'
    return connection.execute(query).fetchone() is not None


def _check_writable(uri: str, path: Path) -> None:
    for target in (path, path.parent):  # SQLite writes its journal beside the file
        if not os.access(target, os.W_OK):
            raise StoreError(
                f"the store {redact_uri(uri)} cannot be written: {target} is read-only here; "
                "ask its owner, or set MLFLOW_TRACKING_URI to another one"
            )


def _is_abandoned(uri: str, path: Path) -> bool:
    """Whether a creation was interrupted for good: an MLflow that takes no lock may be at work."""
    while read_contents(uri).is_unfinished:
        if not 0 <= time.time() - path.stat().st_mtime < QUIET_SECONDS:
            return True
        time.sleep(QUIET_SECONDS / 10)
    return False


def _create(path: Path, uri: str) -> None:
    new_path = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        create_tables(sqlite_uri(new_path))
        _move_aside(path, uri)
        new_path.rename(path)
        _sync(path.parent)
    except BaseException:
        _remove_new_files(path)
        raise


def _remove_new_files(path: Path) -> None:
    """Remove stores that dead processes were creating for this path; only the holder of the lock may."""
    endings = tuple(f".new{ending}" for ending in ("", *SIDE_FILES))
    for leftover in list(path.parent.iterdir()):
        if leftover.name.startswith(f".{path.name}.") and leftover.name.endswith(endings):
            leftover.unlink(missing_ok=True)


def _move_aside(path: Path, uri: str) -> None:
    """Move an unfinished store away, with its side files: SQLite would read those as the new store's."""
    if path.exists() and path.stat().st_size:
        print_line(
            f"the store {redact_uri(uri)} was never completed, and holds no runs: a new one is created, "
            f"and the old file is {path.name}{UNFINISHED}",
            error=True,
        )
    # The file itself last: until it is gone, the next process does all of this again.
    for ending in (*SIDE_FILES, ""):
        old_path = path.with_name(f"{path.name}{ending}")
        if old_path.exists() and old_path.stat().st_size:
            old_path.replace(path.with_name(f"{path.name}{UNFINISHED}{ending}"))


def _sync(folder: Path) -> None:
    """Write a folder to the disk: only then does a new name in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
