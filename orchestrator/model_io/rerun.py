"""Run a recorded configuration again, and compare the results bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from orchestrator.config import DenseConfig, TrialConfig, dense_from_json
from orchestrator.data.files import data_folder
from orchestrator.data.loading import Dataset, load_data
from orchestrator.errors import DeviceError, StoreError
from orchestrator.model_io.load import read_code, saved_model, weights_of
from orchestrator.model_io.model_lookup import source_of_run
from orchestrator.planning.changes import config_differences
from orchestrator.planning.fingerprints import with_current_fingerprints
from orchestrator.storage import model_files
from orchestrator.system.determinism import NONDETERMINISTIC_TAG, deterministic, summary, torch_threads
from orchestrator.system.provenance import environment
from orchestrator.tracking import DIGEST_LENGTH, RunRecord, Tracker, open_store
from orchestrator.tracking.result_metrics import CONFIG, ENVIRONMENT, metric_points
from orchestrator.tracking.source_models import load_source_model
from orchestrator.training.loop import RunTraining, run_training
from orchestrator.trial.context import NetworkState
from orchestrator.trial.run import TrialResult, run_dense, run_trial

EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
History = Mapping[str, Mapping[int, float]]  # metric name -> step -> value


@dataclass
class BitwiseComparison:
    """The number of compared tensors and metrics, and the differences, in the order of the run."""

    tensors: int = 0
    metrics: int = 0
    differences: list[str] = field(default_factory=list)

    def add_tensors(self, kind: str, recorded: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Compare tensors by name; `kind` is `mask` or `weights`."""
        for name in dict.fromkeys((*recorded, *now)):
            self.tensors += 1
            if difference := _difference(recorded.get(name), now.get(name)):
                self.differences.append(f"{kind} {name}: {difference}")

    def add_epochs(self, recorded: History, now: History) -> None:
        """Compare the metrics of every epoch, epoch by epoch."""
        steps = sorted({step for values in (*recorded.values(), *now.values()) for step in values})
        for step in steps:
            for name in EPOCH_METRICS:
                old, new = recorded.get(name, {}).get(step), now.get(name, {}).get(step)
                self.add_metric(f"epoch {step}, {name}", old, new)

    def add_metric(self, label: str, recorded: float | None, now: float | None) -> None:
        """Compare two values of a metric; None where there is no value."""
        self.metrics += 1
        if recorded != now:
            before, after = ("none" if value is None else repr(value) for value in (recorded, now))
            self.differences.append(f"{label}: {before} recorded, {after} now")

    def lines(self) -> Iterator[str]:
        """Yield `equal`, or the number of differences and the first of them."""
        if not self.differences:
            yield f"equal: {self.tensors} tensors, {self.metrics} metrics"
            return
        compared = f"{self.tensors + self.metrics} values ({self.tensors} tensors, {self.metrics} metrics)"
        yield f"differs: {len(self.differences)} of {compared}"
        yield f"first: {self.differences[0]}"


def without_times(names: Iterable[str]) -> Iterator[str]:
    """Yield the names of the metrics that are not durations."""
    return (name for name in names if not name.endswith("seconds") and "latency" not in name)


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with +0 wherever a mask is dead, as a reloaded network has them."""
    return {
        name: tensor.masked_fill(~masks[name], 0) if name in masks else tensor
        for name, tensor in weights.items()
    }


def _difference(recorded: Tensor | None, now: Tensor | None) -> str:
    """How two tensors differ; "" where every bit is the same."""
    if recorded is None or now is None:
        return "not recorded" if recorded is None else "not there now"
    if (recorded.shape, recorded.dtype) != (now.shape, now.dtype):
        return f"{_shape_text(recorded)} recorded, {_shape_text(now)} now"
    differ = _bytes(recorded).ne(_bytes(now)).any(1)
    if not (count := int(differ.sum())):
        return ""
    gap = (recorded.double() - now.double()).abs().flatten()[differ].max()
    return f"{count} of {recorded.numel()} entries differ, by {float(gap):.3g} at most"


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes, [entries, bytes per entry]: 0.0 differs from -0.0, and a NaN is equal to itself."""
    return tensor.cpu().contiguous().reshape(-1, 1).view(torch.uint8)


