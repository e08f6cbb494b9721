"""Write the rows of a run into the tables of a SQLite store, in one transaction and a sixth of MLflow's time.

They are the rows that MLflow writes, to the last column: a test compares the tables. Only schemas are
written for which it did (`sqlite_runs.SCHEMAS`), and only what is plain: a run that has none of these rows
yet, and names and texts that MLflow takes as they are. Of anything else nothing is written, and the caller
goes through MLflow, which also says what is wrong with it.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

from orchestrator.storage import sqlite_runs
from orchestrator.storage.runs import MetricPoint
from orchestrator.storage.uri import SQLITE, sqlite_path

T = TypeVar("T")
NAME = re.compile(r"[\w. -]+(/[\w. -]+)*")
STEP = re.compile(r"(^|/)\.{1,2}(/|$)")  # of a path, which no name may be
RUN_NAME = "mlflow.runName"  # the tag that MLflow keeps equal to the name of the run
DATA_CONTEXT = "mlflow.data.context"  # the tag of an input that says what it is for
PLAIN_LOCATION = re.compile(r"file:///[^?#]*[^?#/]")
# Locked for long, a full disk, another table, no UTF-8, a number too large: MLflow recovers, or says why.
FAULTS = (sqlite3.Error, UnicodeError, OverflowError)
WAIT_SECONDS = 5.0  # for other writers; MLflow, which is asked then, waits longer
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000  # characters; MLflow cuts or refuses longer ones


@dataclass(frozen=True)
class DatasetRow:
    """A data set that is the input of a run; `source` and `profile` are JSON."""

    name: str
    digest: str
    source: str
    profile: str
    context: str


@dataclass(frozen=True)
class NewRun:
    """A run that is created, RUNNING since `start_ms`."""

    experiment_id: str
    name: str
    start_ms: int


@dataclass(frozen=True)
class RunRows:
    """What is added to a run. `metrics` are of the time `at_ms`; `end` is its status and time, if it ends."""

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[MetricPoint] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    at_ms: int = 0
    dataset: DatasetRow | None = None
    end: tuple[str, int] | None = None

    def is_plain(self) -> bool:
        """Whether MLflow takes every name and text as it is."""
        names = {*self.params, *self.tags, *(point.name for point in self.metrics)}
        return (
            all(len(name) <= NAME_LENGTH and NAME.fullmatch(name) for name in names)
            and not any(map(STEP.search, names))
            and RUN_NAME not in self.tags
            and all(len(text) <= PARAM_LENGTH for text in self.params.values())
            and all(len(text) <= TAG_LENGTH for text in self.tags.values())
            and all(math.isfinite(point.value) for point in self.metrics)
        )


def create_run(uri: str, new: NewRun, rows: RunRows) -> tuple[str, str] | None:
    """Create a run with its first rows; return its id and artifact URI, or None where only MLflow can."""
    is_named = 0 < len(new.name) <= NAME_LENGTH  # MLflow makes a name up
    if not uri.startswith(SQLITE) or not is_named or not rows.is_plain():
        return None
    run_id = uuid4().hex

    def write(connection: sqlite3.Connection) -> str | None:
        artifact_uri = _insert_run(connection, run_id, new)
        return artifact_uri if artifact_uri is not None and _write(connection, run_id, rows) else None

    artifact_uri = _in_transaction(uri, write)
    return None if artifact_uri is None else (run_id, artifact_uri)


def write_rows(uri: str, run_id: str, rows: RunRows) -> bool:
    """Write the rows, all or none; return False where nothing was written, and only MLflow can."""
    if not uri.startswith(SQLITE) or not rows.is_plain():
        return False
    return bool(_in_transaction(uri, lambda connection: _write(connection, run_id, rows)))


def _in_transaction(uri: str, write: Callable[[sqlite3.Connection], T]) -> T | None:
    """Return what `write` returns of a store of a known schema; None for another, or one that fails."""
    try:
        with closing(_open(uri)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")  # waits for other writers here, and nowhere later
            return write(connection) if _is_known(connection) else None
    except FAULTS:
        return None


def _open(uri: str) -> sqlite3.Connection:
    path = quote(str(sqlite_path(uri)))
    connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _is_known(connection: sqlite3.Connection) -> bool:
    schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return schema is not None and schema[0] in sqlite_runs.SCHEMAS


def _insert_run(connection: sqlite3.Connection, run_id: str, new: NewRun) -> str | None:
    """Insert a run, and return its artifact URI; None for an experiment that is not as expected."""
    query = "SELECT artifact_location, lifecycle_stage FROM experiments WHERE experiment_id = ?"
    location, stage = connection.execute(query, [int(new.experiment_id)]).fetchone() or ("", "")
    if stage != "active" or not PLAIN_LOCATION.fullmatch(location or ""):
        return None
    artifact_uri = f"{location}/{run_id}/artifacts"
    connection.execute(
        "INSERT INTO runs (run_uuid, name, experiment_id, artifact_uri, start_time, source_type, "
        "source_name, entry_point_name, user_id, status, source_version, lifecycle_stage) "
        "VALUES (?, ?, ?, ?, ?, 'UNKNOWN', '', '', 'unknown', 'RUNNING', '', 'active')",
        [run_id, new.name, int(new.experiment_id), artifact_uri, new.start_ms],
    )
    connection.execute(
        "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", [run_id, RUN_NAME, new.name]
    )
    return artifact_uri


def _write(connection: sqlite3.Connection, run_id: str, rows: RunRows) -> bool:
    """Write into the open transaction; False, before the first row, for a run that is not as expected."""
    query = "SELECT experiment_id, lifecycle_stage FROM runs WHERE run_uuid = ?"
    experiment, stage = connection.execute(query, [run_id]).fetchone() or (0, "")
    tables = [name for name, values in (("params", rows.params), ("metrics", rows.metrics)) if values]
    if stage != "active" or any(_has_rows(connection, table, run_id) for table in tables):
        return False
    _insert_params_and_tags(connection, run_id, rows)
    _insert_metrics(connection, run_id, rows)
    if rows.dataset is not None:
        _insert_dataset(connection, run_id, experiment, rows.dataset)
    if rows.end is not None:
        connection.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", [*rows.end, run_id])
    return True


def _has_rows(connection: sqlite3.Connection, table: str, run_id: str) -> bool:
    query = f"SELECT 1 FROM {table} WHERE run_uuid = ? LIMIT 1"
    return connection.execute(query, [run_id]).fetchone() is not None


def _insert_params_and_tags(connection: sqlite3.Connection, run_id: str, rows: RunRows) -> None:
    connection.executemany(
        "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)",
        [(run_id, name, text) for name, text in rows.params.items()],
    )
    connection.executemany(
        "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?) "
        "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value",
        [(run_id, name, text) for name, text in rows.tags.items()],
    )


def _insert_metrics(connection: sqlite3.Connection, run_id: str, rows: RunRows) -> None:
    """Insert each value once, and of each metric the latest: the largest step, then the largest value."""
    values = dict.fromkeys((point.name, point.step, float(point.value)) for point in rows.metrics)
    latest: dict[str, tuple[int, float]] = {}
    for name, step, value in values:
        latest[name] = max((step, value), latest.get(name, (step, value)))
    columns = "(key, step, value, timestamp, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)"
    last = [(name, *step_and_value) for name, step_and_value in latest.items()]
    for table, points in (("metrics", list(values)), ("latest_metrics", last)):
        full_rows = [(*point, rows.at_ms, run_id) for point in points]
        connection.executemany(f"INSERT INTO {table} {columns}", full_rows)


def _insert_dataset(
    connection: sqlite3.Connection, run_id: str, experiment: int, dataset: DatasetRow
) -> None:
    """Insert the data set, once for an experiment, and that the run reads it."""
    query = "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?"
    known = connection.execute(query, [experiment, dataset.name, dataset.digest]).fetchone()
    dataset_id, input_id = known[0] if known else uuid4().hex, uuid4().hex
    if not known:
        connection.execute(
            "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, "
            "dataset_source, dataset_profile) VALUES (?, ?, ?, ?, 'code', ?, ?)",
            [dataset_id, experiment, dataset.name, dataset.digest, dataset.source, dataset.profile],
        )
    edge = ("DATASET", dataset_id, "RUN", run_id)
    query = (
        "SELECT 1 FROM inputs WHERE source_type = ? AND source_id = ? AND destination_type = ? "
        "AND destination_id = ?"
    )
    if connection.execute(query, edge).fetchone() is not None:
        return
    connection.execute(
        "INSERT INTO inputs (source_type, source_id, destination_type, destination_id, input_uuid, step) "
        "VALUES (?, ?, ?, ?, ?, 0)",
        [*edge, input_id],
    )
    connection.execute(
        "INSERT INTO input_tags (input_uuid, name, value) VALUES (?, ?, ?)",
        [input_id, DATA_CONTEXT, dataset.context],
    )
