"""One point run and recorded in a real store: what is in its run, and what is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from trained import Empty

import models
from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig, dense_from_json
from orchestrator.data import loading
from orchestrator.errors import DivergedError, StoreError
from orchestrator.execution.worker import run_task, run_tasks
from orchestrator.planning.plan import Plan, PlannedTrial
from orchestrator.planning.resume import remaining_tasks
from orchestrator.space.space import load_space
from orchestrator.space.techniques import resolve
from orchestrator.storage import model_files
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.tracking.delivery import shared_tracker
from orchestrator.tracking.dense_networks import StoredDenseNetworks
from orchestrator.trial.metrics import Measurement
from orchestrator.trial.params import params
from orchestrator.trial.run import run_dense, run_trial
from orchestrator.trial.task import Task, WorkerSettings, dump_tasks, load_tasks

MODEL = "mlp(widths=[16, 8])"
DENSE = DenseConfig(MODEL, "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
ROOT = Path(__file__).parents[3]
FINAL = {f"final/{name}" for name in Measurement.__dataclass_fields__}
TIMES = ("train_seconds", "test_seconds")


def trial_config(name: str = "weight", recover: str = "none", dense: DenseConfig = DENSE) -> TrialConfig:
    known = resolve(name, {})
    prune = Prune(known.criterion, known.granularity, known.scope, "one_shot", 0.5)
    return TrialConfig(dense, prune, recover, name)


def point(config: DenseConfig | TrialConfig) -> Task:
    parent = config.dense.key() if isinstance(config, TrialConfig) else None
    return Task(config.key(), "a name", config, parent=parent, tags={"colour": "blue"})


def timeless(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith(TIMES)}


class Place:
    """A store with a sweep's run, and what a worker is told of it."""

    def __init__(self, uri: str, experiment: str) -> None:
        tracking.initialise(uri)
        self.tracker = Tracker(uri, experiment)
        sweep = self.tracker.start("sweep", "x", tags={}).run_id
        self.outbox = Outbox(outbox_folder(uri))
        self.settings = WorkerSettings(uri, experiment, sweep, None, models.__file__)

    def run(self, config: DenseConfig | TrialConfig) -> tuple[RunRecord, dict[str, float]]:
        final = run_task(point(config), self.settings)
        return self.row(config), final

    def row(self, config: DenseConfig | TrialConfig) -> RunRecord:
        return next(iter(self.tracker.search(f"tags.point = '{config.key()}'")))

    def load(self, row: RunRecord) -> model_files.SavedModel:
        return model_files.load_model(
            self.tracker.download_folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"]
        )

    def steps(self, row: RunRecord, name: str) -> list[int]:
        return [point.step for point in self.tracker.client.get_metric_history(row.run_id, name)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(default_uri(tmp_path_factory.mktemp("store")), "digits")
    run_task(point(DENSE), found.settings)
    return found


def test_a_dense_run_is_whole(place: Place) -> None:
    row, images = place.row(DENSE), loading.load_dataset("digits")
    reference = run_dense(DENSE, images)
    assert (row.status, row.name) == ("FINISHED", "a name")
    assert row.params == {name: str(value) for name, value in params(DENSE).items()}
    assert row.metrics.keys() >= FINAL | {f"ipa/{name}" for name in Measurement.__dataclass_fields__}
    expected = timeless(reference.last.measurement.metrics("final"))
    assert {name: row.metrics[name] for name in expected} == expected
    assert place.steps(row, "final/accuracy") == place.steps(row, "ipa/accuracy") == [0]
    assert place.steps(row, "layers/hidden.0") == [0]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/lr", "train/seconds"):
        assert place.steps(row, name) == [1, 2]
    tags = {"kind": "dense", "key": DENSE.key(), "point": DENSE.key(), "colour": "blue"}
    assert row.tags.items() >= {**tags, "mlflow.parentRunId": place.settings.sweep_run}.items()
    (given,) = place.tracker.client.get_run(row.run_id).inputs.dataset_inputs
    assert given.dataset.digest == images.digest[:36]


def test_a_dense_run_keeps_its_files(place: Place) -> None:
    row = place.row(DENSE)
    confusion = torch.tensor(json.loads(place.tracker.read_text(row, "confusion.json")))
    assert confusion.sum() == 360
    assert confusion.trace() / 360 == pytest.approx(row.metrics["final/accuracy"])
    layers = json.loads(place.tracker.read_text(row, "layers.json"))
    assert [line[0] for line in layers["data"]] == ["hidden.0", "hidden.1", "output"]
    config = json.loads(place.tracker.read_text(row, "config.json"))
    assert load_tasks(dump_tasks([point(DENSE)]))[0].config == dense_from_json(config)
    operators = json.loads(place.tracker.read_text(row, "operators.json"))
    assert operators["macs"] == {"hidden.0": 64 * 16, "hidden.1": 16 * 8, "output": 8 * 10}
    assert operators["notes"] == []
    assert operators.keys() == {"macs", "notes", "unsupported", "not_counted"}


def test_the_reloaded_dense_network_is_the_computed_one(place: Place) -> None:
    computed = run_dense(DENSE, loading.load_dataset("digits")).last.state
    for loaded in (
        place.load(place.row(DENSE)).state(),
        StoredDenseNetworks(place.tracker, place.outbox).dense(DENSE),
    ):
        assert loaded is not None
        assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in computed.weights.items())
        spent = (loaded.epochs, loaded.train_flops, loaded.micro_batch)
        assert spent == (computed.epochs, computed.train_flops, computed.micro_batch)