def _shape_text(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run of the store, and the configuration that it recorded."""

    tracker: Tracker
    row: RunRecord
    config: DenseConfig | TrialConfig

    @property
    def dense(self) -> DenseConfig:
        return self.config.dense if isinstance(self.config, TrialConfig) else self.config

    def reproducibility_warnings(self) -> Iterator[str]:
        """Yield why equal bits cannot be promised; nothing for a run on a CPU by this code."""
        if size := self.row.tags.get("micro_batch_halved_to"):
            yield f"its micro-batch was halved to {size} as memory ran out: equal bits are not promised"
        if self.dense.numerics.fast:
            yield "it was run with --fast, which is not deterministic: equal bits are not promised"
        if self.dense.numerics.device != "cpu" and "cuda.deterministic" not in self.environment():
            yield "it was recorded on a GPU without deterministic mode: equal bits are not promised"
        if operations := self.row.tags.get(NONDETERMINISTIC_TAG):
            yield f"{operations} have no deterministic form on a GPU: equal bits are not promised"
        for change in config_differences(self.config, with_current_fingerprints(self.config)):
            yield f"since it was recorded, {change}: equal bits are not promised"
        if self.config.key() != self.row.tags["key"]:
            yield "its key is another one by today's code: equal bits are not promised"

    def environment(self) -> dict[str, str]:
        """Return the environment of the run; of its sweep for a run of an older version."""
        tracker, row = self.tracker, self.row
        try:
            return dict(json.loads(tracker.read_text(row, ENVIRONMENT)))
        except StoreError:
            if (parent := row.tags.get("mlflow.parentRunId")) is None:
                raise
        return dict(json.loads(tracker.read_text(tracker.get_run(parent), ENVIRONMENT)))


@dataclass(frozen=True, eq=False)
class RerunResult:
    """The result of a rerun; `level` says how deterministic it was."""

    result: TrialResult
    data: Dataset
    level: str


def find_recorded_run(run: str, *, uri: str) -> RecordedRun:
    """Return the finished dense or trial run of an id or `runs:/<id>`; StoreError if there is none."""
    tracker = open_store(uri)
    row = tracker.get_run(run.removeprefix("runs:/").strip("/"))
    kind = row.tags.get("kind", "foreign run")
    if kind not in ("dense", "trial"):
        raise StoreError(f"run {row.run_id} is a {kind}; only a dense run or a trial can be run again")
    if "key" not in row.tags:
        state = "was stopped early" if "stopped_key" in row.tags else f"is {row.status}"
        raise StoreError(f"run {row.run_id} {state} and holds no whole result to run again")
    content = json.loads(tracker.read_text(row, CONFIG))
    try:
        config = (TrialConfig.from_json if kind == "trial" else dense_from_json)(content)
    except (TypeError, KeyError) as error:
        raise StoreError(f"the {CONFIG} of run {row.run_id} is of another version: {error}") from error
    model_files.accept_code(_methods_of(config), partial(_kept_code, tracker, row), where=f"run {row.run_id}")
    return RecordedRun(tracker, row, config)


def _kept_code(tracker: Tracker, row: RunRecord) -> str:
    return read_code(source_of_run(tracker, row))


def _methods_of(config: DenseConfig | TrialConfig) -> Iterator[str]:
    """Yield the model, data set and methods of a configuration in text form; the technique is a label."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    yield from (dense.model, dense.dataset)
    if not isinstance(config, TrialConfig):
        return
    prune = config.prune
    yield from (prune.criterion, prune.granularity, prune.schedule)
    yield from (config.recover, config.prepare, config.distill)


class _NoDenseNetworks:
    """A store without dense networks: the trial trains its own."""

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return None


def rerun(recorded: RecordedRun, *, run_training: RunTraining = run_training) -> RerunResult:
    """Run the recorded configuration in this process; nothing is written to the store.

    Trainings are run by `run_training`, which has as many devices as the run had.
    Raises DeviceError for a run of a GPU on a machine without one.
    """
    config, numerics = recorded.config, recorded.dense.numerics
    if numerics.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("the run was made on a GPU, and torch sees no CUDA device here")
    images = load_data(recorded.dense.dataset, str(data_folder()), numerics.device)
    source_model = load_source_model(recorded.tracker, recorded.dense)
    with (
        torch_threads(numerics.threads),
        deterministic(numerics.device, tf32=numerics.tf32, fast=numerics.fast) as operations,
    ):
        if isinstance(config, TrialConfig):
            networks = _NoDenseNetworks()
            result = run_trial(
                config, images, store=networks, source_model=source_model, run_training=run_training
            )
        else:
            result = run_dense(config, images, source_model=source_model, run_training=run_training)
    return RerunResult(result, images, summary(numerics, operations))


def compare(recorded: RecordedRun, new: RerunResult) -> BitwiseComparison:
    """Compare epochs, masks, weights and other metrics of a rerun with the recorded ones, in this order."""
    comparison, tracker, run_id = BitwiseComparison(), recorded.tracker, recorded.row.run_id
    now: dict[str, dict[int, float]] = {}
    for point in metric_points(new.result):
        now.setdefault(point.name, {})[point.step] = float(point.value)
    comparison.add_epochs({name: tracker.metric_history(run_id, name) for name in EPOCH_METRICS}, now)
    saved, state = saved_model(tracker, recorded.row), new.result.last.state
    comparison.add_tensors("mask", saved.masks, state.masks)
    old = masked(weights_of(tracker, saved), saved.masks)  # both as a reloaded network has them
    comparison.add_tensors("weights", old, masked(state.weights, state.masks))
    for name in without_times(name for name in now if name not in EPOCH_METRICS):
        if name not in recorded.row.metrics:
            continue  # the run is of a version without this metric
        values = now[name]
        before = (
            {0: recorded.row.metrics[name]} if values.keys() == {0} else tracker.metric_history(run_id, name)
        )
        for step in sorted(values.keys() | before.keys()):
            label = name if step == 0 else f"round or epoch {step}, {name}"
            comparison.add_metric(label, before.get(step), values.get(step))
    return comparison


def environment_changes(recorded: RecordedRun, new: RerunResult) -> list[str]:
    """Return how the environment differs from the recorded one, fact by fact."""
    before, now = recorded.environment(), dict(environment())
    digests = recorded.tracker.data_digests(recorded.row.run_id)
    before |= {f"data.{name}": digest for name, digest in digests.items()}
    now |= {f"data.{new.data.name}": new.data.digest[:DIGEST_LENGTH]}
    changes = config_differences(recorded.config, with_current_fingerprints(recorded.config))
    return [f"{change} since it was recorded" for change in changes] + [
        f"{name}: {before.get(name, 'not recorded')} recorded, {now.get(name, 'not there')} now"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]
