"""Runs read from the tables of a SQLite store: in a tenth of MLflow's time, and without importing it.

Nothing is written here. It is done only where the tables are of a schema that MLflow's own answers were
compared with, and for queries of the forms that this project uses: elsewhere MLflow is asked.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from math import nan
from sys import intern
from typing import Any
from urllib.parse import quote

from orchestrator.errors import StoreError
from orchestrator.storage.runs import RunRecord, Runs
from orchestrator.storage.uri import SQLITE, redact_uri, sqlite_path

SCHEMAS = ("dc11669786a5",)  # alembic_version of MLflow 3.17
LOCKED_SECONDS = 20.0
STATUS = re.compile(r"attributes\.status = '(\w+)'")
TAG = re.compile(r"tags\.(?:`([^`]+)`|(\w+)) (?:= '([^']*)'|LIKE '_%')")
Where = tuple[str, list[str]]  # SQL, and what stands for its question marks


def search(
    uri: str, query: str, experiments: Sequence[str] | None = None, *, metric: str | None = None
) -> list[RunRecord] | None:
    """Active runs of these experiments, or of all that are active, newest first, as MLflow finds them.

    With `metric` the rows have this metric alone, and no params. None where MLflow has to be asked.
    """
    where = _where(query, experiments)
    if where is None or not uri.startswith(SQLITE):
        return None
    try:
        with closing(_open(uri)) as connection:
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if schema is None or schema[0] not in SCHEMAS:
                return None
            return _rows(connection, where, metric)
    except sqlite3.Error:  # locked for long, no such table: MLflow knows what to do, or what to say
        return None


class SqliteRuns(Runs):
    """The runs of a SQLite store of a known schema, read without MLflow."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def search(self, query: str, *, everywhere: bool = False) -> list[RunRecord]:
        """StoreError where MLflow would have to be asked."""
        found = search(self.uri, query)
        if found is None:
            raise StoreError(f"{redact_uri(self.uri)}: only MLflow can tell")
        return found

    def read_text(self, row: RunRecord, path: str) -> str:
        place = row.local_path(path)
        if place is None or not place.exists():
            raise StoreError(f"run {row.run_id} has no artifact {path} on this disk")
        return place.read_text(encoding="utf-8")


def _open(uri: str) -> sqlite3.Connection:
    path = quote(str(sqlite_path(uri)))
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=LOCKED_SECONDS)


def _where(query: str, experiments: Sequence[str] | None) -> Where | None:
    """A query in SQL; None for one of another form."""
    if experiments is None:
        chosen = "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'active'"
        parts, values = [f"r.experiment_id IN ({chosen})"], []
    else:
        parts = [f"r.experiment_id IN ({', '.join('?' * len(experiments))})"]
        values = list(experiments)
    for clause in query.split(" and "):
        if found := STATUS.fullmatch(clause):
            parts.append("r.status = ?")
            values.append(found[1])
        elif found := TAG.fullmatch(clause):
            parts.append(f"r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value {_is(found[3])})")
            values += [found[1] or found[2], *([] if found[3] is None else [found[3]])]
        else:
            return None
    return " AND ".join(["r.lifecycle_stage = 'active'", *parts]), values


def _is(value: str | None) -> str:
    return "<> ''" if value is None else "= ?"


def _rows(connection: sqlite3.Connection, where: Where, metric: str | None) -> list[RunRecord]:
    condition, values = where
    columns = "r.run_uuid, r.name, r.status, r.artifact_uri, r.start_time, r.end_time"
    order = "ORDER BY r.start_time DESC, r.run_uuid"
    of_runs = f"WHERE run_uuid IN (SELECT r.run_uuid FROM runs r WHERE {condition})"
    connection.execute("BEGIN")  # all of it at one moment
    runs = connection.execute(f"SELECT {columns} FROM runs r WHERE {condition} {order}", values).fetchall()
    if not runs:
        return []

    only, named = ("", []) if metric is None else (" AND key = ?", [metric])

    def told(table: str, columns: str, only: str = "", named: Sequence[str] = ()) -> Iterable[Any]:
        """Row by row: a list of all that ten thousand runs say takes more memory than the runs do."""
        query = f"SELECT run_uuid, key, {columns} FROM {table} {of_runs}{only}"
        return connection.execute(query, [*values, *named])

    marks = _by_run(told("tags", "value"))
    found = told("latest_metrics", "value, is_nan", only, named)
    numbers = _by_run((run, key, nan if is_nan else value) for run, key, value, is_nan in found)
    texts = told("params", "value") if metric is None else ()
    settings = _by_run((run, key, intern(value)) for run, key, value in texts)
    return [
        RunRecord(
            run_id,
            name or marks[run_id].get("mlflow.runName") or "",
            status,
            settings[run_id],
            numbers[run_id],
            marks[run_id],
            artifact_uri or "",
            start_ms,
            end_ms,
        )
        for run_id, name, status, artifact_uri, start_ms, end_ms in runs
    ]


def _by_run(rows: Iterable[tuple[str, str, Any]]) -> defaultdict[str, dict[str, Any]]:
    """Run -> key -> value; thousands of runs share their keys."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for run_id, key, value in rows:
        found[run_id][intern(key)] = value
    return found
