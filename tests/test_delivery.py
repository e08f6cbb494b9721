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
from orchestrator.storage.outbox import DataInput, Outbox, PendingRun, RunEnd, RunStart, new_pending_id
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import COOLDOWN_SECONDS, MetricPoint, RunRecord, Tracker, breaker_for
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


class Place:
    def __init__(self, uri: str) -> None:
        tracking.initialise(uri)
        self.uri = uri
        self.tracker = Tracker(uri, "x")
        self.sweep = self.tracker.start("sweep", "x", tags={}).run_id
        self.outbox = Outbox(outbox_folder(uri))

    def opening(self, key: str) -> RunStart:
        tags = {"point": key, "colour": "blue"}
        return RunStart(
            "x", "trial", "a name", self.sweep, key, tags, {"amount": 0.5, "n": None}, DATA, 1_000_000
        )

    def pack(self, key: str, **closing: Any) -> PendingRun:
        def fill(folder: Path) -> RunEnd:
            (folder / "model").mkdir()
            (folder / "model" / "weights").write_text(key)
            ending = RunEnd("FINISHED", 2_000_000, {"manifest_sha256": "m"}, METRICS, key)
            return replace(ending, **closing)

        with self.outbox.write(new_pending_id(key), self.opening(key), fill, params_logged=False) as parcel:
            return parcel

    def entry(self, key: str) -> RunSession:
        return RunSession(self.tracker, self.outbox, self.opening(key))

    def runs(self, key: str) -> list[RunRecord]:
        return self.tracker.search(f"tags.point = '{key}'")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(default_uri(tmp_path_factory.mktemp("store")))


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


def check_whole(place: Place, row: RunRecord, key: str) -> None:
    assert (row.name, row.status) == ("a name", "FINISHED")
    assert (
        row.tags.items()
        >= {
            "key": key,
            "point": key,
            "colour": "blue",
            "kind": "trial",
            "manifest_sha256": "m",
            "mlflow.parentRunId": place.sweep,
        }.items()
    )
    assert not row.tags.keys() & {"reason", "duplicate_of"}
    assert row.params == {"amount": "0.5", "n": "None"}
    assert row.metrics == {"final/accuracy": 0.75, "train/loss": 1.0}
    history = place.tracker.client.get_metric_history(row.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]  # each of them once
    assert place.tracker.read_text(row, "model/weights") == key
    assert place.tracker.data_digests(row.run_id) == {"digits": "d" * 36}
    assert row.end_ms is not None
    assert row.end_ms >= row.start_ms


# ---- whole deliveries


def test_a_parcel_becomes_a_run_and_goes(place: Place) -> None:
    place.pack("whole")
    assert deliver_all(place.uri, place.outbox) == {}
    (row,) = place.runs("whole")
    check_whole(place, row, "whole")
    assert (row.start_ms, row.end_ms) == (1_000_000, 2_000_000)
    assert place.outbox.pending_runs() == []
    assert deliver_all(place.uri, place.outbox) == {}  # nothing to do


def test_an_entry_is_running_and_then_whole(place: Place) -> None:
    with place.entry("entered") as entry:
        (row,) = place.runs("entered")
        assert (row.status, row.params) == ("RUNNING", {"amount": "0.5", "n": "None"})
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="entered"))
    (row,) = place.runs("entered")
    check_whole(place, row, "entered")
    assert place.outbox.pending_runs() == []


def test_a_failure_is_delivered_as_one(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.entry("failed"):
        1 / 0  # noqa: B018
    (row,) = place.runs("failed")
    assert (row.status, row.tags["reason"]) == ("FAILED", "ZeroDivisionError: division by zero")
    assert "1 / 0" in place.tracker.read_text(row, "traceback.txt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_no_parcel(place: Place, error: type[BaseException]) -> None:
    with pytest.raises(error), place.entry(error.__name__):
        raise error
    (row,) = place.runs(error.__name__)
    assert row.status == "KILLED"
    assert place.outbox.pending_runs() == []


def test_a_dead_worker_s_run_is_closed_by_the_next(place: Place) -> None:
    place.entry("dead").__enter__()  # its worker dies here
    elsewhere = place.tracker.start("trial", "x", parent="another sweep", tags={"point": "dead"})
    with place.entry("dead") as entry:
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="dead"))
    states = sorted((row.status, row.tags.get("reason", "")) for row in place.runs("dead"))
    assert states == [("FINISHED", ""), ("KILLED", "its worker died"), ("RUNNING", "")]
    assert place.tracker.get_run(elsewhere.run_id).status == "RUNNING"  # another sweep is at it


