"""What a run holds of its costs and classes beside the measurement."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.execution.worker import run_task
from orchestrator.model_io.load import saved_model
from orchestrator.storage.uri import default_uri
from orchestrator.system import provenance
from orchestrator.tracking import RunRecord, Tracker, initialise
from orchestrator.tracking.result_metrics import metric_points, write_result
from orchestrator.trial.metrics import compressed_bytes
from orchestrator.trial.run import run_dense, run_trial
from orchestrator.trial.task import Task, WorkerSettings

DENSE = DenseConfig("mlp(widths=[24, 16])", "digits", 64, 0, Train(epochs=3), Numerics(micro_batch=4096))
PRUNED = TrialConfig(
    DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.9), "finetune(epochs=1)", "weight"
)


class Nothing:
    def dense(self, config: DenseConfig) -> None:
        return None


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    uri = default_uri(tmp_path_factory.mktemp("store"))
    initialise(uri)
    settings = WorkerSettings(uri, "digits", "0" * 32, None, provenance.install_path())
    run_task(Task(DENSE.key(), "dense", DENSE), settings)
    run_task(Task(PRUNED.key(), "pruned", PRUNED, parent=DENSE.key()), settings)
    return Tracker(uri, "digits")


def row(tracker: Tracker, config: DenseConfig | TrialConfig) -> RunRecord:
    found = tracker.find_finished(config.key())
    assert found is not None
    return found


def classes(tracker: Tracker, config: DenseConfig | TrialConfig) -> list[dict[str, float]]:
    content = json.loads(tracker.read_text(row(tracker, config), "classes.json"))
    return [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]


def test_classes_add_up_to_the_accuracies(tracker: Tracker) -> None:
    found, metrics = classes(tracker, PRUNED), row(tracker, PRUNED).metrics
    assert [line["label"] for line in found] == list(loading.load_dataset("digits").class_names)
    assert [line["images"] for line in found] == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    for column, metric in (("accuracy", "final/accuracy"), ("accuracy_dense", "ipa/accuracy")):
        right = sum(line["images"] * line[column] for line in found)
        assert right / 360 == pytest.approx(metrics[metric])


def test_the_worst_class_is_one_of_the_table(tracker: Tracker) -> None:
    found, run = classes(tracker, PRUNED), row(tracker, PRUNED)
    drops = {str(line["label"]): line["accuracy_dense"] - line["accuracy"] for line in found}
    assert run.metrics["final/worst_class_accuracy"] == min(line["accuracy"] for line in found)
    assert run.metrics["final/worst_class_drop"] == max(drops.values()) > 0
    assert drops[run.tags["worst_class_drop"]] == max(drops.values())


def test_a_dense_network_has_lost_nothing(tracker: Tracker) -> None:
    run = row(tracker, DENSE)
    assert run.metrics["final/worst_class_drop"] == 0
    assert "worst_class_drop" not in run.tags


def test_the_recorded_network_is_what_is_compressed(tracker: Tracker) -> None:
    for config in (DENSE, PRUNED):
        run = row(tracker, config)
        state = saved_model(tracker, run).state()
        assert run.metrics["final/bytes_compressed"] == compressed_bytes(state.weights, state.masks)
        assert run.metrics["final/bytes_compressed"] < run.metrics["final/bytes_sparse"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_of_memory_is_told(tracker: Tracker) -> None:
    for config in (DENSE, PRUNED):
        assert 0 < row(tracker, config).metrics["final/peak_memory_bytes"] < 4e9


def test_what_another_process_may_find_otherwise_is_not_compared(tracker: Tracker) -> None:
    result = run_trial(PRUNED, loading.load_dataset("digits"), store=Nothing())
    names = {point.name for point in metric_points(result)}
    assert not {"final/peak_memory_bytes", "final/bytes_compressed"} & names
    assert {"final/worst_class_accuracy", "final/worst_class_drop"} <= names
    stopped = {point.name for point in metric_points(replace(result, stopped_because="hopeless"))}
    assert not {name for name in stopped if name.startswith("final/")}


class Attentive(nn.Module):
    """Tokens of 2x2 pixels under self-attention: 16 of 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.output = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.output(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return logits


def test_macs_of_no_prunable_layer_have_rows_and_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: embedding 16 x 8 x 4, in and out projections 16 x 8 x (24 + 8), products 2 x 16 x 16 x 8."""
    monkeypatch.setitem(models.BUILDERS, "attentive", lambda input_shape, num_classes: Attentive())
    dense = replace(DENSE, model="attentive", train=Train(epochs=1))
    result = run_dense(dense, loading.load_dataset("digits"))
    measured = result.last.measurement
    projected, products = 16 * 8 * 24, 2 * 16 * 16 * 8
    whole = 16 * 8 * 4 + 16 * 8 * 8 + 80 + projected + products
    assert (measured.macs_dense, measured.macs_effective, measured.macs_physical) == (whole, whole, whole)
    closing = write_result(
        tmp_path, 0, task=Task("0" * 64, "dense", dense), result=result, is_parent_stored=False, stop=None
    )
    notes = closing.tags["notes"]
    assert f"{projected + products:,} of {whole:,} MACs are in no prunable layer: (other) mix: " in notes
    assert "which FlopCounterMode does not count" in notes
    operators = json.loads((tmp_path / "operators.json").read_text())
    assert sum(operators["macs"].values()) == whole
    assert [note in notes for note in operators["notes"]] == [True] * len(operators["notes"])
    layers = json.loads((tmp_path / "layers.json").read_text())
    rows = [dict(zip(layers["columns"], row, strict=True)) for row in layers["data"]]
    others = {row["layer"]: row["macs_effective"] for row in rows if not row["weights"]}
    assert sorted(others.values()) == sorted([projected, products])
    names = {point.name for point in metric_points(result) if point.name.startswith("layers/")}
    assert names == {"layers/embed", "layers/mix.out_proj", "layers/output"}
