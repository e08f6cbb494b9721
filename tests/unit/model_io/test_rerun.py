"""A recorded run done again: the same bits, or the first thing that differs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from orchestrator import cli
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import DeviceError, StoreError
from orchestrator.execution.worker import run_task
from orchestrator.model_io.rerun import (
    BitwiseComparison,
    compare,
    environment_changes,
    find_recorded_run,
    masked,
    rerun,
)
from orchestrator.tracking import RunRecord, Tracker, initialise
from orchestrator.trial import stages
from orchestrator.trial.task import Task, WorkerSettings

NUMERICS = Numerics(micro_batch=4096)
DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), NUMERICS)
EPOCHS, TENSORS = 4, 3  # metrics of one epoch; weights of three layers without bias
REWIND = "rewind(to=1)"


def trial(schedule: str, recover: str, dense: DenseConfig = DENSE) -> TrialConfig:
    prune = Prune("magnitude()", "weight", "global", schedule, 0.5)
    return TrialConfig(dense, prune, recover, "unstructured")


TRIALS = {
    "masks alone": trial("one_shot()", "none"),
    "one-shot": trial("one_shot()", "finetune(epochs=2, lr=1.0)"),
    "lottery ticket": trial("iterative(rounds=3)", REWIND),
    "SAP": trial("pq_index(rounds=3)", "finetune(epochs=1, lr=1.0)"),
}


class Place:
    """A store in a folder, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        initialise(self.uri)
        self.tracker = Tracker(self.uri, "rerun")
        self.sweep = self.tracker.start("sweep", "x", tags={}).run_id
        self.run(DENSE)

    def run(self, config: DenseConfig | TrialConfig) -> RunRecord:
        parent = config.dense.key() if isinstance(config, TrialConfig) else None
        if self.tracker.find_finished(config.key()) is None:
            settings = WorkerSettings(self.uri, "rerun", self.sweep, None, models.__file__)
            run_task(Task(config.key(), "a name", config, parent=parent), settings)
        row = self.tracker.find_finished(config.key())
        assert row is not None
        return row


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("store"))


@pytest.fixture
def command(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setenv("ORCHESTRATE_DEBUG", "")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrate", *words])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        return int(raised.value.code or 0), *capsys.readouterr()

    return call


Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", ["dense", *TRIALS])
def test_a_run_comes_out_with_the_same_bits(place: Place, command: Command, name: str) -> None:
    config: DenseConfig | TrialConfig = DENSE if name == "dense" else TRIALS[name]
    row = place.run(config)
    stages._weights_at.cache_clear()  # another process would have to train it, too
    code, out, _ = command("rerun", row.run_id, "--check")
    assert code == 0
    lines = out.splitlines()
    masks = 0 if name == "dense" else 3
    assert lines[0].startswith(f"equal: {TENSORS + masks} tensors, ")
    metrics = int(lines[0].split()[-2])
    epochs = len(place.tracker.metric_history(row.run_id, "train/loss"))
    assert epochs == {"dense": 2, "masks alone": 0, "one-shot": 2, "lottery ticket": 3, "SAP": 3}[name]
    assert metrics > EPOCHS * epochs
    assert lines[1:] == ["environment: the same"]


def test_it_is_trained_anew_and_nothing_is_recorded(place: Place, command: Command) -> None:
    row = place.run(TRIALS["one-shot"])
    before = {run.run_id for run in place.tracker.search("")}
    code, out, err = command("rerun", f"runs:/{row.run_id}")
    assert (code, err.splitlines()) == (0, ["a name: cpu, threads: 1"])
    values = dict(line.split() for line in out.splitlines())
    assert float(values["final/accuracy"]) == pytest.approx(row.metrics["final/accuracy"], rel=1e-5)
    assert {run.run_id for run in place.tracker.search("")} == before
    # From the store its parent's time would be the recorded one.
    new = rerun(find_recorded_run(row.run_id, uri=place.uri))
    assert new.result.ipa.train_seconds != row.metrics["ipa/train_seconds"]


def remade(place: Place, row: RunRecord, edit: Callable[[Path], None]) -> None:
    """Change a recorded model, and make its manifest and tag match."""
    folder = place.tracker.download_folder(row, "model")
    edit(folder)
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    entries = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    text = json.dumps(entries).encode()
    (folder / "manifest.json").write_bytes(text)
    place.tracker.set_tag(row.run_id, "manifest_sha256", hashlib.sha256(text).hexdigest())


def test_one_changed_bit_is_named(place: Place, command: Command) -> None:
    row = place.run(replace(DENSE, seed=1))

    def flip(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        tensors["hidden.1.weight"].view(torch.int32)[2, 5] ^= 1
        save_file(tensors, folder / "weights.safetensors")

    remade(place, row, flip)
    code, out, err = command("rerun", row.run_id, "--check")
    assert code == 5
    lines = out.splitlines()
    assert lines[0].startswith("differs: 1 of ")
    assert f" values ({TENSORS} tensors, " in lines[0]
    assert lines[1].startswith("first: weights hidden.1.weight: 1 of 128 entries differ, by ")
    assert f"error: the rerun differs from run {row.run_id}: weights hidden.1.weight" in err


def test_a_changed_seed_is_named_with_its_epoch(place: Place, command: Command) -> None:
    row = place.run(replace(DENSE, seed=2))
    path = place.tracker.download_folder(row, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 3}))
    facts = place.tracker.download_folder(row, "environment.json")
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"python": "3.0", "gpu.0": "K80"}))
    code, out, err = command("rerun", row.run_id, "--check")
    assert code == 5
    assert "first: epoch 1, train/loss: " in out
    assert "environment: python: 3.0 recorded, 3." in out
    assert "environment: gpu.0: K80 recorded, not there now" in out
    assert "note: its key is another one by today's code" in err


