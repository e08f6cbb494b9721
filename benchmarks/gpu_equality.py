"""Whether a GPU computes what a CPU computes, the same again, and without making the host wait."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

import models
from benchmarks.gpu_steps import StepSetting, describe_failure, graph_of, graph_optimizer, make_step
from benchmarks.shared import make_images
from orchestrator.config import DenseConfig, Device, Numerics, Prune, Train, TrialConfig
from orchestrator.data.loading import Dataset, Split
from orchestrator.system.determinism import deterministic
from orchestrator.training.loop import train
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState
from orchestrator.trial.run import TrialResult, run_trial

Row = dict[str, Any]  # JSON
# Of losses, relative: other kernels add in another order, and a training carries that on.
LOSS_LIMIT, ACCURACY_LIMIT = 0.01, 0.03
GRAPH_LIMIT = 1e-4  # of weights after some steps
STEPS = (4, 12)  # whose waits are compared
BATCH = 64
NETWORKS = ("mlp", "cnn", "resnet(depth=8)")
PRUNINGS = (
    ("magnitude", "weight", "after"),
    ("snip", "weight", "init"),
    ("grasp", "weight", "init"),
    ("l2", "channel", "after"),
)


@dataclass(frozen=True, eq=False)
class NoNetworks:
    """A store without dense networks: every trial trains its own."""

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return None


def trial_of(model: str, pruning: tuple[str, str, str], device: str) -> TrialConfig:
    """Return a trial of one epoch before pruning and one after it."""
    criterion, granularity, when = pruning
    recipe = Train(epochs=1, optimizer="sgd", lr=0.01, augment="crop_flip")
    numerics = Numerics(cast(Device, device), micro_batch=BATCH)
    dense = DenseConfig(model, "synthetic", BATCH, 0, recipe, numerics)
    scope = "global" if granularity == "weight" else "layer"
    prune = Prune(criterion, granularity, scope, "one_shot", 0.5)
    return replace(TrialConfig(dense, prune, "finetune(epochs=1)", criterion), when=when)


def moved(data: Dataset, device: str) -> Dataset:
    """Return a data set on a device."""
    parts = (data.train, data.validation, data.test)
    train_split, validation, test = (
        Split(cast(Tensor, part.images).to(device), part.labels.to(device)) for part in parts
    )
    return replace(data, train=train_split, validation=validation, test=test)


def _run(model: str, pruning: tuple[str, str, str], device: str, data: Dataset) -> tuple[TrialResult, str]:
    """Return a trial's result, and the operations that had no deterministic form."""
    with deterministic(device) as operations:
        result = run_trial(trial_of(model, pruning, device), moved(data, device), store=NoNetworks())
    return result, ", ".join(sorted(operations))


def _losses(result: TrialResult) -> list[float]:
    return [record.train_loss for measured in result.rounds for record in measured.history]


def check_equality(device: str, *, small: bool) -> Iterator[Row]:
    """Yield how far trials on the device are from those on the CPU, and from themselves."""
    data = make_images(160 if small else 1280)
    for model in NETWORKS[:1] if small else NETWORKS:
        for pruning in PRUNINGS[:2] if small else PRUNINGS:
            name = f"{model}, {pruning[0]} {pruning[1]}"
            yield from _until_error(name, _compare(name, model, pruning, device, data))


def _compare(
    name: str, model: str, pruning: tuple[str, str, str], device: str, data: Dataset
) -> Iterator[Row]:
    reference, _ = _run(model, pruning, "cpu", data)
    first, operations = _run(model, pruning, device, data)
    yield _row(f"{name}: loss against the CPU", _distance(first, reference), LOSS_LIMIT)
    difference = first.last.measurement.accuracy - reference.last.measurement.accuracy
    yield _row(f"{name}: accuracy against the CPU", abs(difference), ACCURACY_LIMIT)
    if pruning[2] == "init":  # both have pruned the same weights
        yield _row(f"{name}: part of the masks that differs", _mask_distance(first, reference), 0.0)
    second, _ = _run(model, pruning, device, data)
    unequal = float(not _has_same_bits(first, second))
    note = f"no deterministic form: {operations}" if operations else ""
    yield _row(f"{name}: other bits the second time", unequal, 1.0 if operations else 0.0, note)


