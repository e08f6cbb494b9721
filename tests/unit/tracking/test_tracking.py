"""Runs in a real MLflow store on SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier
from urllib.parse import unquote

import forked
import pytest

from orchestrator import tracking
from orchestrator.errors import DivergedError, StoreError
from orchestrator.storage.locks import is_owner_alive, owner
from orchestrator.storage.uri import default_uri, redact_uri, store_exists
from orchestrator.tracking import MetricPoint, Tracker, compare_address, initialise


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests, which use an experiment each; in a folder whose name needs quoting."""
    found = default_uri(tmp_path_factory.mktemp("a store, 50% full é"))
    tracking.initialise(found)
    return found


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(uri, request.node.name)


@cache
def dead_process() -> str:
    """The owner tag of a process that has ended."""
    code = "from orchestrator.storage.locks import owner; print(owner())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


# ---- where


def test_the_default_store_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path()) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///my.db", "sqlite:///{folder}/my.db"),
        ("sqlite:////srv/my.db", "sqlite:////srv/my.db"),
        ("http://localhost:5000", "http://localhost:5000"),
    ],
)
def test_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert default_uri(tmp_path) == expected.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://user:se@cret@host/db", "postgresql://***@host/db"),
        ("postgresql://user:sec/ret@host/db", "postgresql://***@host/db"),
        ("postgresql://host/db?user=u&password=secret&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("sqlite:////home/me@work/mlruns/mlflow.db", "sqlite:////home/me@work/mlruns/mlflow.db"),
        ("http://localhost:5000", "http://localhost:5000"),
    ],
)
def test_secrets_are_not_shown(uri: str, expected: str) -> None:
    assert redact_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:1/",
        "postgresql://user:secret@127.0.0.1:1/db",
        "nonsense://user:secret@host",
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match="cannot be used") as caught:
        tracking.initialise(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        tracking.initialise(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.slow
def test_two_processes_may_create_a_store_at_once(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    both = [forked.start(initialise, uri) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert store_exists(uri)
    assert Tracker(uri, "x").find_all_finished() == {}


# ---- a run


def test_a_run_from_start_to_end(tracker: Tracker) -> None:
    with tracker.start("dense", "a name", tags={"colour": "blue"}) as run:
        assert tracker.get_run(run.run_id).status == "RUNNING"
        run.log(
            params={"train.lr": 1e-3, "none": None},
            metrics=[MetricPoint("final/accuracy", 0.5)],
            tags={"key": "k"},
        )
        run.log(metrics=[MetricPoint("train/loss", 1.0 / step, step) for step in (1, 2)])
        run.log_dataset("digits", "0123456789abcdef" * 4, {"train": 1257})
        tracker.upload(run.run_id, {"a/b.txt": "text é", "c.bin": b"\x00\x01"})
    row = tracker.get_run(run.run_id)
    assert (row.name, row.status, row.params) == ("a name", "FINISHED", {"train.lr": "0.001", "none": "None"})
    assert row.metrics == {"final/accuracy": 0.5, "train/loss": 0.5}
    assert row.tags.items() >= {("kind", "dense"), ("colour", "blue"), ("key", "k"), ("owner", owner())}
    assert row.start_ms <= (row.end_ms or 0)
    assert tracker.read_text(row, "a/b.txt") == "text é"
    assert tracker.download_folder(row, "c.bin").read_bytes() == b"\x00\x01"
    history = tracker.client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    (data,) = tracker.client.get_run(run.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", ("0123456789abcdef" * 4)[:36])


def test_more_than_one_call_holds(tracker: Tracker) -> None:
    with tracker.start("dense", "x", tags={}) as run:
        run.log(
            params={f"p{n}": n for n in range(250)},
            metrics=[MetricPoint("m", float(n), n) for n in range(2500)],
            tags={f"t{n}": "" for n in range(150)},
        )
    row = tracker.get_run(run.run_id)
    assert row.params == {f"p{n}": str(n) for n in range(250)}
    assert row.tags.keys() >= {f"t{n}" for n in range(150)}
    assert len(tracker.client.get_metric_history(run.run_id, "m")) == 2500


def test_an_unforeseen_error_leaves_its_traceback(tracker: Tracker) -> None:
    with pytest.raises(ZeroDivisionError), tracker.start("trial", "x", tags={}) as run:
        1 / 0  # noqa: B018
    row = tracker.get_run(run.run_id)
    assert (row.status, row.tags["reason"]) == ("FAILED", "ZeroDivisionError: division by zero")
    assert "1 / 0" in tracker.read_text(row, "traceback.txt")


def test_an_error_of_ours_leaves_its_line(tracker: Tracker) -> None:
    with pytest.raises(DivergedError), tracker.start("trial", "x", tags={}) as run:
        raise DivergedError("the loss went " + "on and " * 200)
    row = tracker.get_run(run.run_id)
    assert row.status == "FAILED"
    assert row.tags["reason"].startswith("DivergedError: the loss went on")
    with pytest.raises(StoreError, match="no artifact"):
        tracker.read_text(row, "traceback.txt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_is_killed(tracker: Tracker, error: type[BaseException]) -> None:
    with pytest.raises(error), tracker.start("trial", "x", tags={}) as run:
        raise error
    assert tracker.get_run(run.run_id).status == "KILLED"


def test_nan_is_refused(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="final/loss is NaN"), tracker.start("trial", "x", tags={}) as run:
        run.log(metrics=[MetricPoint("a", 1.0), MetricPoint("final/loss", float("nan"))])
    row = tracker.get_run(run.run_id)
    assert (row.status, row.metrics) == ("FAILED", {})


def test_a_reopened_run_is_running_again_and_ours(tracker: Tracker) -> None:
    with tracker.start("sweep", "x", tags={"owner": "elsewhere 1 2.0"}) as run:
        pass
    with tracker.reopen(run.run_id) as again:
        row = tracker.get_run(again.run_id)
        assert (row.status, row.tags["owner"]) == ("RUNNING", owner())
    assert tracker.get_run(run.run_id).status == "FINISHED"


def test_a_run_that_is_not_there(tracker: Tracker) -> None:
    with pytest.raises(StoreError, match=r"no run 'f{32}'"):
        tracker.get_run("f" * 32)


# ---- found again


def finish(tracker: Tracker, key: str, **tags: str) -> str:
    with tracker.start("dense", key, tags={"point": key, **tags}) as run:
        run.log(tags={"key": key})
    return run.run_id


def fail(tracker: Tracker, key: str, message: str = "x") -> str:
    with pytest.raises(DivergedError), tracker.start("dense", key, tags={"point": key}) as run:
        raise DivergedError(message)
    return run.run_id


def test_finished_runs_by_key_over_the_whole_store(uri: str, tracker: Tracker) -> None:
    first, other = finish(tracker, "fin-a"), finish(Tracker(uri, "another experiment"), "fin-b")
    finish(tracker, "fin-a")  # twice: the older one counts
    finish(tracker, "fin-c", invalid="its files differ")
    with tracker.start("dense", "no key", tags={"point": "fin-d"}):
        pass
    fail(tracker, "fin-e")
    with tracker.start("dense", "running", tags={"key": "fin-f"}) as run:
        found = tracker.find_all_finished()
        assert tracker.find_finished("fin-f") is None
    assert {key: row.run_id for key, row in found.items() if key.startswith("fin-")} == {
        "fin-a": first,
        "fin-b": other,
    }
    assert tracker.find_all_finished({"fin-b", "fin-x"}).keys() == {"fin-b"}
    rows = {key: tracker.find_finished(key) for key in ("fin-a", "fin-b", "fin-c", "fin-d", "fin-e", "fin-x")}
    assert {key: row.run_id for key, row in rows.items() if row} == {"fin-a": first, "fin-b": other}
    tracker.client.delete_run(other)
    assert tracker.find_finished("fin-b") is None
    assert run.run_id


def test_failed_runs_by_point_the_latest(tracker: Tracker) -> None:
    fail(tracker, "fail-a", "the first")
    latest = fail(tracker, "fail-a", "the second")
    finish(tracker, "fail-b")
    fail(tracker, "fail-c")
    found = tracker.find_all_failed({"fail-a", "fail-b", "fail-x"})
    assert {key: row.run_id for key, row in found.items()} == {"fail-a": latest}
    assert found["fail-a"].tags["reason"] == "DivergedError: the second"


def test_search_pages(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.client.PAGE_RUNS", 3)
    made = [finish(tracker, f"page-{n}") for n in range(8)]
    assert {row.run_id for row in tracker.search("tags.kind = 'dense'")} == set(made)


# ---- what a dead process left


def test_owners() -> None:
    assert is_owner_alive(owner())
    assert not is_owner_alive(dead_process())
    host, pid, started, tick = owner().split()
    assert not is_owner_alive(f"{host} {pid} {started} {tick[:-1]}")  # the pid was given to another
    assert not is_owner_alive(f"{host} {pid} {started} 00000000{tick[8:]}")  # before a reboot
    assert is_owner_alive(f"{host} {pid} {float(started) - 86_400:.2f} {tick}")  # the clock was set since
    assert is_owner_alive(f"{host} {pid} {started}")  # as runs of before say it
    assert not is_owner_alive(f"{host} {pid} {float(started) - 1000:.2f}")
    assert is_owner_alive(f"not-{host} 1 2.0")
    assert is_owner_alive("")  # a run of somebody else, by other means


def test_runs_of_dead_processes_are_closed(tracker: Tracker) -> None:
    runs = {}
    for name, tags in {
        "dead": {"owner": dead_process()},
        "living": {"owner": owner()},
        "elsewhere": {"owner": "another-host 1 2.0"},
    }.items():
        runs[name] = tracker.start("trial", name, tags=tags).run_id
    foreign = tracker.client.create_run(tracker.experiment_id).info.run_id
    tracker.close_abandoned()
    assert {name: tracker.get_run(run).status for name, run in runs.items()} == {
        "dead": "KILLED",
        "living": "RUNNING",
        "elsewhere": "RUNNING",
    }
    assert tracker.get_run(foreign).status == "RUNNING"
    assert "died" in tracker.get_run(runs["dead"]).tags["reason"]


def test_children_of_a_sweep_are_closed(tracker: Tracker) -> None:
    with tracker.start("sweep", "x", tags={}) as sweep:
        child = tracker.start("trial", "child", parent=sweep.run_id, tags={}).run_id
        other = tracker.start("trial", "other", tags={}).run_id
        with tracker.start("trial", "done", parent=sweep.run_id, tags={}) as done:
            pass
        tracker.close_children(sweep.run_id, "interrupted")
    found = [tracker.get_run(run).status for run in (child, other, done.run_id)]
    assert found == ["KILLED", "RUNNING", "FINISHED"]


# ---- experiments


def test_a_deleted_experiment_is_used_again(uri: str, tracker: Tracker) -> None:
    kept = finish(tracker, "deleted-a")
    tracker.client.delete_experiment(tracker.experiment_id)
    again = Tracker(uri, tracker.experiment)
    assert finish(again, "deleted-b") != kept
    assert again.experiment_id == tracker.experiment_id


def test_a_long_note_does_not_fail_a_sweep(tracker: Tracker) -> None:
    with tracker.start("sweep", "x", tags={}) as run:
        tracker.client.set_tag(run.run_id, tracking.NOTE, "| a | table |\n" * 2000)
    assert tracker.get_run(run.run_id).status == "FINISHED"


def test_the_compare_view_has_an_address() -> None:
    address = compare_address("http://127.0.0.1:5000", "1", ["a", "b"])
    assert unquote(address) == (
        'http://127.0.0.1:5000/#/compare-runs?runs=["a", "b"]&experiments=["1"]&workflowType=machine_learning'
    )


def test_pickles_are_refused_by_mlflow() -> None:
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_runs_that_bring_one_data_set_at_once_all_have_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.initialise(uri)
    tracker = Tracker(uri, "x")
    runs = [tracker.start("trial", f"{number}", tags={}) for number in range(8)]
    together = Barrier(len(runs))

    def bring(run: tracking.ActiveRun) -> None:
        together.wait()
        run.log_dataset("digits", "d" * 64, {"train": 1257})

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(bring, runs))
    for run in runs:
        assert len(tracker.client.get_run(run.run_id).inputs.dataset_inputs) == 1
