"""Points that are run while the store does not answer: the work is done, and comes to the store later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.errors import DiskFullError, DivergedError
from orchestrator.execution.worker import run_task
from orchestrator.space.techniques import resolve
from orchestrator.storage import model_files
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.system import provenance
from orchestrator.tracking import RunRecord, Tracker, breaker_for
from orchestrator.tracking.delivery import deliver_all
from orchestrator.trial.run import run_dense
from orchestrator.trial.task import Task, WorkerSettings

DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
DEAD = "http://127.0.0.1:9"  # nobody listens there
DAY = 86_400.0


def trial(dense: DenseConfig = DENSE, amount: float = 0.5) -> TrialConfig:
    known = resolve("weight", {})
    prune = Prune(known.criterion, known.granularity, known.scope, "one_shot", amount)
    return TrialConfig(dense, prune, "none", "weight")


def point(config: DenseConfig | TrialConfig) -> Task:
    parent = config.dense.key() if isinstance(config, TrialConfig) else None
    return Task(config.key(), "a name", config, parent=parent)


class Place:
    """A store, and a server that is not there whose results wait in a folder."""

    def __init__(self, folder: Path) -> None:
        self.uri = default_uri(folder)
        tracking.initialise(self.uri)
        self.tracker = Tracker(self.uri, "digits")
        self.sweep = self.tracker.start("sweep", "x", tags={}).run_id
        code = provenance.install_path()
        self.there = WorkerSettings(self.uri, "digits", self.sweep, None, code)
        self.gone = replace(self.there, uri=DEAD, state_dir=str(folder / "state"))
        self.waiting = Outbox(outbox_folder(DEAD, str(folder / "state")))
        self.own = Outbox(outbox_folder(self.uri))

    def row(self, key: str) -> RunRecord:
        (row,) = self.tracker.runs_of_task(key)
        return row


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield Place(tmp_path)
    breaker_for(DEAD).reset()


def numbers(row: RunRecord) -> dict[str, float]:
    return {n: v for n, v in row.metrics.items() if "seconds" not in n and "bytes" not in n}


def test_a_trial_finds_its_dense_network_among_what_waits(place: Place) -> None:
    run_task(point(DENSE), place.gone)
    final = run_task(point(trial()), place.gone)
    dense, pruned = place.waiting.pending_runs()
    assert (dense.start.kind, pruned.start.kind) == ("dense", "trial")
    assert pruned.final_metrics.items() >= final.items()
    # The same network: its own training has no epochs in the trial's curves, and no seconds in its cost.
    assert "train/loss" not in {metric.name for metric in pruned.end.metrics}
    spent = {m.name: m.value for m in pruned.end.metrics}
    assert spent["ipa/train_seconds"] == dense.final_metrics["final/train_seconds"]

    assert deliver_all(place.uri, place.waiting) == {}
    assert place.waiting.pending_runs() == []
    run_task(point(trial(amount=0.25)), place.there)  # finds the delivered one
    again = replace(DENSE, seed=1)
    run_task(point(again), place.there)
    for key in (DENSE.key(), trial().key(), trial(amount=0.25).key(), again.key()):
        row = place.row(key)
        assert (row.status, row.tags["key"]) == ("FINISHED", key)
    late, early = place.row(DENSE.key()), place.row(again.key())
    assert late.params.keys() == early.params.keys()
    assert late.metrics.keys() == early.metrics.keys()
    by_result = {"worst_class_drop", "notes"}  # of networks that have lost a class, or are at chance
    assert late.tags.keys() - by_result == early.tags.keys() - by_result
    # What waited for its parent, too, holds all its weights: the parent might never have arrived.
    saved = model_files.load_model(
        place.tracker.download_folder(place.row(trial().key()), "model"),
        manifest_sha256=place.row(trial().key()).tags["manifest_sha256"],
    )
    assert saved.weights is not None
    assert final.items() <= place.row(trial().key()).metrics.items()


def test_waiting_or_not_the_results_are_equal(place: Place) -> None:
    run_task(point(DENSE), place.gone)
    run_task(point(trial()), place.gone)
    deliver_all(place.uri, place.waiting)
    late = numbers(place.row(trial().key()))
    other = Place(place.waiting.folder.parents[2] / "other")
    run_task(point(DENSE), other.there)
    run_task(point(trial()), other.there)
    assert late == numbers(other.row(trial().key()))
    weights = [
        run_dense(DENSE, loading.load_dataset("digits")).last.state.weights,
        model_files.load_model(
            place.tracker.download_folder(place.row(DENSE.key()), "model"),
            manifest_sha256=place.row(DENSE.key()).tags["manifest_sha256"],
        )
        .state()
        .weights,
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_waits_is_not_run_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_task(point(DENSE), place.gone)

    def never(*args: object, **options: object) -> None:
        pytest.fail("it was run again")

    monkeypatch.setattr("orchestrator.execution.worker.run_dense", never)
    second = run_task(point(DENSE), place.gone)
    assert {name: second[name] for name in first} == first
    assert len(place.waiting.pending_runs()) == 1


def test_what_is_stored_is_not_run_again_either(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker died after all was done, and before anybody heard of it."""
    first = run_task(point(DENSE), place.there)

    def never(*args: object, **options: object) -> None:
        pytest.fail("it was run again")

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.execution.worker.run_dense", never)
        second = run_task(point(DENSE), place.there)
    assert first.items() <= second.items()
    row = place.row(DENSE.key())  # which is the only one
    place.tracker.set_tag(row.run_id, "invalid", "its files are not as they were written")
    run_task(point(DENSE), place.there)
    again = place.tracker.find_all_finished({DENSE.key()})[DENSE.key()]
    assert again.run_id != row.run_id