def test_a_key_that_another_run_has_by_now_is_not_given_twice(place: Place) -> None:
    with place.entry("twice") as late:
        with place.entry("twice but first") as first:
            first.finish(lambda folder, end_ms: fill(folder, end_ms, key="twice"))
        late.finish(lambda folder, end_ms: fill(folder, end_ms, key="twice"))
    (winner,) = place.runs("twice but first")
    (loser,) = place.runs("twice")
    assert winner.tags["key"] == "twice"
    assert (loser.status, loser.tags["duplicate_of"], "key" in loser.tags) == (
        "FINISHED",
        winner.run_id,
        False,
    )
    assert place.tracker.find_all_finished({"twice"})["twice"].run_id == winner.run_id


# ---- broken off


STEPS: list[tuple[type, str]] = [
    (MlflowClient, "create_run"),
    (MlflowClient, "log_batch"),
    (MlflowClient, "log_inputs"),
    (LocalArtifactRepository, "log_artifacts"),
    (MlflowClient, "set_terminated"),
    (Outbox, "remove"),
]


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """`breaking(n, after)`: the n-th call of STEPS crashes, before it does anything or after all is done."""

    def arrange(at: int, after: bool) -> list[str]:
        calls: list[str] = []
        for owner, name in STEPS:
            monkeypatch.setattr(owner, name, crashing(getattr(owner, name), name, calls, at, after))
        return calls

    return arrange


def crashing(method: Any, name: str, calls: list[str], at: int, after: bool) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        calls.append(name)
        mine = len(calls) == at
        if mine and not after:
            raise Crash(name)
        result = method(*args, **options)
        if mine:
            raise Crash(name)
        return result

    return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
def test_broken_off_at_any_step_and_tried_again_there_is_one_run(
    place: Place,
    breaking: Callable[[int, bool], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    after: bool,
) -> None:
    key = f"broken {at} {after}"
    place.pack(key)
    calls = breaking(at, after)
    with pytest.raises(Crash):
        deliver_all(place.uri, place.outbox)
    assert len(calls) == at
    monkeypatch.undo()
    assert deliver_all(place.uri, place.outbox) == {}
    (row,) = place.runs(key)
    check_whole(place, row, key)
    assert place.outbox.pending_runs() == []


def test_those_are_all_the_steps(place: Place, breaking: Callable[[int, bool], list[str]]) -> None:
    place.pack("all steps")
    calls = breaking(0, False)
    deliver_all(place.uri, place.outbox)
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
    place: Place, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.pack("given up")
    breaking(4, False)
    with pytest.raises(Crash):
        deliver_all(place.uri, place.outbox)
    monkeypatch.undo()
    place.tracker.close_children(place.sweep, "interrupted")
    (row,) = place.runs("given up")
    assert (row.status, row.tags["reason"]) == ("KILLED", "interrupted")
    deliver_all(place.uri, place.outbox)
    (row,) = place.runs("given up")
    check_whole(place, row, "given up")


def test_a_run_that_was_deleted_meanwhile_is_made_anew(
    place: Place, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.pack("deleted")
    breaking(4, False)
    with pytest.raises(Crash):
        deliver_all(place.uri, place.outbox)
    monkeypatch.undo()
    (row,) = place.runs("deleted")
    place.tracker.client.delete_run(row.run_id)
    deliver_all(place.uri, place.outbox)
    (again,) = place.runs("deleted")
    assert again.run_id != row.run_id
    check_whole(place, again, "deleted")


def test_the_worker_s_own_run_is_gone_on_with_after_a_crash(
    place: Place, breaking: Callable[[int, bool], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = place.entry("own").__enter__()
    calls = breaking(2, False)
    with pytest.raises(Crash), leaving(entry):
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="own"))
    assert calls == ["log_artifacts", "log_batch"]
    monkeypatch.undo()
    (row,) = place.runs("own")
    assert row.status == "RUNNING"  # neither failed nor finished: its result waits
    (parcel,) = place.outbox.pending_runs()
    assert parcel.params_logged
    deliver_all(place.uri, place.outbox)
    (row,) = place.runs("own")
    check_whole(place, row, "own")


# ---- the store is away, full, or refuses


def away(*args: Any, **options: Any) -> Any:
    raise MlflowException("API request failed with exception Connection refused")  # as for a dead server


@pytest.fixture
def rested(place: Place) -> Iterator[None]:
    yield
    breaker_for(place.uri).reset()


def test_a_store_that_is_away_is_asked_once_and_then_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, rested: None
) -> None:
    tried: list[str] = []

    def create(*args: Any, **options: Any) -> Any:
        tried.append("create_run")
        return away()

    monkeypatch.setattr(MlflowClient, "create_run", create)
    for name in ("away 1", "away 2", "away 3"):
        with place.entry(name) as entry:
            assert entry.run is None
            entry.finish(lambda folder, end_ms, name=name: fill(folder, end_ms, key=name))  # type: ignore[misc]
    assert tried == ["create_run"]
    assert len(place.outbox.pending_runs()) == 3
    with pytest.raises(StoreUnavailableError, match="cannot be reached: API request failed"):
        deliver_all(place.uri, place.outbox)
    monkeypatch.undo()
    breaker_for(place.uri).reset()
    with place.entry("back") as entry:  # delivers what others had to leave
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="back"))
    assert place.outbox.pending_runs() == []
    for name in ("away 1", "away 2", "away 3", "back"):
        (row,) = place.runs(name)
        check_whole(place, row, name)


