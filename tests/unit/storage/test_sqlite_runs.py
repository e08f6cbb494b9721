"""Runs read from the tables of a SQLite store: what MLflow finds, and nothing where it must be asked."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path

import pytest

from orchestrator import tracking
from orchestrator.errors import StoreError
from orchestrator.storage import sqlite_runs
from orchestrator.storage.sqlite_runs import SqliteRuns
from orchestrator.tracking import MetricPoint, Tracker

KEYED = "attributes.status = 'FINISHED' and tags.key LIKE '_%'"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Two experiments and a deleted one; runs that are finished, failed, running, deleted, without a name."""
    folder = tmp_path_factory.mktemp("a store, 50% full é")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracking.initialise(uri)
    first, second, gone = (Tracker(uri, name) for name in ("first", "second", "gone"))
    with first.start("sweep", "first", tags={"space": "first"}, start_ms=1000) as sweep:
        for number in range(3):
            tags = {"point": f"p{number}", "it's": "quoted"}
            with first.start("trial", f"t{number}", parent=sweep.run_id, tags=tags, start_ms=2000) as run:
                points = [MetricPoint("final/accuracy", number / 3), MetricPoint("train/loss", 1.0, 1)]
                points += [MetricPoint("train/loss", 0.1, 2), MetricPoint("final/most", math.inf)]
                run.log(params={"n": number, "none": None}, metrics=points, tags={"key": f"k{number}"})
    with second.start("trial", "other", tags={"point": "p9"}, start_ms=3000) as run:
        run.log(tags={"key": "k1"})
    with pytest.raises(ValueError, match="lost"), second.start("trial", "failed", tags={"point": "p8"}):
        raise ValueError("lost")
    second.start("trial", "", tags={"point": "p7"})
    with second.start("trial", "deleted", tags={"point": "p6"}) as run:
        run.log(tags={"key": "k6"})
    second.client.delete_run(run.run_id)
    with gone.start("trial", "gone", tags={"point": "p5"}) as run:
        run.log(tags={"key": "k5"})
    gone.client.delete_experiment(gone.experiment_id)
    return first


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (KEYED, 4),
        ("tags.kind = 'sweep'", 1),
        ("attributes.status = 'RUNNING'", 1),
        ("attributes.status = 'FAILED' and tags.point LIKE '_%'", 1),
        ("tags.point = 'p9'", 1),
        ("tags.kind = 'trial' and tags.`it's` LIKE '_%'", 3),
        ("tags.kind = 'nothing'", 0),
    ],
)
def test_it_finds_what_mlflow_finds(tracker: Tracker, query: str, count: int) -> None:
    found = sqlite_runs.search(tracker.uri, query)
    assert found == tracker._search(query, tracker._all_experiments())
    assert len(found) == count
    mine = sqlite_runs.search(tracker.uri, query, [tracker.experiment_id])
    assert mine == tracker._search(query, [tracker.experiment_id])
    assert tracker.search(query, everywhere=True) == found


def test_one_metric_alone(tracker: Tracker) -> None:
    rows = sqlite_runs.search(tracker.uri, "tags.point = 'p2'", metric="final/accuracy")
    assert rows is not None
    assert [(dict(row.metrics), dict(row.params)) for row in rows] == [({"final/accuracy": 2 / 3}, {})]


def test_of_two_runs_with_one_key_the_older_is_found(tracker: Tracker) -> None:
    runs = SqliteRuns(tracker.uri)
    assert {key: row.name for key, row in runs.find_all_finished().items()} == {
        "k0": "t0",
        "k1": "t1",
        "k2": "t2",
    }
    assert runs.find_all_finished(["k1", "k5", "k6"]).keys() == {"k1"}
    assert runs.find_all_failed(["p8"])["p8"].name == "failed"
    assert tracker.find_all_finished() == runs.find_all_finished()


@pytest.mark.parametrize(
    "query",
    ["metrics.`final/accuracy` > 0.5", "tags.kind != 'sweep'", "tags.point = 'p1' or tags.point = 'p2'"],
)
def test_other_queries_are_mlflows(tracker: Tracker, query: str) -> None:
    assert sqlite_runs.search(tracker.uri, query) is None
    with pytest.raises(StoreError):
        SqliteRuns(tracker.uri).search(query)


def test_other_schemas_stores_and_broken_files_are_mlflows(tracker: Tracker, tmp_path: Path) -> None:
    assert sqlite_runs.search("http://127.0.0.1:5000", KEYED) is None
    assert sqlite_runs.search(f"sqlite:///{tmp_path}/none.db", KEYED) is None
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be looked at" * 100)
    assert sqlite_runs.search(f"sqlite:///{tmp_path}/text.db", KEYED) is None
    shutil.copy(tracker.uri.removeprefix("sqlite:///"), tmp_path / "later.db")
    assert sqlite_runs.search(f"sqlite:///{tmp_path}/later.db", KEYED) is not None
    with sqlite3.connect(tmp_path / "later.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'abc'")
    connection.close()
    assert sqlite_runs.search(f"sqlite:///{tmp_path}/later.db", KEYED) is None


def test_the_schema_is_that_of_the_installed_mlflow(tracker: Tracker) -> None:
    """Else every search falls back, and nobody notices but by the clock."""
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as connection:
        assert (
            connection.execute("SELECT version_num FROM alembic_version").fetchone()[0] in sqlite_runs.SCHEMAS
        )
    connection.close()
