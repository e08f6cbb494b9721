"""What the driver of a sweep does about results that wait, at the start and at the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.execution.plan_runner import raise_if_disk_full
from orchestrator.storage import sqlite_runs
from orchestrator.storage.outbox import DataInput, Outbox, RunEnd, RunStart, new_pending_id
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import MetricPoint, Tracker, breaker_for, delivery
from orchestrator.tracking.delivery import check_all_delivered, deliver_pending, finish_with_retries
from orchestrator.trial.task import SweepOutcome, Task, TaskResult

DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
TRIAL = TrialConfig(DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.5), "none", "weight")
POINTS = [Task(DENSE.key(), "dense", DENSE), Task(TRIAL.key(), "weight", TRIAL, parent=DENSE.key())]


class Store:
    def __init__(self, folder: Path) -> None:
        self.uri = default_uri(folder)
        tracking.initialise(self.uri)
        self.tracker = Tracker(self.uri, "x")
        self.sweep = self.tracker.start("sweep", "x", tags={}).run_id
        self.outbox = Outbox(outbox_folder(self.uri))
        self.concluded = 0

    def pack(self, key: str, *, sweep: str = "", metric: str = "final/accuracy") -> None:
        data = DataInput("digits", "d" * 64, {"train": 1257})
        parent = sweep or self.sweep
        run_start = RunStart("x", "trial", f"run {key}", parent, key, {"point": key}, {}, data, 1_000_000)
        run_end = RunEnd("FINISHED", 2_000_000, {}, (MetricPoint(metric, 0.5),), key)
        with self.outbox.write(new_pending_id(key), run_start, lambda folder: run_end, params_logged=False):
            pass

    def conclude(self) -> int:
        self.concluded += 1
        return len(self.tracker.find_all_finished())

    def settle(self, ended: SweepOutcome | None = None) -> int:
        return finish_with_retries(self.uri, self.sweep, ended or SweepOutcome(()), self.conclude)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(delivery, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(delivery, "FIRST_RETRY_SECONDS", 0.1)
    store = Store(tmp_path)
    yield store
    breaker_for(store.uri).reset()


def refuse_to_answer(monkeypatch: pytest.MonkeyPatch, *, times: int = 1_000_000) -> Callable[[], int]:
    """The store's every way to begin a run fails so many times, as for a dead server."""
    real, calls = MlflowClient.create_run, [0]

    def create(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] <= times:
            raise MlflowException("API request failed with exception [Errno 111] Connection refused")
        return real(*args, **options)

    monkeypatch.setattr(sqlite_runs, "SCHEMAS", ())  # as a server's, which MLflow alone writes
    monkeypatch.setattr(MlflowClient, "create_run", create)
    return lambda: calls[0]


def test_all_is_delivered_before_the_sweep_is_concluded(store: Store) -> None:
    store.pack("a")
    store.pack("b")
    assert store.settle() == 2
    assert store.outbox.pending_runs() == []


def test_a_store_that_comes_back_in_time(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pack("a")
    calls = refuse_to_answer(monkeypatch, times=2)
    assert store.settle() == 1
    assert calls() == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1  # once, not at every try
    assert "[Errno 111] Connection refused; trying for 1 s" in err


def test_one_that_does_not_leaves_the_results_and_says_where(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pack("a")
    store.pack("b")
    store.pack("c", sweep="another sweep")
    refuse_to_answer(monkeypatch)
    with pytest.raises(StoreUnavailableError) as caught:
        store.settle()
    assert f"2 results wait in {store.outbox.folder}, and `orchestrate deliver` delivers them" in str(
        caught.value
    )
    assert caught.value.exit_code == 4
    assert (store.concluded, len(store.outbox.pending_runs())) == (0, 3)
    monkeypatch.undo()
    breaker_for(store.uri).reset()
    deliver_pending(store.uri)  # as the same command begins
    assert store.tracker.find_all_finished().keys() == {"a", "b", "c"}


def test_a_store_that_goes_away_while_the_end_is_written(store: Store) -> None:
    """The picture and the note are written again."""

    def conclude() -> str:
        store.concluded += 1
        if store.concluded < 3:
            raise MlflowException("API request failed with exception Connection refused")
        return "done"

    assert finish_with_retries(store.uri, store.sweep, SweepOutcome(()), conclude) == "done"
    store.concluded = -1_000_000
    with pytest.raises(
        StoreUnavailableError, match="every result is stored, and `orchestrate deliver` writes the comparison"
    ):
        finish_with_retries(store.uri, store.sweep, SweepOutcome(()), conclude)


def test_what_the_store_refuses_is_an_error_with_its_place(store: Store) -> None:
    store.pack("a", metric="no % here")
    with pytest.raises(StoreError, match=r"run a: the store .* refuses: .*; 1 result waits in "):
        store.settle()


def test_an_interrupted_sweep_waits_for_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SweepOutcome((), signal.SIGINT)
    store.pack("a")
    calls = refuse_to_answer(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        store.settle(stopped)
    assert calls() == 1
    monkeypatch.undo()
    breaker_for(store.uri).reset()
    assert store.settle(stopped) == 1


def test_results_on_other_nodes_are_not_passed_over() -> None:
    ended = SweepOutcome((TaskResult(POINTS[0], {"x": 1.0}), TaskResult(POINTS[1], {"x": 1.0})))
    frame = pandas.DataFrame({"key": [TRIAL.key(), "never run"], "status": ["missing", "missing"]})
    with pytest.raises(StoreError, match="1 result waits on other nodes of the cluster"):
        check_all_delivered(frame, ended)
    check_all_delivered(frame.assign(status="finished"), ended)
    check_all_delivered(frame, SweepOutcome(ended.results, signal.SIGINT))


def test_a_full_disk_ends_a_sweep_with_what_is_needed(store: Store) -> None:
    open_run = store.tracker.start("trial", "x", parent=store.sweep, tags={"point": "p"})
    ended = SweepOutcome(
        (TaskResult(POINTS[0], {"x": 1.0}),), disk_full="DiskFullError: no room is left in /disk: full"
    )
    with pytest.raises(DiskFullError) as caught:
        raise_if_disk_full(store.tracker, store.sweep, ended, POINTS)
    message = str(caught.value)
    assert message.startswith(f"no room is left in /disk: full; {store.outbox.folder.parents[1]} has ")
    assert "and the run that is left needs about 80.2 kB; make room" in message
    assert store.tracker.get_run(open_run.run_id).status == "KILLED"
    raise_if_disk_full(store.tracker, store.sweep, SweepOutcome(()), POINTS)