def test_a_store_that_was_away_is_asked_again_after_a_while(
    place: Place, monkeypatch: pytest.MonkeyPatch, rested: None
) -> None:
    now = 1000.0
    monkeypatch.setattr("orchestrator.tracking.errors.monotonic", lambda: now)
    with pytest.raises(StoreUnavailableError), place.tracker.translating_errors():
        away()
    with pytest.raises(StoreUnavailableError, match="Connection refused"), place.tracker.translating_errors():
        pytest.fail("the store was asked")
    now += COOLDOWN_SECONDS
    with place.tracker.translating_errors():
        asked = True
    assert asked


def test_one_that_is_refused_does_not_hold_up_the_others(place: Place) -> None:
    bad = place.pack("refused", metrics=(MetricPoint("no % here", 1.0),))
    place.pack("welcome")
    refused = deliver_all(place.uri, place.outbox)
    assert list(refused) == ["a name"]
    assert "refuses" in refused["a name"]
    check_whole(place, place.runs("welcome")[0], "welcome")
    assert place.outbox.pending_runs() == [bad]
    assert "key" not in place.runs("refused")[0].tags
    place.outbox.remove(bad)


def test_a_full_disk_leaves_the_parcel(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel = place.pack("full")

    def full(*args: Any, **options: Any) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", full)
    with pytest.raises(DiskFullError, match="no room is left for the store"):
        deliver_all(place.uri, place.outbox)
    assert place.outbox.pending_runs() == [parcel]
    monkeypatch.undo()
    deliver_all(place.uri, place.outbox)
    check_whole(place, place.runs("full")[0], "full")


def test_a_full_disk_is_no_failure_of_the_trial(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    entry = place.entry("no room").__enter__()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError), leaving(entry):
        entry.finish(lambda folder, end_ms: fill(folder, end_ms, key="no room"))
    (row,) = place.runs("no room")
    assert row.status == "KILLED"
    assert "no room is left" in row.tags["reason"]
    assert place.outbox.pending_runs() == []


def test_a_held_parcel_is_left_to_who_holds_it(place: Place) -> None:
    parcel = place.pack("held")
    with place.outbox.locked(parcel) as mine:
        assert mine
        deliver_all(place.uri, place.outbox)
        assert place.runs("held") == []
        deliver_run(place.tracker, place.outbox, parcel)
    check_whole(place, place.runs("held")[0], "held")


def test_one_without_a_store_is_an_error_of_one_line(place: Place) -> None:
    with pytest.raises(StoreError) as caught, place.tracker.translating_errors():
        place.tracker.client.get_run("f" * 32)
    assert "\n" not in str(caught.value)
