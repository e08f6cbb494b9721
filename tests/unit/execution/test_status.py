"""How far a sweep is, told from hand-made stores."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli
from orchestrator.errors import StoreError
from orchestrator.execution import status as module
from orchestrator.execution.status import status
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.storage.locks import owner
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import MetricPoint, RunRecord, Tracker, initialise

DEAD = owner().split()[0] + " 999999999 1.0"
NOW = 1_000_000.0  # seconds


def planned(*keys: str) -> dict[str, str]:
    """Trials `a1`, `a2`, ... of the dense network `a`."""
    return {key: key[0] for key in keys}


def run_row(point: str, state: str, *, below: str = "S", start: float = 0.0, end: float = 0.0) -> RunRecord:
    """A run of a point: `done` with accuracy 0.5, or `running`, `dead`, `stopped`, `failed`, `killed`.

    `start` and `end` in seconds before NOW.
    """
    known = {
        "done": ("FINISHED", {"key": point}),
        "invalid": ("FINISHED", {"key": point, "invalid": "x"}),
        "running": ("RUNNING", {"owner": owner()}),
        "dead": ("RUNNING", {"owner": DEAD}),
        "stopped": ("FINISHED", {"stopped_key": f"{point} median()"}),
        "failed": ("FAILED", {"reason": f"{point} broke"}),
        "killed": ("KILLED", {}),
    }
    run_status, tags = known[state]
    tags = {"owner": owner(), "point": point, "mlflow.parentRunId": below, **tags}
    over = None if run_status == "RUNNING" else int((NOW - end) * 1000)
    metrics = {"final/val_accuracy": 0.5}
    return RunRecord("r", f"run {point}", run_status, {}, metrics, tags, "", int((NOW - start) * 1000), over)


def sweep_row(run_status: str, *, holder: str = "", started: float = 100.0, end: float = 0.0) -> RunRecord:
    """A sweep taken up `started` seconds before NOW by this host's process 1, or by `holder`."""
    tags = {"kind": "sweep", "space": "s", "owner": holder or f"h 1 {NOW - started:.2f}"}
    over = None if run_status == "RUNNING" else int((NOW - end) * 1000)
    return RunRecord("S", "s", run_status, {}, {}, tags, "", int((NOW - started) * 1000), over)