@pytest.mark.parametrize("recover", ["none", "finetune(epochs=3, lr=1.0)"])
@pytest.mark.parametrize("name", ["weight", "structured"])
def test_a_trial_starts_from_the_stored_network(place: Place, name: str, recover: str) -> None:
    config = trial_config(name, recover)
    row, final = place.run(config)
    computed = run_trial(config, loading.load_dataset("digits"), store=Empty()).last
    assert row.tags.items() >= {("kind", "trial"), ("key", config.key())}
    assert row.tags.get("notes", "") == "; ".join(computed.notes)
    assert timeless(final) == timeless(computed.measurement.metrics("final"))
    assert {name: row.metrics[name] for name in final} == final
    dense = place.row(DENSE).metrics
    assert [row.metrics[f"ipa/{x}"] for x in ("accuracy", "loss")] == [
        dense["final/accuracy"],
        dense["final/loss"],
    ]
    assert row.metrics["ipa/train_seconds"] == dense["final/train_seconds"]  # nothing was trained again
    assert place.steps(row, "train/loss") == ([] if recover == "none" else [1, 2, 3])
    assert place.steps(row, "round/sparsity") == [1]
    saved = place.load(row)
    assert all(torch.equal(saved.masks[key], mask) for key, mask in computed.state.masks.items())
    if recover == "none":
        assert (saved.weights, saved.arch["parent"]) == (None, DENSE.key())
    else:
        assert all(torch.equal(saved.state().weights[key], w) for key, w in computed.state.weights.items())
    widths = saved.arch["cut_widths"]
    assert widths == (
        {"hidden.0": [8, 64], "hidden.1": [4, 8], "output": [10, 4]} if name == "structured" else None
    )