def _until_error(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows of a check; where an error ends it, a last one that is not passed, with the reason."""
    try:
        yield from rows
    except Exception as error:  # noqa: BLE001  the boundary of a check: the others go on
        yield _row(what, math.nan, 0.0, describe_failure(error)["reason"])


def _row(what: str, value: float, limit: float, note: str = "") -> Row:
    is_known = math.isfinite(value)
    return {
        "what": what,
        "value": value if is_known else None,
        "limit": limit,
        "reached": is_known and value <= limit,
        "note": note,
    }


def _distance(one: TrialResult, other: TrialResult) -> float:
    """Return the largest relative difference of two trials' losses."""
    pairs = list(zip(_losses(one), _losses(other), strict=True))
    return max((abs(a - b) / max(abs(b), 1e-6) for a, b in pairs), default=math.nan)


def _mask_distance(one: TrialResult, other: TrialResult) -> float:
    """Return the part of all entries of the masks in which two trials differ."""
    masks, others = one.last.state.masks, other.last.state.masks
    total = sum(mask.numel() for mask in masks.values())
    return sum(int((mask != others[name]).sum()) for name, mask in masks.items()) / max(total, 1)


def _has_same_bits(one: TrialResult, other: TrialResult) -> bool:
    tensors = (
        (one.last.state.weights, other.last.state.weights),
        (one.last.state.masks, other.last.state.masks),
    )
    return _losses(one) == _losses(other) and all(
        torch.equal(value, b[name]) for a, b in tensors for name, value in a.items()
    )


def check_waits(device: str, *, small: bool) -> Iterator[Row]:
    """Yield for each augmentation by how much longer epochs make the host wait oftener."""
    for augment in ("none", "crop_flip") if small else ("none", "flip", "crop_flip", "resized_crop"):
        what = f"training with augment {augment}: waits for the device in {STEPS[1] - STEPS[0]} steps"
        yield from _until_error(what, _compare_waits(what, augment, device))


def _compare_waits(what: str, augment: str, device: str) -> Iterator[Row]:
    few, many = (count_waits(augment, steps, device) for steps in STEPS)
    yield _row(what, float(many - few), 0.0, "a CPU has none" if device == "cpu" else "")


def count_waits(augment: str, steps: int, device: str) -> int:
    """Return how often the host waits for the device in an epoch of so many steps."""
    data = moved(make_images(BATCH * max(STEPS)), device)
    images, labels = cast(Tensor, data.train.images)[: BATCH * steps], data.train.labels[: BATCH * steps]
    net = models.build("cnn", input_shape=(1, 28, 28), num_classes=10).to(device)
    mode = torch.cuda.get_sync_debug_mode() if device == "cuda" else 0
    with deterministic(device), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            train(
                net,
                Split(images, labels),
                data.validation,
                recipe=Train(epochs=1, augment=augment),
                phase=TrainingPhase(1),
                batch_size=BATCH,
                numerics=Numerics(cast(Device, device), micro_batch=BATCH),
                generator=torch.Generator().manual_seed(0),
            )
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def check_graph(device: str) -> Iterator[Row]:
    """Yield how far a step as a CUDA graph is from the step itself; nothing on a CPU."""
    if device == "cpu":
        return
    for model, shape in (("mlp", (1, 28, 28)), ("resnet(depth=20)", (3, 32, 32))):
        what = f"{model}: weights of a CUDA graph against those of the steps"
        yield from _until_error(what, _compare_graph(what, StepSetting(model, shape, BATCH, "graph"), device))


def _compare_graph(what: str, setting: StepSetting, device: str) -> Iterator[Row]:
    batch = setting.images(BATCH, device)
    with deterministic(device):
        plain, captured = setting.network(device), setting.network(device)
        optimizer, steps = graph_optimizer(plain), 5
        graph = graph_of(captured, graph_optimizer(captured), *batch)
        for _ in range(steps):
            graph.replay()
        for _ in range(3 + steps):  # with those before the capture
            make_step(plain, optimizer, *batch)
    pairs = zip(plain.parameters(), captured.parameters(), strict=True)
    distance = max(float((a - b).abs().max()) for a, b in pairs)
    yield _row(what, distance, GRAPH_LIMIT)