def test_a_failure_waits_as_well(place: Place) -> None:
    config = replace(DENSE, train=Train(epochs=1, optimizer="sgd", lr=1e30))
    with pytest.raises(DivergedError):
        run_task(point(config), place.gone)
    deliver_all(place.uri, place.waiting)
    row = place.row(config.key())
    assert (row.status, row.tags["diverged"], "key" in row.tags) == ("FAILED", "true", False)
    assert "DivergedError" in row.tags["reason"]
    assert config.key() in place.tracker.find_all_failed({config.key()})


def test_a_disk_that_is_full_when_the_result_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one writing function fails, at each of its calls: nothing is left that could be taken for whole."""
    from orchestrator.system import files

    run_task(point(DENSE), place.there)
    real, fault = files.write_file, {"at": 0, "calls": 0}

    def write(path: Path, content: bytes | str) -> None:
        fault["calls"] += 1
        if fault["calls"] == fault["at"]:
            path.write_bytes(b"half")  # as much as there was room for
            raise OSError(28, "No space left on device")
        real(path, content)

    for module in (
        "storage.model_files",
        "storage.outbox",
        "tracking.result_metrics",
        "tracking.run_session",
    ):
        monkeypatch.setattr(f"orchestrator.{module}.write_file", write)
    config, tried = trial(amount=0.75), 0
    while True:
        tried += 1
        fault.update(at=tried, calls=0)
        try:
            run_task(point(config), place.there)
            break
        except DiskFullError as error:
            said = str(error)
        assert "no room is left in" in said
        assert place.own.pending_runs() == []
        assert config.key() not in place.tracker.find_all_finished()
        assert {row.status for row in place.tracker.runs_of_task(config.key())} == {"KILLED"}
        assert not [path for path in place.own.folder.iterdir() if not path.name.startswith(".lock")]
    assert tried > 8  # model, tables, run.json: each of them once
    assert place.tracker.find_all_finished({config.key()})[config.key()].status == "FINISHED"


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Each reading of the clock is a day further, or a day back."""
    real, readings = time.time, [0]

    def jumping() -> float:
        readings[0] += 1
        return real() + jump * (readings[0] % 3)

    monkeypatch.setattr(time, "time", jumping)
    for config in (DENSE, trial(), trial(amount=0.75)):
        run_task(point(config), place.there)
        row = place.row(config.key())
        assert (row.status, row.tags["key"]) == ("FINISHED", config.key())
        assert row.end_ms is not None
        assert 0 <= row.end_ms - row.start_ms < 600_000
        assert len(row.metrics) == len({*row.metrics})
    monkeypatch.undo()
    plain = Place(place.own.folder.parents[2] / "plain")
    for config in (DENSE, trial(), trial(amount=0.75)):
        run_task(point(config), plain.there)
        assert numbers(plain.row(config.key())) == numbers(place.row(config.key()))


def test_a_clock_that_was_set_back_while_results_waited(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    run_task(point(DENSE), place.gone)
    monkeypatch.setattr(time, "time", lambda: real() - DAY)
    breaker_for(DEAD).reset()
    run_task(point(trial()), place.gone)
    assert deliver_all(place.uri, place.waiting) == {}
    found = place.tracker.find_all_finished({DENSE.key(), trial().key()})
    assert found.keys() == {DENSE.key(), trial().key()}
