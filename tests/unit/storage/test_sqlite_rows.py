"""Rows written into a SQLite store: those of MLflow to the last column, or none, and MLflow writes them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import tracking
from orchestrator.errors import StoreError
from orchestrator.storage import sqlite_rows, sqlite_runs
from orchestrator.storage.outbox import DataInput
from orchestrator.storage.sqlite_rows import RunRows, write_rows
from orchestrator.tracking import ActiveRun, MetricPoint, Tracker

DATA = DataInput("digits", "0123456789abcdef" * 4, {"train": 1257, "test": 360})
PARAMS = {"train.epochs": 3, "protect": "", "when": None, "name": "é 'quoted'"}
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "inputs", "input_tags", "datasets")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('a store, 50% full é') / 'mlflow.db'}"
    tracking.initialise(uri)
    return uri


def tables(uri: str, run: ActiveRun) -> dict[str, list[tuple[object, ...]]]:
    """All rows of a run, in each table; what is made up for a run is left out."""
    wheres = {
        "inputs": "destination_id = :run",
        "input_tags": "input_uuid IN (SELECT input_uuid FROM inputs WHERE destination_id = :run)",
        "datasets": "dataset_uuid IN (SELECT source_id FROM inputs WHERE destination_id = :run)",
    }
    made_up = ("run_uuid", "experiment_id", "artifact_uri", "input_uuid", "dataset_uuid")
    made_up += ("source_id", "destination_id")
    rows: dict[str, list[tuple[object, ...]]] = {}
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        for table in TABLES:
            where = wheres.get(table, "run_uuid = :run")
            cursor = connection.execute(f"SELECT * FROM {table} WHERE {where}", {"run": run.run_id})
            names = [column[0] for column in cursor.description]
            rows[table] = sorted(
                (
                    tuple((n, type(v), v) for n, v in zip(names, row, strict=True) if n not in made_up)
                    for row in cursor
                ),
                key=repr,
            )
        locations = connection.execute(
            "SELECT artifact_uri, artifact_location FROM runs JOIN experiments USING (experiment_id) "
            "WHERE run_uuid = ?",
            [run.run_id],
        ).fetchone()
        rows["locations"] = [tuple(text.replace(run.run_id, "RUN") for text in locations)]
    return rows


def record(uri: str, experiment: str, points: list[MetricPoint]) -> ActiveRun:
    """A run from its start to its end, as a worker records it."""
    tracker = Tracker(uri, experiment)
    run = tracker.start(
        "trial",
        "a name",
        parent="a" * 32,
        tags={"point": "p", "owner": "x"},
        start_ms=5,
        params=PARAMS,
        data=DATA,
    )
    if not run.has_start:
        run.log(params=PARAMS, data=DATA)
    run.log(metrics=points, tags={"key": "k", "point": "q", "empty": ""}, at_ms=7, end="FINISHED")
    return run


POINTS = [
    MetricPoint("final/accuracy", 0.1),
    MetricPoint("final/accuracy", 0.1),  # twice: stored once
    *(MetricPoint("train/loss", 1 / step, step) for step in range(1, 5)),
    MetricPoint("round/loss", 3.0, 2),
    MetricPoint("round/loss", 4.0, 2),  # the larger value is the latest
    MetricPoint("round/loss", 9.0, 1),
    MetricPoint("layers/hidden.0", 0.0),
    MetricPoint("final/epochs", 12),
    MetricPoint("below", -0.0),
    MetricPoint("large", 1e300),
]


def test_the_rows_are_those_of_mlflow(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = record(uri, "ours", POINTS)
    assert ours.has_start
    again = record(uri, "ours", POINTS)  # the data set is there already
    monkeypatch.setattr(sqlite_runs, "SCHEMAS", ())
    theirs = record(uri, "theirs", POINTS)
    assert not theirs.has_start
    expected = tables(uri, theirs)
    expected["locations"] = [tuple(text.replace("theirs", "ours") for text in expected["locations"][0])]
    assert tables(uri, ours) == tables(uri, again) == expected
    assert {name: len(rows) for name, rows in expected.items()} == {
        "runs": 1, "tags": 7, "params": 4, "metrics": 12, "latest_metrics": 7,
        "inputs": 1, "input_tags": 1, "datasets": 1, "locations": 1,
    }  # fmt: skip
    read = Tracker(uri, "ours").get_run(ours.run_id)
    assert (read.metrics["round/loss"], read.params["when"], read.tags["point"]) == (4.0, "None", "q")
    assert (
        len({run.info.run_id for run in ours.client.search_runs([Tracker(uri, "ours").experiment_id])}) == 2
    )


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["a/b", "a//b", "/a", "a/", "a/../b", "..", ".", "a:b", "a b", "mlflow.runName", "x" * 251]
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(["x" * 6001, "x" * 8001])


@given(NAMES, TEXTS, st.floats(allow_nan=False) | st.sampled_from([2**70]))
def test_whatever_is_written_is_as_mlflow_would_write_it(
    uri: str, name: str, text: str, value: float
) -> None:
    """The same names, texts and values twice: both refused, or both there with the same rows."""
    outcomes = []
    for schemas in (sqlite_runs.SCHEMAS, ()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite_runs, "SCHEMAS", schemas)
            run = Tracker(uri, "ours").start("trial", "n", tags={"owner": "x"}, start_ms=1)
            try:
                run.log(params={name: text}, metrics=[MetricPoint(name, value)], tags={name: text}, at_ms=2)
            except StoreError:
                outcomes.append({})
            else:
                outcomes.append(tables(uri, run))
    assert outcomes[0] == outcomes[1]


def test_a_run_that_has_rows_is_left_to_mlflow(uri: str) -> None:
    run = record(uri, "ours", POINTS)
    assert not write_rows(uri, run.run_id, RunRows({"train.epochs": "3"}))
    assert not write_rows(uri, run.run_id, RunRows(metrics=[MetricPoint("final/accuracy", 0.1)], at_ms=7))
    assert not write_rows(uri, "b" * 32, RunRows(tags={"a": "b"}))  # there is no such run
    run.log(params={"train.epochs": 3}, metrics=POINTS, at_ms=7)  # as a delivery that is tried again
    run.log(metrics=[MetricPoint("final/accuracy", 0.3)], at_ms=9)
    assert Tracker(uri, "ours").get_run(run.run_id).metrics["final/accuracy"] == 0.3
    with pytest.raises(StoreError, match="Changing param values is not allowed"):
        run.log(params={"train.epochs": 4})


def test_a_store_that_fails_keeps_nothing_of_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Tracker(uri, "ours").start("trial", "n", tags={})
    before = tables(uri, run)
    rows = RunRows({"a": "b"}, [MetricPoint("m", 1.0)], {"t": "u"}, 3, None, ("FINISHED", 3))
    monkeypatch.setattr(sqlite_rows, "WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert not write_rows(uri, run.run_id, rows)
        connection.execute("ROLLBACK")
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON latest_metrics BEGIN SELECT RAISE(ABORT, 'x'); END"
        )
        assert not write_rows(uri, run.run_id, rows)
        assert tables(uri, run) == before
        connection.execute("DROP TRIGGER full")
    assert write_rows(uri, run.run_id, rows)
    assert not write_rows(f"sqlite:///{tmp_path}/none.db", run.run_id, rows)
    assert not (tmp_path / "none.db").exists()
    assert not write_rows("http://127.0.0.1:9", run.run_id, rows)
