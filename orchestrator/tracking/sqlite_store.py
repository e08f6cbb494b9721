"""The file of a SQLite store: what it holds, whether it can be used, and how a new one is made.

MLflow makes the tables in dozens of migrations, each committed on its own, and can go on from none of
them: a file that a killed process left is of no use to it for ever. So they are made in a file aside, which
is renamed when it is whole.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow.store.db import utils
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.dbmodels.initial_models import Base as Initial
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.version import VERSION
from sqlalchemy import create_engine, inspect, text

from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage.uri import SQLITE, no_store_error, redact_uri, sqlite_path, sqlite_uri, store_exists
from orchestrator.system.console import print_line
from orchestrator.tracking.errors import translating_errors

LOCK, LOCK_SECONDS = ".mlflow.lock", 60.0
QUIET_SECONDS = 2.0  # a file that is being made by a process without our lock is written more often
LOCKED_SECONDS = 20.0
BESIDE = ("-journal", "-wal", "-shm")  # of a SQLite file: part of what it holds
UNFINISHED = ".unfinished"
VERSIONS = "alembic_version"
DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
SEEDS = {"experiments": "experiment_id <> 0", "workspaces": "name <> 'default'"}  # what a new store holds

# It makes the folder of a path without reading its escapes, beside the one that is meant.
utils._make_parent_dirs_if_sqlite = lambda db_uri: None


@dataclass(frozen=True)
class Contents:
    """`revision` is that of the schema, empty if none is recorded; `is_empty`: nobody recorded anything."""

    tables: frozenset[str]
    revision: str
    is_empty: bool

    @property
    def is_unfinished(self) -> bool:
        """Whether it is a store that was never made to its end, and so holds nothing that could be lost."""
        if not self.is_empty:
            return False
        head, known = _revisions()
        if not self.revision:
            return self.tables <= {*Initial.metadata.tables, VERSIONS}
        return self.revision in known and (self.revision != head or not self.has_all_tables)

    @property
    def is_of_mlflow(self) -> bool:
        return {"experiments", "runs"} <= self.tables

    @property
    def has_all_tables(self) -> bool:
        return set(Base.metadata.tables) <= self.tables


def has_store(uri: str) -> bool:
    """Whether there is a store to read: a server, or a SQLite file that is whole or not ours to judge."""
    return not uri.startswith(SQLITE) or (store_exists(uri) and not read_contents(uri).is_unfinished)


def check_usable(uri: str) -> None:
    """StoreError unless the SQLite store is there, and of the schema that this MLflow has. Writes nothing."""
    if not has_store(uri):
        raise no_store_error(uri)
    _check_schema(uri, read_contents(uri))


def is_database(uri: str) -> bool:
    """Whether MLflow itself would open it, and make or migrate its tables."""
    return urlsplit(uri).scheme.partition("+")[0] in DATABASES


def check_database(uri: str, *, is_to_be_made: bool = False) -> None:
    """The same of a database of another kind, which is made by a sweep where it has no tables at all."""
    engine = create_engine(uri)
    try:
        with translating_errors(uri), engine.connect() as connection:
            tables = frozenset(inspect(connection).get_table_names())
            query = text(f"SELECT version_num FROM {VERSIONS}")
            rows = connection.execute(query).fetchall() if VERSIONS in tables else []
    finally:
        engine.dispose()
    if tables:
        _check_schema(uri, Contents(tables, " and ".join(str(row[0]) for row in rows), is_empty=False))
    elif not is_to_be_made:
        raise no_store_error(uri)


def _check_schema(uri: str, found: Contents) -> None:
    head, known = _revisions()
    if not found.is_of_mlflow:
        raise StoreError(f"{redact_uri(uri)} is a database of something else; set MLFLOW_TRACKING_URI")
    if found.revision not in known:
        raise StoreError(
            f"the store {redact_uri(uri)} is of the schema {found.revision or 'without a name'}, which MLflow "
            f"{VERSION} does not know; use the MLflow that made it, or set MLFLOW_TRACKING_URI"
        )
    if found.revision != head:
        raise StoreError(
            f"the store {redact_uri(uri)} is of the schema {found.revision}, and MLflow {VERSION} wants {head}; "
            f"make a copy, then `mlflow db upgrade '{redact_uri(uri)}'`"
        )
    if not found.has_all_tables:
        missing = sorted(set(Base.metadata.tables) - found.tables)
        raise StoreError(
            f"the store {redact_uri(uri)} lacks the table {missing[0]}; restore the file from a copy, "
            "or set MLFLOW_TRACKING_URI"
        )


def create_if_missing(uri: str) -> None:
    """A new store where there is none yet, or one that was never made to its end; else it is left as it is.

    One process at a time; StoreError for what cannot be used or written. OSError, SQLAlchemyError.
    """
    place = Path(os.path.realpath(sqlite_path(uri)))
    if place.exists():
        _check_writable(uri, place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / LOCK, timeout=LOCK_SECONDS):
        for leftover in _asides(place):
            leftover.unlink(missing_ok=True)
        if not place.exists() or _is_left_unfinished(uri, place):
            _create(place, uri)
    check_usable(uri)


def read_contents(uri: str) -> Contents:
    """What the file holds, read without changing it. StoreError for what is no database."""
    path = sqlite_path(uri)
    if not path.is_file():  # a folder; or a pipe, which would be waited for
        raise StoreError(f"the store {redact_uri(uri)} is no regular file; set MLFLOW_TRACKING_URI")
    try:
        try:
            return _contents(path, "ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_READONLY_ROLLBACK":
                raise
            return _contents(path, "rw")  # a killed process was writing: SQLite takes that back first
    except sqlite3.OperationalError as error:
        if "readonly" in str(error) or not os.access(path, os.R_OK):
            raise StoreError(f"the store {redact_uri(uri)} cannot be read: {error}; ask its owner") from error
        raise StoreUnavailableError(f"the store {redact_uri(uri)} cannot be reached: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be used: {error}; set MLFLOW_TRACKING_URI"
        ) from error


def _contents(path: Path, mode: str) -> Contents:
    address = f"file:{quote(str(path))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS)) as file:
        file.execute("BEGIN")  # all of it at one moment
        names = file.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        tables = frozenset(name for (name,) in names)
        rows = file.execute(f"SELECT * FROM {VERSIONS}").fetchall() if VERSIONS in tables else []
        revision = " and ".join(str(row[0]) for row in rows)
        return Contents(tables, revision, not any(_has_rows(file, name) for name in tables - {VERSIONS}))


def _has_rows(file: sqlite3.Connection, table: str) -> bool:
    name = table.replace('"', '""')
    return (
        file.execute(f'SELECT 1 FROM "{name}" WHERE {SEEDS.get(table, "1")} LIMIT 1').fetchone() is not None
    )


@lru_cache(maxsize=1)
def _revisions() -> tuple[str, frozenset[str]]:
    """The schema that the installed MLflow has, and all those that led to it."""
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(db_url=""))
    known = frozenset(str(script.revision) for script in scripts.walk_revisions())
    return str(utils._get_latest_schema_revision()), known


def _check_writable(uri: str, place: Path) -> None:
    for path in (place, place.parent):
        if not os.access(path, os.W_OK):
            raise StoreError(
                f"the store {redact_uri(uri)} cannot be written: {path} is read-only here; "
                "ask its owner, or set MLFLOW_TRACKING_URI to another one"
            )


def _is_left_unfinished(uri: str, place: Path) -> bool:
    """Whether nobody goes on with it: an MLflow that knows nothing of our lock may be at work."""
    while read_contents(uri).is_unfinished:
        if not 0 <= time.time() - place.stat().st_mtime < QUIET_SECONDS:
            return True
        time.sleep(QUIET_SECONDS / 10)
    return False


def _create(place: Path, uri: str) -> None:
    aside = place.with_name(f".{place.name}.{uuid4().hex[:8]}.new")
    try:
        SqlAlchemyStore(sqlite_uri(aside), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        _move_away(place, uri)
        aside.rename(place)
        _sync(place.parent)
    except BaseException:
        for leftover in _asides(place):
            leftover.unlink(missing_ok=True)
        raise


def _asides(place: Path) -> Iterator[Path]:
    """Stores that were being made for this place; for who holds the lock, by processes that are dead."""
    for path in list(place.parent.iterdir()):
        if path.name.startswith(f".{place.name}.") and any(
            path.name.endswith(f".new{end}") for end in ("", *BESIDE)
        ):
            yield path


def _move_away(place: Path, uri: str) -> None:
    """What lies there, and what a file that is gone has left: SQLite would take that for the new one's."""
    if place.exists() and place.stat().st_size:
        print_line(
            f"the store {redact_uri(uri)} was never made to its end, and holds no runs: it is begun anew, "
            f"and the old file is {place.name}{UNFINISHED}",
            error=True,
        )
    for end in (*BESIDE, ""):  # the file at last: until then, all of this is done again by the next
        path = place.with_name(f"{place.name}{end}")
        if path.exists() and path.stat().st_size:
            path.replace(place.with_name(f"{place.name}{UNFINISHED}{end}"))


def _sync(folder: Path) -> None:
    """A name in a folder outlives a power cut once the folder is written."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