def test_rounds_are_counted_on(place: Place) -> None:
    config = trial_config("unstructured", "finetune(epochs=2, lr=1.0)")
    config = replace(config, prune=replace(config.prune, schedule="iterative(rounds=3)"))
    row, _ = place.run(config)
    assert place.steps(row, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert place.steps(row, "round/accuracy") == [1, 2, 3]
    assert row.metrics["round/accuracy"] == row.metrics["final/accuracy"]


def test_a_diverged_training_is_a_result_without_a_key(place: Place) -> None:
    config = replace(DENSE, train=Train(epochs=2, optimizer="sgd", lr=1e30))
    with pytest.raises(DivergedError):
        run_task(point(config), place.settings)
    row = place.row(config)
    assert row.status == "FAILED"
    assert (row.tags["diverged"], "epoch 1 of 2" in row.tags["reason"]) == ("true", True)
    assert "key" not in row.tags
    assert not {name for name in row.metrics if name.startswith("final/")}
    assert config.key() in place.tracker.find_all_failed({config.key()})
    assert place.tracker.find_all_finished({config.key()}) == {}


def test_what_waits_for_a_diverged_training_is_not_tried_again(place: Place) -> None:
    config = replace(DENSE, seed=20, train=Train(epochs=1, optimizer="sgd", lr=1e30))
    trials = [trial_config(name, dense=config) for name in ("weight", "neuron")]
    plan = Plan(
        load_space("quickstart"),
        tuple(PlannedTrial(trial, trial.key(), 64) for trial in trials),
        (config,),
        (),
    )

    def missing(retry_failed: bool = False) -> list[str]:
        points, _ = remaining_tasks(plan, place.tracker, retry_failed=retry_failed)
        return [point.key for point in points]

    everything = [config.key(), *(trial.key() for trial in trials)]
    assert missing() == everything
    with pytest.raises(DivergedError):
        run_task(point(config), place.settings)
    assert missing() == []
    assert missing(retry_failed=True) == everything


def test_an_error_leaves_a_failed_run_without_a_key(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(DENSE, seed=77)

    def broken(*args: object, **options: object) -> str:
        raise RuntimeError("out of order")

    monkeypatch.setattr(model_files, "save_model", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        run_task(point(config), place.settings)
    row = place.row(config)
    assert (row.status, "key" in row.tags, "diverged" in row.tags) == ("FAILED", False, False)
    assert row.tags["reason"] == "RuntimeError: out of order"
    assert "in broken" in place.tracker.read_text(row, "traceback.txt")
    assert place.outbox.pending_runs() == []


def test_a_dense_network_that_is_stored_later_is_found(place: Place) -> None:
    config = replace(DENSE, seed=5)
    assert StoredDenseNetworks(place.tracker, place.outbox).dense(config) is None
    run_task(point(config), place.settings)
    assert StoredDenseNetworks(place.tracker, place.outbox).dense(config) is not None


def test_a_stored_network_that_was_changed_is_refused(place: Place) -> None:
    config = replace(DENSE, seed=6)
    row, _ = place.run(config)
    path = place.tracker.download_folder(row, "model") / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        StoredDenseNetworks(place.tracker, place.outbox).dense(config)


def test_other_models_packages_are_refused(place: Place) -> None:
    with pytest.raises(StoreError, match="another version of the code"):
        run_task(point(DENSE), replace(place.settings, code="/elsewhere/models/__init__.py"))


def test_points_survive_being_text() -> None:
    protected = replace(trial_config(), prune=replace(trial_config().prune, protect=("output",)))
    for config in (DENSE, trial_config(), protected):
        (again,) = load_tasks(dump_tasks([point(config)]))
        assert again == point(config)
        assert again.config.key() == again.key


def test_beats_are_heard(place: Place) -> None:
    heard: list[dict[str, float]] = []
    run_task(point(replace(DENSE, seed=8)), place.settings, on_progress=heard.append)
    assert heard == [{"epoch": 1.0}, {"epoch": 2.0}]


def test_a_run_takes_few_calls(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = shared_tracker(place.settings.uri, place.settings.experiment).client
    calls: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **options: object) -> object:
            calls[name] += 1
            return method(*args, **options)

        return call

    for name in [name for name in dir(type(client)) if not name.startswith("_")]:
        method = getattr(client, name)
        if callable(method):
            monkeypatch.setattr(client, name, counted(name, method))
    for config in (replace(DENSE, seed=9), trial_config("random")):
        calls.clear()
        run_task(point(config), place.settings)
        assert sum(calls.values()) <= 8, calls


FIRST_POINTS = """\
import sys
from pathlib import Path
sys.path += ["tests", "tests/unit/execution"]
from test_worker import DENSE, Place, trial_config
from orchestrator.storage.uri import default_uri
place = Place(default_uri(Path(sys.argv[1])), "x")
for config in (DENSE, trial_config("weight", "finetune(epochs=1)")):
    place.run(config)
print(*sys.modules)
"""


def test_a_point_loads_neither_scikit_learn_nor_the_compiler(tmp_path: Path) -> None:
    """Each would cost every worker a second or two."""
    tracking.initialise(default_uri(tmp_path))  # here a store is a copy; the child would make every table
    done = forked.python(FIRST_POINTS, str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "fvcore" in loaded
    assert not loaded & {"sklearn", "sympy", "torch._dynamo", "torch._inductor"}


def test_a_full_run_of_memory_is_tagged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build

    def refuse(net: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def narrow(*args: Any, **options: Any) -> torch.nn.Module:
        net = build(*args, **options)
        net.register_forward_pre_hook(refuse)
        return net

    monkeypatch.setattr(models, "build", narrow)
    row, _ = place.run(replace(DENSE, seed=10))
    assert row.tags["micro_batch_halved_to"] == "16"
    assert "micro_batch_halved_to" not in place.row(DENSE).tags


def test_tasks_of_a_stack_are_recorded_each_as_by_itself(tmp_path: Path) -> None:
    """Dense trainings of three seeds, one of which diverges, and then trials of the other two."""
    found = Place(default_uri(tmp_path), "stacks")
    wild = replace(DENSE, seed=1, train=replace(DENSE.train, optimizer="sgd", lr=1e30))
    dense = [replace(config, train=replace(wild.train, lr=0.1)) for config in (DENSE, replace(DENSE, seed=2))]
    ended = run_tasks([point(config) for config in (dense[0], wild, dense[1])], found.settings)
    assert isinstance(ended[1], DivergedError)
    assert found.row(wild).status == "FAILED"
    assert found.row(wild).tags["reason"] == f"DivergedError: {ended[1]}"
    for config, final in ((dense[0], ended[0]), (dense[1], ended[2])):
        expected = timeless(
            run_dense(config, loading.load_dataset("digits")).last.measurement.metrics("final")
        )
        assert isinstance(final, dict)
        assert timeless(final) == expected
        row = found.row(config)
        assert row.tags["stack"] == "2"
        # The peak of the process is that of all members together.
        assert "final/peak_memory_bytes" not in row.metrics
    trials = [trial_config(recover="finetune(epochs=2)", dense=config) for config in dense]
    together = run_tasks([point(config) for config in trials], found.settings)
    alone = Place(default_uri(tmp_path / "alone"), "stacks")
    for config, final in zip([*dense, *trials], [ended[0], ended[2], *together], strict=True):
        row, by_itself = alone.run(config)
        assert isinstance(final, dict)
        assert timeless(final) == timeless(by_itself)
        assert "stack" not in row.tags
        ours, theirs = (place.load(place.row(config)).state() for place in (found, alone))
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    # A worker that died after its work: what is stored is not run again.
    again = run_tasks([point(config) for config in trials], found.settings)
    for stored, final in zip(again, together, strict=True):
        assert isinstance(stored, dict)
        assert isinstance(final, dict)
        assert {name: stored[name] for name in final} == final
    assert len(list(found.tracker.search("tags.kind = 'trial'"))) == 2


def test_trials_without_training_are_recorded_one_after_the_other(tmp_path: Path) -> None:
    found, alone = (Place(default_uri(tmp_path / name), "short") for name in ("together", "alone"))
    trials = [trial_config(technique, "none") for technique in ("weight", "neuron", "structured")]
    for place in (found, alone):
        place.run(DENSE)
    together = run_tasks([point(config) for config in trials], found.settings)
    for config, final in zip(trials, together, strict=True):
        row, by_itself = alone.run(config)
        assert isinstance(final, dict)
        assert timeless(final) == timeless(by_itself)
        ours, theirs = (timeless(dict(r.metrics)) for r in (found.row(config), row))
        # Each had the process to itself while it ran.
        assert ours.pop("final/peak_memory_bytes") >= 0
        assert theirs.pop("final/peak_memory_bytes") >= 0
        assert ours == theirs
        assert "stack" not in found.row(config).tags