def test_a_halved_micro_batch_is_said_first(place: Place, command: Command) -> None:
    row = place.run(replace(DENSE, seed=4))
    place.tracker.set_tag(row.run_id, "micro_batch_halved_to", "32")
    _, _, err = command("rerun", row.run_id)
    assert err.startswith("note: its micro-batch was halved to 32 as memory ran out: equal bits")


def test_a_run_without_own_facts_has_those_of_its_sweep(place: Place) -> None:
    row = place.run(replace(DENSE, seed=5))
    place.tracker.download_folder(row, "environment.json").unlink()
    recorded = find_recorded_run(row.run_id, uri=place.uri)
    new = rerun(recorded)
    place.tracker.upload(place.sweep, {"environment.json": json.dumps({"cores": "1000"})})
    differences = environment_changes(recorded, new)
    assert any(line.startswith("cores: 1000 recorded, ") for line in differences)
    assert compare(recorded, new).differences == []


def test_what_cannot_be_run_again_is_refused(place: Place) -> None:
    with pytest.raises(StoreError, match="is a sweep; only a dense run or a trial"):
        find_recorded_run(place.sweep, uri=place.uri)
    with place.tracker.start("trial", "x", tags={"stopped_key": "k"}) as run:
        pass
    with pytest.raises(StoreError, match="was stopped early"):
        find_recorded_run(run.run_id, uri=place.uri)
    with pytest.raises(StoreError, match="there is no store"):
        find_recorded_run("x", uri="sqlite:////nowhere/mlflow.db")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_run_of_a_gpu_needs_one(place: Place) -> None:
    found = find_recorded_run(place.run(DENSE).run_id, uri=place.uri)
    config = replace(DENSE, numerics=replace(NUMERICS, device="cuda"))
    with pytest.raises(DeviceError, match="no CUDA device"):
        rerun(replace(found, config=config))


def test_threads_are_the_recorded_ones_and_given_back(place: Place) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recorded = find_recorded_run(place.run(DENSE).run_id, uri=place.uri)
        assert compare(recorded, rerun(recorded)).differences == []
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bits_are_compared_and_not_values() -> None:
    same = BitwiseComparison()
    zero = torch.tensor([0.0, 1.0, float("nan")])
    same.add_tensors("weights", {"a": zero}, {"a": zero.clone()})
    assert same.differences == []
    same.add_tensors("weights", {"a": zero}, {"a": torch.tensor([-0.0, 1.0, float("nan")])})
    same.add_tensors("weights", {"b": zero}, {"b": zero.double()})
    same.add_tensors("mask", {"c": zero > 0}, {})
    same.add_metric("m", 0.1, None)
    assert same.differences == [
        "weights a: 1 of 3 entries differ, by 0 at most",
        "weights b: (3,) float32 recorded, (3,) float64 now",
        "mask c: not there now",
        "m: 0.1 recorded, none now",
    ]
    dead = masked({"a": torch.tensor([-1.0, 2.0])}, {"a": torch.tensor([False, True])})
    assert dead["a"].tolist() == [0.0, 2.0]
    assert not dead["a"].signbit()[0]


def test_the_first_difference_is_the_earliest_epoch() -> None:
    same = BitwiseComparison()
    then = {"train/loss": {1: 0.5, 2: 0.25}, "val/loss": {1: 0.5, 2: 0.3}}
    now = {"train/loss": {1: 0.5, 2: 0.2}, "val/loss": {1: 0.75, 2: 0.3, 3: 0.1}}
    same.add_epochs(then, now)
    assert same.differences == [
        "epoch 1, val/loss: 0.5 recorded, 0.75 now",
        "epoch 2, train/loss: 0.25 recorded, 0.2 now",
        "epoch 3, val/loss: none recorded, 0.1 now",
    ]