def test_each_trial_is_in_one_count() -> None:
    trials = planned("a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "c1")
    runs = [
        run_row("a6", "killed"),
        run_row("a2", "running"),
        run_row("a2", "failed"),  # the try before
        run_row("c", "running"),
        run_row("b", "failed"),
        run_row("a4", "failed"),
        run_row("a3", "stopped"),
        run_row("a1", "done"),
        run_row("a5", "invalid"),
        run_row("a", "done"),
    ]
    found = module.make_status(sweep_row("RUNNING"), trials, runs, now=NOW)
    counts = (found.done, found.running, found.stopped, found.failed, found.missing)
    assert counts == (1, 1, 1, 3, 3)  # failed: a4, and b1 and b2 with their network; missing: a5, a6, c1
    assert (sum(counts), found.planned) == (9, 9)
    dense = (found.dense_done, found.dense_running, found.dense_failed, found.dense_missing)
    assert (dense, found.dense_planned) == ((1, 1, 1, 0), 3)
    assert found.failures == (("run b", "b broke"), ("run a4", "a4 broke"))
    assert (found.state, found.host, found.pid) == ("running", "h", 1)


def test_the_best_is_by_validation_accuracy_and_reused_ones_are_told_apart() -> None:
    better = run_row("a2", "done", below="another sweep")
    better = RunRecord(**{**vars(better), "metrics": {"final/val_accuracy": 0.75, "final/accuracy": 0.1}})
    found = module.make_status(
        sweep_row("FINISHED"), planned("a1", "a2"), [run_row("a1", "done"), better], now=NOW
    )
    assert (found.best_name, found.best_val_accuracy) == ("run a2", 0.75)
    assert (found.done, found.reused, found.left_seconds) == (2, 1, None)
    assert "trials   2/2: 2 done (1 by other sweeps)" in "\n".join(found.lines())
    assert (found.dense_planned, found.dense_missing) == (0, 0)  # gone from the store, and of no use any more


def test_time_left_goes_by_the_runs_of_this_process() -> None:
    trials = planned("a1", "a2", "a3", "a4", "a5", "b1", "b2")
    runs = [
        run_row("a3", "running", start=10),
        run_row("a2", "done", start=40, end=10),
        run_row("a", "done", start=80, end=40),
        run_row("a1", "done", start=5000, end=4000),  # by the process before
    ]
    found = module.make_status(sweep_row("RUNNING"), trials, runs, now=NOW)
    # One at a time: 40 s for b, 20 more for a3, 30 each for a4, a5, b1 and b2.
    assert found.left_seconds == pytest.approx(40 + 20 + 4 * 30)
    beside = [*runs, run_row("b", "running", start=35)]  # beside a2 and a3
    found = module.make_status(sweep_row("RUNNING"), trials, beside, now=NOW)
    assert found.left_seconds == pytest.approx((5 + 20 + 4 * 30) / 2)
    assert found.elapsed_seconds == pytest.approx(100)
    nothing = module.make_status(sweep_row("RUNNING"), trials, runs[-1:], now=NOW)
    assert nothing.left_seconds is None


def test_a_sweep_whose_process_is_gone_is_interrupted() -> None:
    runs = [run_row("a1", "dead", start=20), run_row("a", "done", start=70, end=30)]
    dead = module.make_status(sweep_row("RUNNING", holder=DEAD), planned("a1"), runs, now=NOW)
    assert (dead.state, dead.running, dead.missing, dead.left_seconds) == ("interrupted", 0, 1, None)
    assert dead.elapsed_seconds == pytest.approx(80)  # from 100 s ago to the last run's start 20 s ago
    stopped = module.make_status(sweep_row("KILLED", end=25), planned("a1"), [], now=NOW)
    assert (stopped.state, stopped.elapsed_seconds) == ("interrupted", pytest.approx(75))
    assert module.make_status(sweep_row("FINISHED"), planned("a1"), [], now=NOW).state == "finished"


def test_what_a_search_has_yet_to_ask_for_is_missing() -> None:
    runs = [run_row("a2", "running", start=10), run_row("a1", "done", start=40, end=10)]
    found = module.make_status(sweep_row("RUNNING"), planned("a1", "a2"), runs, now=NOW, unasked=5)
    assert (found.planned, found.done, found.running, found.missing) == (7, 1, 1, 5)
    assert found.left_seconds == pytest.approx(20 + 5 * 30)  # a2, and five more


def test_five_failures_are_shown() -> None:
    keys = [f"a{number}" for number in range(7)]
    runs = [run_row(key, "failed") for key in keys]
    found = module.make_status(sweep_row("FINISHED"), planned(*keys), runs, now=NOW)
    lines = [line for line in found.lines() if line.startswith("failed ")]
    assert lines[0] == "failed   run a0: a0 broke"
    assert (len(lines), lines[-1]) == (6, "failed   and 2 more")
    assert len(found.to_json()["failures"]) == 7


# ---- a real store


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a finished sweep `old`, and a sweep `new` that this process runs."""
    found = default_uri(tmp_path_factory.mktemp("store"))
    initialise(found)
    for space in ("old", "new"):
        tracker = Tracker(found, space)
        sweep = tracker.start("sweep", space, tags={"space": space})
        rows = [{"key": f"{space}{number}", "dense_key": space} for number in (1, 2)]
        tracker.upload(sweep.run_id, {PLAN: dump_plan(rows, space=space)})
        with tracker.start("trial", "good", parent=sweep.run_id, tags={"point": f"{space}1"}) as run:
            run.log(metrics=[MetricPoint("final/val_accuracy", 0.875)], tags={"key": f"{space}1"})
        if space == "old":
            sweep.__exit__(None, None, None)
    return found


def test_the_latest_sweep_is_meant_unless_one_is_named(uri: str) -> None:
    latest = status(uri=uri)
    assert (latest.space, latest.state, latest.done, latest.missing) == ("new", "running", 1, 1)
    assert (latest.best_name, latest.best_val_accuracy) == ("good", 0.875)
    old = status("old", uri=uri)
    assert (old.space, old.state, old.planned) == ("old", "finished", 2)
    assert status(old.sweep, uri=uri).space == "old"
    with pytest.raises(StoreError, match="unknown sweep 'odl'; did you mean old"):
        status("odl", uri=uri)
    with pytest.raises(StoreError, match="there is no store"):
        status(uri="sqlite:////nowhere/mlflow.db")


@pytest.mark.parametrize("sweep", [None, "old"])
def test_it_takes_a_handful_of_calls(uri: str, sweep: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **options: object) -> object:
            calls[name] += 1
            return method(*args, **options)

        return call

    from mlflow import MlflowClient

    for name in [name for name in dir(MlflowClient) if not name.startswith("_")]:
        method = getattr(MlflowClient, name)
        if callable(method):
            monkeypatch.setattr(MlflowClient, name, counted(name, method))
    status(sweep, uri=uri)
    assert sum(calls.values()) <= 7, calls
    assert calls or sweep is None  # the latest of all is found in the tables, without MLflow


def test_the_command_prints_lines_or_json(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["orchestrate", "status", *words])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert not raised.value.code
        return capsys.readouterr().out

    lines = call("old").splitlines()
    assert lines[:4] == [
        "old: finished",
        "dense    0/1: 0 done, 1 missing",
        "trials   1/2: 1 done, 1 missing",
        "best     0.875 validation accuracy, good",
    ]
    found = json.loads(call("--json"))
    assert (found["space"], found["done"], found["failures"]) == ("new", 1, [])


def test_an_empty_store_has_no_sweep(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    initialise(uri)
    with pytest.raises(StoreError, match="no sweep in"):
        status(uri=uri)
