"""Parcels into a real store: broken off anywhere and tried again, there is one run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from orchestrator import tracking
from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.storage import sqlite_runs
from orchestrator.storage.outbox import DataInput, Outbox, PendingRun, RunEnd, RunStart, new_pending_id
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import (
    COOLDOWN_SECONDS,
    MetricPoint,
    RunRecord,
    Tracker,
    breaker_for,
    client,
    run_writer,
)
from orchestrator.tracking.delivery import deliver_all, deliver_run
from orchestrator.tracking.run_session import RunSession

METRICS = (
    MetricPoint("final/accuracy", 0.75),
    MetricPoint("train/loss", 2.0, 1),
    MetricPoint("train/loss", 1.0, 2),
)
DATA = DataInput("digits", "d" * 64, {"train": 1257})


class Crash(Exception):  # noqa: N818 - it is none
    """The process ends here."""


class Store:
    def __init__(self, uri: str) -> None:
        tracking.initialise(uri)
        self.uri = uri
        self.tracker = Tracker(uri, "x")
        self.sweep = self.tracker.start("sweep", "x", tags={}).run_id
        self.outbox = Outbox(outbox_folder(uri))

    def run_start(self, key: str) -> RunStart:
        tags = {"point": key, "colour": "blue"}
        return RunStart(
            "x", "trial", "a name", self.sweep, key, tags, {"amount": 0.5, "n": None}, DATA, 1_000_000
        )

    def pack(self, key: str, **run_end: Any) -> PendingRun:
        def fill(folder: Path) -> RunEnd:
            (folder / "model").mkdir()
            (folder / "model" / "weights").write_text(key)
            ending = RunEnd("FINISHED", 2_000_000, {"manifest_sha256": "m"}, METRICS, key)
            return replace(ending, **run_end)

        run_start = self.run_start(key)
        with self.outbox.write(new_pending_id(key), run_start, fill, params_logged=False) as pending_run:
            return pending_run

    def entry(self, key: str) -> RunSession:
        return RunSession(self.tracker, self.outbox, self.run_start(key))

    def runs(self, key: str) -> list[RunRecord]:
        return self.tracker.search(f"tags.point = '{key}'")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(default_uri(tmp_path_factory.mktemp("store")))


def fill(folder: Path, end_ms: int, *, key: str) -> RunEnd:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text(key)
    return RunEnd("FINISHED", end_ms, {"manifest_sha256": "m"}, METRICS, key)


@contextmanager
def leaving(entry: RunSession) -> Iterator[None]:
    """The rest of an entry's block, which was entered before."""
    with ExitStack() as stack:
        stack.push(entry)
        yield


def check_whole(store: Store, row: RunRecord, key: str) -> None:
    assert (row.name, row.status) == ("a name", "FINISHED")
    assert (
        row.tags.items()
        >= {
            "key": key,
            "point": key,
            "colour": "blue",
            "kind": "trial",
            "manifest_sha256": "m",
            "mlflow.parentRunId": store.sweep,
        }.items()
    )
    assert not row.tags.keys() & {"reason", "duplicate_of"}
    assert row.params == {"amount": "0.5", "n": "None"}
    assert row.metrics == {"final/accuracy": 0.75, "train/loss": 1.0}
    history = store.tracker.client.get_metric_history(row.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]  # each of them once
    assert store.tracker.read_text(row, "model/weights") == key
    assert store.tracker.data_digests(row.run_id) == {"digits": "d" * 36}
    assert row.end_ms is not None
    assert row.end_ms >= row.start_ms


# ---- whole deliveries


def test_a_parcel_becomes_a_run_and_goes(store: Store) -> None:
    store.pack("whole")
    assert deliver_all(store.uri, store.outbox) == {}
    (row,) = store.runs("whole")
    check_whole(store, row, "whole")
    assert (row.start_ms, row.end_ms) == (1_000_000, 2_000_000)
    assert store.outbox.pending_runs() == []
    assert deliver_all(store.uri, store.outbox) == {}  # nothing to do


def test_an_entry_is_running_and_then_whole(store: Store) -> None:
    with store.entry("entered") as entry:
        (row,) = store.runs("entered")
        assert (row.status, row.params) == ("RUNNING", {"amount": "0.5", "n": "None"})
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="entered"))
    (row,) = store.runs("entered")
    check_whole(store, row, "entered")
    assert store.outbox.pending_runs() == []


def test_a_failure_is_delivered_as_one(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.entry("failed"):
        1 / 0  # noqa: B018
    (row,) = store.runs("failed")
    assert (row.status, row.tags["reason"]) == ("FAILED", "ZeroDivisionError: division by zero")
    assert "1 / 0" in store.tracker.read_text(row, "traceback.txt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_no_parcel(store: Store, error: type[BaseException]) -> None:
    with pytest.raises(error), store.entry(error.__name__):
        raise error
    (row,) = store.runs(error.__name__)
    assert row.status == "KILLED"
    assert store.outbox.pending_runs() == []


def test_a_dead_worker_s_run_is_closed_by_the_next(store: Store) -> None:
    store.entry("dead").__enter__()  # its worker dies here
    elsewhere = store.tracker.start("trial", "x", parent="another sweep", tags={"point": "dead"})
    with store.entry("dead") as entry:
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="dead"))
    states = sorted((row.status, row.tags.get("reason", "")) for row in store.runs("dead"))
    assert states == [("FINISHED", ""), ("KILLED", "its worker died"), ("RUNNING", "")]
    assert store.tracker.get_run(elsewhere.run_id).status == "RUNNING"  # another sweep is at it


