"""Read runs from the tables of a SQLite store: in a tenth of MLflow's time, and without its import.

Nothing is written here. Only schemas are read for which the results were compared with MLflow's, and only the
forms of queries that this project uses; for any other, the caller has to search through MLflow.
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
BUSY_SECONDS = 20.0  # to wait for SQLite's own lock
STATUS = re.compile(r"attributes\.status = '(\w+)'")
TAG = re.compile(r"tags\.(?:`([^`]+)`|(\w+)) (?:= '([^']*)'|LIKE '_%')")
Condition = tuple[str, list[str]]  # SQL, and the values of its question marks


def search(
    uri: str, query: str, experiments: Sequence[str] | None = None, *, metric: str | None = None
) -> list[RunRecord] | None:
    """Return active runs of these experiments, or of all active ones, newest first, in MLflow's order.

    With `metric` the rows have this metric alone, and no params. None if only MLflow can tell.
    """
    condition = _make_condition(query, experiments)
    if condition is None or not uri.startswith(SQLITE):
        return None
    try:
        with closing(_open(uri)) as connection:
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if schema is None or schema[0] not in SCHEMAS:
                return None
            return _read_rows(connection, condition, metric)
    except sqlite3.Error:  # locked for long, or no such table: MLflow recovers, or says why
        return None


class SqliteRuns(Runs):
    """The runs of a SQLite store of a known schema, read without MLflow."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def search(self, query: str, *, everywhere: bool = False) -> list[RunRecord]:
        """Return active runs, newest first; StoreError if only MLflow can tell."""
        rows = search(self.uri, query)
        if rows is None:
            raise StoreError(f"{redact_uri(self.uri)}: only MLflow can tell")
        return rows

    def read_text(self, row: RunRecord, path: str) -> str:
        """Return a text artifact; StoreError if it is not on this disk."""
        file = row.local_path(path)
        if file is None or not file.exists():
            raise StoreError(f"run {row.run_id} has no artifact {path} on this disk")
        return file.read_text(encoding="utf-8")


def _open(uri: str) -> sqlite3.Connection:
    path = quote(str(sqlite_path(uri)))
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def _make_condition(query: str, experiments: Sequence[str] | None) -> Condition | None:
    """Translate a query into SQL; None for a query of another form."""
    if experiments is None:
        active = "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'active'"
        clauses, values = [f"r.experiment_id IN ({active})"], []
    else:
        clauses = [f"r.experiment_id IN ({', '.join('?' * len(experiments))})"]
        values = list(experiments)
    for clause in query.split(" and "):
        if match := STATUS.fullmatch(clause):
            clauses.append("r.status = ?")
            values.append(match[1])
        elif match := TAG.fullmatch(clause):
            comparison = "<> ''" if match[3] is None else "= ?"
            clauses.append(f"r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value {comparison})")
            values += [match[1] or match[2], *([] if match[3] is None else [match[3]])]
        else:
            return None
    return " AND ".join(["r.lifecycle_stage = 'active'", *clauses]), values


def _read_rows(connection: sqlite3.Connection, condition: Condition, metric: str | None) -> list[RunRecord]:
    where, values = condition
    columns = "r.run_uuid, r.name, r.status, r.artifact_uri, r.start_time, r.end_time"
    order = "ORDER BY r.start_time DESC, r.run_uuid"
    of_runs = f"WHERE run_uuid IN (SELECT r.run_uuid FROM runs r WHERE {where})"
    connection.execute("BEGIN")  # one transaction: the tables have to agree
    runs = connection.execute(f"SELECT {columns} FROM runs r WHERE {where} {order}", values).fetchall()
    if not runs:
        return []

    def select(table: str, columns: str, key: str | None = None) -> Iterable[Any]:
        """Iterate row by row: a list of the rows of ten thousand runs takes more memory than the runs."""
        only_key, key_values = ("", []) if key is None else (" AND key = ?", [key])
        query = f"SELECT run_uuid, key, {columns} FROM {table} {of_runs}{only_key}"
        return connection.execute(query, [*values, *key_values])

    tags = _group_by_run(select("tags", "value"))
    metric_rows = select("latest_metrics", "value, is_nan", metric)
    metrics = _group_by_run((run, key, nan if is_nan else value) for run, key, value, is_nan in metric_rows)
    param_rows = select("params", "value") if metric is None else ()
    params = _group_by_run((run, key, intern(value)) for run, key, value in param_rows)
    return [
        RunRecord(
            run_id,
            name or tags[run_id].get("mlflow.runName") or "",
            status,
            params[run_id],
            metrics[run_id],
            tags[run_id],
            artifact_uri or "",
            start_ms,
            end_ms,
        )
        for run_id, name, status, artifact_uri, start_ms, end_ms in runs
    ]


def _group_by_run(rows: Iterable[tuple[str, str, Any]]) -> defaultdict[str, dict[str, Any]]:
    """Return run -> key -> value. Keys are interned: thousands of runs share them."""
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for run_id, key, value in rows:
        groups[run_id][intern(key)] = value
    return groups
