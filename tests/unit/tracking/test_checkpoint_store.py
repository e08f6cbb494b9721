"""Checkpoints among the artifacts of a run: the last whole one is found, and none outlives its run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.data import loading
from orchestrator.errors import DivergedError, StoreUnavailableError
from orchestrator.execution.worker import run_task
from orchestrator.storage import model_files
from orchestrator.storage.outbox import DataInput, Outbox, RunEnd, RunStart
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.system import provenance
from orchestrator.tracking import RunRecord, Tracker, breaker_for, checkpoint_store
from orchestrator.tracking.checkpoint_store import MlflowCheckpointStore
from orchestrator.tracking.run_session import RunSession
from orchestrator.training.checkpoint_packing import Checkpoint
from orchestrator.trial.run import run_dense
from orchestrator.trial.task import Task, WorkerSettings


class Place:
    def __init__(self, uri: str) -> None:
        tracking.initialise(uri)
        self.uri = uri
        self.tracker = Tracker(uri, "x")
        self.outbox = Outbox(outbox_folder(uri))

    def entry(self, key: str, sweep: str = "a sweep") -> RunSession:
        data = DataInput("digits", "d" * 64, {"train": 1257})
        opening = RunStart("x", "trial", "a name", sweep, key, {"point": key}, {}, data, 1_000_000)
        return RunSession(self.tracker, self.outbox, opening).__enter__()

    def keeper(self, key: str, sweep: str = "a sweep") -> MlflowCheckpointStore:
        """That of a worker that has just begun."""
        return self.entry(key, sweep).checkpoints

    def row(self, keeper: MlflowCheckpointStore) -> RunRecord:
        return self.tracker.get_run(str(keeper.run_id))

    def files(self, keeper: MlflowCheckpointStore) -> list[str]:
        folder = self.tracker.local_folder(self.row(keeper), "")
        assert folder is not None
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(default_uri(tmp_path_factory.mktemp("store")))


def saved(number: int) -> Checkpoint:
    tensors = {
        "weight": torch.full((2, 3), float(number), dtype=torch.float64),
        "generator": torch.arange(number, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
    }
    return Checkpoint(tensors, {"epoch": number, "loss": [0.1 + 0.2, None], "name": "é"})


def number_of(found: Checkpoint | None) -> int | None:
    if found is None:
        return None
    number = found.metadata["epoch"]
    assert isinstance(number, int)
    expected = saved(number)
    assert found.metadata == expected.metadata
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    return number


def test_nothing_kept_is_nothing_found(place: Place) -> None:
    keeper = place.keeper("nothing")
    assert keeper.load_latest() is None
    assert (dict(keeper.tags()), list(keeper.obsolete_runs())) == ({}, [])
    assert place.keeper("nothing").load_latest() is None


def test_the_last_one_is_found_bit_for_bit(place: Place) -> None:
    first = place.keeper("last")
    for number in range(1, 4):
        first.save(saved(number))
        again = place.keeper("last", "another sweep")  # which closes nothing of the first
        assert number_of(again.load_latest()) == number
        assert again.carried_on_from == first.run_id
    assert place.files(first) == ["checkpoint/a.safetensors", "checkpoint/b.safetensors"]


def test_what_is_carried_on_is_said_and_closed(place: Place) -> None:
    first = place.keeper("carried")
    first.save(saved(1))
    second = place.keeper("carried")
    assert place.row(first).status == "KILLED"
    assert second.load_latest() is not None
    assert dict(second.tags()) == {"carried_on_from": first.run_id}


def test_a_crash_while_one_is_written_leaves_the_one_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.keeper("crash")
    first.save(saved(1))
    first.save(saved(2))
    tagged = place.row(first).tags[checkpoint_store.TAG]

    def cut(tracker: Tracker, run_id: str, files: dict[str, bytes]) -> None:
        folder = tracker.local_folder(tracker.get_run(run_id), "")
        assert folder is not None
        for path, content in files.items():
            (folder / path).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "upload", cut)
    with pytest.raises(KeyboardInterrupt):
        first.save(saved(3))
    assert place.row(first).tags[checkpoint_store.TAG] == tagged
    monkeypatch.undo()
    assert number_of(place.keeper("crash").load_latest()) == 2


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_one_that_is_not_as_it_was_written_is_passed_over(place: Place, harm: str) -> None:
    first = place.keeper(f"harm {harm}")
    first.save(saved(1))
    second = place.keeper(f"harm {harm}")
    assert second.load_latest() is not None
    second.save(saved(2))
    path = place.tracker.local_folder(place.row(second), "checkpoint/a.safetensors")
    assert path is not None
    if harm == "change":
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    else:
        path.unlink()
    third = place.keeper(f"harm {harm}")
    assert number_of(third.load_latest()) == 1
    assert third.carried_on_from == first.run_id


@pytest.mark.parametrize("tag", ["", "a", "a 1", "a one two", "c 1 0", "../../x 1 0", "a 1 0 0"])
def test_a_tag_that_nobody_here_has_written_is_passed_over(place: Place, tag: str) -> None:
    key = f"tag {tag!r}".replace("'", "")
    first = place.keeper(key)
    place.tracker.set_tag(str(first.run_id), checkpoint_store.TAG, tag)
    assert place.keeper(key).load_latest() is None


def test_the_newest_is_told_by_its_number_and_not_by_a_clock(place: Place) -> None:
    """Three runs, each begun a day before the former: as if the clock had been set back twice."""
    keepers = []
    for day in (3, 2, 1):
        keeper = place.keeper("clock")
        keeper.load_latest()
        keeper.save(saved(4 - day))
        keepers.append(keeper)
        set_start(place, keeper, day * 86_400_000)
    found = place.keeper("clock")
    assert number_of(found.load_latest()) == 3
    assert found.carried_on_from == keepers[-1].run_id


def set_start(place: Place, keeper: MlflowCheckpointStore, start_ms: int) -> None:
    with sqlite3.connect(place.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE runs SET start_time = ? WHERE run_uuid = ?", (start_ms, keeper.run_id))
    connection.close()


def test_a_finished_run_and_those_it_came_from_keep_none(place: Place) -> None:
    chain: list[MlflowCheckpointStore] = []
    for number in range(1, 4):
        keeper = place.keeper("finished")
        assert number_of(keeper.load_latest()) == (number - 1 or None)
        keeper.save(saved(number))
        chain.append(keeper)
    entry = place.entry("finished")
    last = entry.checkpoints
    assert number_of(last.load_latest()) == 3
    last.save(saved(4))
    chain.append(last)
    unrelated = place.keeper("not finished")
    unrelated.save(saved(1))

    def fill(folder: Path, end_ms: int) -> RunEnd:
        (folder / "model.safetensors").write_bytes(b"the result")
        return RunEnd("FINISHED", end_ms, {}, (), "finished")

    entry.finish(fill)
    assert [place.files(keeper) for keeper in chain] == [[], [], [], ["model.safetensors"]]
    assert all(checkpoint_store.TAG not in place.row(keeper).tags for keeper in chain)
    assert place.row(last).tags["carried_on_from"] == chain[2].run_id
    assert place.files(unrelated) == ["checkpoint/a.safetensors"]


def away(*args: Any, **options: Any) -> Any:
    raise MlflowException("API request failed with exception Connection refused")


def test_one_that_cannot_be_written_is_skipped_and_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = place.keeper("skipped")
    keeper.save(saved(1))
    monkeypatch.setattr(MlflowClient, "set_tag", away)
    keeper.save(saved(2))  # the line is down from here on
    keeper.save(saved(3))
    assert dict(keeper.tags()) == {"checkpoints_skipped": "2"}
    monkeypatch.undo()
    breaker_for(place.uri).reset()
    assert number_of(place.keeper("skipped").load_latest()) == 1


def test_a_run_that_could_not_be_opened_keeps_nothing(place: Place) -> None:
    keeper = MlflowCheckpointStore(place.tracker, None, [])
    keeper.save(saved(1))
    assert (dict(keeper.tags()), list(keeper.obsolete_runs())) == ({"checkpoints_skipped": "1"}, [])


def test_a_run_that_is_gone_has_nothing_to_remove(place: Place) -> None:
    assert checkpoint_store.delete_checkpoints(place.tracker, ["f" * 32]) == []


def test_a_store_that_is_away_is_no_run_that_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = place.keeper("away")
    keeper.save(saved(1))
    monkeypatch.setattr(MlflowClient, "get_run", away)
    with pytest.raises(StoreUnavailableError):
        checkpoint_store.delete_checkpoints(place.tracker, [str(keeper.run_id)])
    monkeypatch.undo()
    assert checkpoint_store.delete_checkpoints(place.tracker, [str(keeper.run_id)]) == []
    assert place.files(keeper) == []


def test_a_diverged_training_has_no_use_for_its_own_and_another_failure_has(place: Place) -> None:
    for error, left in ((DivergedError("x"), []), (RuntimeError("x"), ["checkpoint/a.safetensors"])):
        entry = place.entry(type(error).__name__)
        entry.checkpoints.save(saved(1))
        entry.__exit__(type(error), error, None)
        assert place.row(entry.checkpoints).status == "FAILED"
        assert place.files(entry.checkpoints) == left


# ---- through a worker


CONFIG = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=6), Numerics(micro_batch=4096))


def test_a_point_whose_worker_died_is_carried_on_with_the_same_bits(place: Place) -> None:
    sweep = place.tracker.start("sweep", "x", tags={}).run_id
    settings = WorkerSettings(place.uri, "x", sweep, None, provenance.install_path(), checkpoint_seconds=0.0)
    point = Task(CONFIG.key(), "dense", CONFIG)

    def die(at: float) -> Callable[[dict[str, float]], None]:
        def beat(values: dict[str, float]) -> None:
            if values["epoch"] == at:
                raise SystemExit

        return beat

    for epoch in (2.0, 5.0):
        with pytest.raises(SystemExit):
            run_task(point, settings, on_progress=die(epoch))
    heard: list[float] = []
    run_task(point, settings, on_progress=lambda values: heard.append(values["epoch"]))
    assert heard  # something was left to do
    assert heard[0] > 2.0  # and nothing of the first worker's was done again
    found = place.tracker.runs_of_task(point.key)
    (row,) = (row for row in found if row.status == "FINISHED")
    dead = {row.run_id for row in found if row.status == "KILLED"}
    assert len(dead) == 2
    assert row.tags["carried_on_from"] in dead
    for each in found:
        folder = place.tracker.local_folder(each, "checkpoint")
        assert folder is not None
        assert not folder.exists()
    saved_model = model_files.load_model(
        place.tracker.download_folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"]
    )
    whole = run_dense(CONFIG, loading.load_dataset("digits")).last.state
    again = saved_model.state()
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())
    history = place.tracker.client.get_metric_history(row.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [
        (step, record.train_loss) for step, record in enumerate(whole.history, start=1)
    ]