def test_a_key_that_another_run_has_by_now_is_not_given_twice(store: Store) -> None:
    with store.entry("twice") as late:
        with store.entry("twice but first") as first:
            first.finish(lambda folder, end_ms: fill(folder, end_ms, key="twice"))
        late.finish(lambda folder, end_ms: fill(folder, end_ms, key="twice"))
    (winner,) = store.runs("twice but first")
    (loser,) = store.runs("twice")
    assert winner.tags["key"] == "twice"
    assert (loser.status, loser.tags["duplicate_of"], "key" in loser.tags) == (
        "FINISHED",
        winner.run_id,
        False,
    )
    assert store.tracker.find_all_finished({"twice"})["twice"].run_id == winner.run_id


# ---- broken off


Steps = list[tuple[Any, str]]  # classes and modules, and what each calls
BY_MLFLOW: Steps = [
    (MlflowClient, "create_run"),
    (MlflowClient, "log_batch"),
    (MlflowClient, "log_inputs"),
    (LocalArtifactRepository, "log_artifacts"),
    (MlflowClient, "set_terminated"),
    (Outbox, "remove"),
]
BY_ROWS: Steps = [
    (client, "create_run"),
    (LocalArtifactRepository, "log_artifacts"),
    (run_writer, "write_rows"),
    (Outbox, "remove"),
]


def breaking_off(monkeypatch: pytest.MonkeyPatch, steps: Steps, at: int, *, after: bool = False) -> list[str]:
    """Let the at-th call of these steps crash, before it does anything or after all is done."""
    calls: list[str] = []
    for owner, name in steps:
        monkeypatch.setattr(owner, name, crashing(getattr(owner, name), name, calls, at, after))
    return calls


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """`breaking(n, after)`: the n-th call crashes in a store whose tables MLflow alone writes."""

    def arrange(at: int, after: bool) -> list[str]:
        monkeypatch.setattr(sqlite_runs, "SCHEMAS", ())
        return breaking_off(monkeypatch, BY_MLFLOW, at, after=after)

    return arrange


def crashing(method: Any, name: str, calls: list[str], at: int, after: bool) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        calls.append(name)
        is_failing = len(calls) == at
        if is_failing and not after:
            raise Crash(name)
        result = method(*args, **options)
        if is_failing:
            raise Crash(name)
        return result

    return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
def test_broken_off_at_any_step_and_tried_again_there_is_one_run(
    store: Store,
    breaking: Callable[[int, bool], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    after: bool,
) -> None:
    key = f"broken {at} {after}"
    store.pack(key)
    calls = breaking(at, after)
    with pytest.raises(Crash):
        deliver_all(store.uri, store.outbox)
    assert len(calls) == at
    monkeypatch.undo()
    assert deliver_all(store.uri, store.outbox) == {}
    (row,) = store.runs(key)
    check_whole(store, row, key)
    assert store.outbox.pending_runs() == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 5))
def test_broken_off_between_two_transactions_and_tried_again_there_is_one_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    key = f"rows {at} {after}"
    store.pack(key)
    calls = breaking_off(monkeypatch, BY_ROWS, at, after=after)
    with pytest.raises(Crash):
        deliver_all(store.uri, store.outbox)
    assert calls == [name for _, name in BY_ROWS[:at]]
    monkeypatch.undo()
    assert deliver_all(store.uri, store.outbox) == {}
    (row,) = store.runs(key)
    check_whole(store, row, key)
    assert store.outbox.pending_runs() == []


def test_those_are_all_the_steps(store: Store, breaking: Callable[[int, bool], list[str]]) -> None:
    store.pack("all steps")
    calls = breaking(0, False)
    deliver_all(store.uri, store.outbox)
    assert calls == [
        "create_run",
        "log_batch",
        "log_inputs",
        "log_artifacts",
        "log_batch",  # metrics, and the key last
        "set_terminated",
        "remove",
    ]


def test_a_run_that_was_given_up_meanwhile_is_finished_all_the_same(
    store: Store, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pack("given up")
    breaking(4, False)
    with pytest.raises(Crash):
        deliver_all(store.uri, store.outbox)
    monkeypatch.undo()
    store.tracker.close_children(store.sweep, "interrupted")
    (row,) = store.runs("given up")
    assert (row.status, row.tags["reason"]) == ("KILLED", "interrupted")
    deliver_all(store.uri, store.outbox)
    (row,) = store.runs("given up")
    check_whole(store, row, "given up")


def test_a_run_that_was_deleted_meanwhile_is_made_anew(
    store: Store, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pack("deleted")
    breaking(4, False)
    with pytest.raises(Crash):
        deliver_all(store.uri, store.outbox)
    monkeypatch.undo()
    (row,) = store.runs("deleted")
    store.tracker.client.delete_run(row.run_id)
    deliver_all(store.uri, store.outbox)
    (again,) = store.runs("deleted")
    assert again.run_id != row.run_id
    check_whole(store, again, "deleted")


def test_the_worker_s_own_run_is_gone_on_with_after_a_crash(
    store: Store, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.entry("own").__enter__()
    calls = breaking(2, False)
    with pytest.raises(Crash), leaving(entry):
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="own"))
    assert calls == ["log_artifacts", "log_batch"]
    monkeypatch.undo()
    (row,) = store.runs("own")
    assert row.status == "RUNNING"  # neither failed nor finished: its result waits
    (pending_run,) = store.outbox.pending_runs()
    assert pending_run.params_logged
    deliver_all(store.uri, store.outbox)
    (row,) = store.runs("own")
    check_whole(store, row, "own")


# ---- the store is away, full, or refuses


def away(*args: Any, **options: Any) -> Any:
    raise MlflowException("API request failed with exception Connection refused")  # as for a dead server


@pytest.fixture
def rested(store: Store) -> Iterator[None]:
    yield
    breaker_for(store.uri).reset()


def test_a_store_that_is_away_is_asked_once_and_then_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, rested: None
) -> None:
    tried: list[str] = []

    def create(*args: Any, **options: Any) -> Any:
        tried.append("create_run")
        return away()

    monkeypatch.setattr(sqlite_runs, "SCHEMAS", ())  # as a server's, which MLflow alone writes
    monkeypatch.setattr(MlflowClient, "create_run", create)
    for name in ("away 1", "away 2", "away 3"):
        with store.entry(name) as entry:
            assert entry.run is None
            entry.finish(lambda folder, end_ms, name=name: fill(folder, end_ms, key=name))  # type: ignore[misc]
    assert tried == ["create_run"]
    assert len(store.outbox.pending_runs()) == 3
    with pytest.raises(StoreUnavailableError, match="cannot be reached: API request failed"):
        deliver_all(store.uri, store.outbox)
    monkeypatch.undo()
    breaker_for(store.uri).reset()
    with store.entry("back") as entry:  # delivers what others had to leave
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="back"))
    assert store.outbox.pending_runs() == []
    for name in ("away 1", "away 2", "away 3", "back"):
        (row,) = store.runs(name)
        check_whole(store, row, name)


def test_a_store_that_was_away_is_asked_again_after_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch, rested: None
) -> None:
    now = 1000.0
    monkeypatch.setattr("orchestrator.tracking.errors.monotonic", lambda: now)
    with pytest.raises(StoreUnavailableError), store.tracker.translating_errors():
        away()
    with pytest.raises(StoreUnavailableError, match="Connection refused"), store.tracker.translating_errors():
        pytest.fail("the store was asked")
    now += COOLDOWN_SECONDS
    with store.tracker.translating_errors():
        asked = True
    assert asked


def test_one_that_is_refused_does_not_hold_up_the_others(store: Store) -> None:
    bad = store.pack("refused", metrics=(MetricPoint("no % here", 1.0),))
    store.pack("welcome")
    refused = deliver_all(store.uri, store.outbox)
    assert list(refused) == ["a name"]
    assert "refuses" in refused["a name"]
    check_whole(store, store.runs("welcome")[0], "welcome")
    assert store.outbox.pending_runs() == [bad]
    assert "key" not in store.runs("refused")[0].tags
    store.outbox.remove(bad)


def test_a_full_disk_leaves_the_parcel(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pending_run = store.pack("full")

    def full(*args: Any, **options: Any) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", full)
    with pytest.raises(DiskFullError, match="no room is left for the store"):
        deliver_all(store.uri, store.outbox)
    assert store.outbox.pending_runs() == [pending_run]
    monkeypatch.undo()
    deliver_all(store.uri, store.outbox)
    check_whole(store, store.runs("full")[0], "full")


def test_a_full_disk_is_no_failure_of_the_trial(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    entry = store.entry("no room").__enter__()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError), leaving(entry):
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="no room"))
    (row,) = store.runs("no room")
    assert row.status == "KILLED"
    assert "no room is left" in row.tags["reason"]
    assert store.outbox.pending_runs() == []


def test_a_held_parcel_is_left_to_who_holds_it(store: Store) -> None:
    pending_run = store.pack("held")
    with store.outbox.locked(pending_run) as is_locked:
        assert is_locked
        deliver_all(store.uri, store.outbox)
        assert store.runs("held") == []
        deliver_run(store.tracker, store.outbox, pending_run)
    check_whole(store, store.runs("held")[0], "held")


def test_one_without_a_store_is_an_error_of_one_line(store: Store) -> None:
    with pytest.raises(StoreError) as caught, store.tracker.translating_errors():
        store.tracker.client.get_run("f" * 32)
    assert "\n" not in str(caught.value)
