"""Estimate seconds, FLOPs and bytes of a plan; calibrate by a few timed steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from time import perf_counter

import torch
from torch import nn

import models
from orchestrator.config import DenseConfig, Numerics, Train, TrialConfig, method_name
from orchestrator.data.datasets import split_sizes
from orchestrator.planning.constraints import shape_of
from orchestrator.planning.disk_space import RUN_BYTES
from orchestrator.planning.plan import Plan
from orchestrator.system.determinism import seeded
from orchestrator.training.optimizers import make_optimizer
from orchestrator.trial.distillation import distillations
from orchestrator.trial.metrics import Profile, dense_bytes, profile, train_flops
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_of, epochs_per_round, recoveries
from pruning.criteria import criteria
from pruning.masking import prunable_layers
from pruning.registry import parse
from pruning.schedules import rounds_of, schedules

MAX_IMAGES = 64
MACS_A_PASS = 2_000_000_000  # on a CPU core, a pass of a second or less
ENOUGH_SECONDS = 0.05
MAX_TIMES = 5


@dataclass(frozen=True)
class Speed:
    """Seconds of forward and backward for one image, and of one optimizer step; and what a network weighs."""

    image_seconds: float
    step_seconds: float
    cost: Profile
    weight_bytes: int
    mask_bytes: int


def speed(model: str, input_shape: tuple[int, int, int], num_classes: int, *, numerics: Numerics) -> Speed:
    """Measured on the device of `numerics`, or on the CPU where there is none; global seeds are untouched."""
    device = numerics.device if torch.cuda.is_available() else "cpu"
    with seeded(0, torch.device(device)), _threads(numerics.threads):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        cost = profile(net, input_shape)
        images = MAX_IMAGES if device == "cuda" else _images(cost.total_macs)
        net = net.to(device).train()
        batch = torch.randn((images, *input_shape)).to(device)
        labels = torch.arange(images, device=device) % num_classes
        bf16 = numerics.precision == "bf16"
        pass_seconds = _seconds(partial(_pass, net, batch, labels, bf16), device)
        step_seconds = _seconds(make_optimizer(Train(), net).step, device)
    masks = sum((layer.weight.numel() + 7) // 8 for layer in prunable_layers(net).values())
    return Speed(pass_seconds / images, step_seconds, cost, dense_bytes(net), masks)


def _images(macs: int) -> int:
    """As many as a short pass holds; two at the least, for batch norms."""
    return max(2, min(MAX_IMAGES, MACS_A_PASS // max(macs, 1)))


def _pass(net: nn.Module, batch: torch.Tensor, labels: torch.Tensor, bf16: bool) -> None:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = net(batch)
    nn.functional.cross_entropy(logits.float(), labels).backward()


def _seconds(call: Callable[[], object], device: str) -> float:
    """The mean of a few calls, after one that is not timed."""
    started, times = 0.0, -1
    while times < 1 or (times < MAX_TIMES and perf_counter() - started < ENOUGH_SECONDS):
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times += 1
        started = started or perf_counter()
    return (perf_counter() - started) / times


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


FORWARD_SHARE = 1 / 3  # of a forward and backward pass
# By quickstart on two cores, see docs/benchmarks.md: until the first training begins, and after the last run;
# and what a run takes of its worker besides training: pruning, measuring, and writing it down.
START_SECONDS = 12.0
RECORD_SECONDS = 0.25
# What estimates were held against sweeps of: other networks, and GPUs, may take another time.
HELD_AGAINST = ("slp", "mlp", "cnn")


@dataclass(frozen=True)
class Estimate:
    """`seconds` for the whole sweep at the given concurrency; `reused` trials are in the store.

    They are those of `start_seconds`, `training_seconds` and `recording_seconds`. `basis` says how they
    came about; `unknown` why nobody knows how far they may be off, and is empty where that is known.
    """

    seconds: float
    start_seconds: float
    training_seconds: float
    recording_seconds: float
    train_flops: int
    disk_bytes: int
    trials_to_run: int
    dense_to_run: int
    reused: int
    basis: str
    unknown: str = ""


@dataclass(frozen=True)
class _Cost:
    seconds: float
    flops: int
    bytes: int


def estimate(plan: Plan, *, finished: Collection[str], concurrency: int = 1) -> Estimate:
    """What is left to do of a plan, given the keys that the store has, and what it costs.

    The seconds are calibrated by a few timed training steps; see `Estimate.basis`.
    """
    done = frozenset(finished)
    to_run = [trial.config for trial in plan.trials if trial.key not in done]
    parents = {config.dense.key() for config in to_run} - done
    trainings = [config for config in plan.dense if config.key() in parents]
    speeds = _Speeds()
    costs = [speeds.of_training(config) for config in trainings]
    costs += [speeds.of_trial(config) for config in to_run]
    at_once = max(1, min(concurrency, len(costs)))
    longest = max((cost.seconds for cost in costs), default=0.0)
    training = max(sum(cost.seconds for cost in costs) / at_once, longest)
    start, recording = START_SECONDS if costs else 0.0, RECORD_SECONDS * len(costs) / at_once
    return Estimate(
        seconds=start + training + recording,
        start_seconds=start,
        training_seconds=training,
        recording_seconds=recording,
        train_flops=sum(cost.flops for cost in costs),
        disk_bytes=sum(cost.bytes for cost in costs),
        trials_to_run=len(to_run),
        dense_to_run=len(trainings),
        reused=len(plan.trials) - len(to_run),
        basis=_basis(to_run, concurrency),
        unknown="; ".join(dict.fromkeys(unknown_costs(to_run))),
    )


def _basis(to_run: Sequence[TrialConfig], concurrency: int) -> str:
    if not to_run:
        return "nothing is left to run"
    device = to_run[0].dense.numerics.device
    timed = device if torch.cuda.is_available() else "cpu"
    return (
        f"a few timed training steps of each model on this machine's {timed}, {concurrency} at a time; "
        "start-up and recording as on an idle machine of two cores"
    )


def unknown_costs(to_run: Sequence[TrialConfig]) -> Iterator[str]:
    """What these trials have that no estimate was ever held against, or that is not counted."""
    for config in to_run:
        device = config.dense.numerics.device
        if device == "cuda":
            there = "" if torch.cuda.is_available() else ", and there is none here: timed on the CPU"
            yield f"no estimate was held against a sweep on a GPU{there}"
        criterion = criteria.get(config.prune.criterion)
        if criterion.traits.get("data"):
            yield f"the passes of {criterion.name} through the network are not counted"
        for registry, text in ((recoveries, config.recover), (preparations, config.prepare)):
            method = registry.get(text)
            counted = "length" in method.traits or "epochs" in method.options or method.name == "none"
            if not counted:
                yield f"what {method.name} takes is not counted"
    models = dict.fromkeys(method_name(config.dense.model) for config in to_run)
    if unheld := [model for model in models if model not in HELD_AGAINST]:
        yield f"none was held against a sweep of {', '.join(unheld)}"


class _Speeds:
    """What was measured once for each model and shape, and the costs that follow from it."""

    def __init__(self) -> None:
        self.measured: dict[tuple[object, ...], Speed] = {}
        self.costs: dict[tuple[object, ...], _Cost] = {}

    def of(self, config: DenseConfig) -> Speed:
        shape, classes = shape_of(config.dataset)
        key = (config.model, shape, classes)
        if key not in self.measured:
            self.measured[key] = speed(config.model, shape, classes, numerics=config.numerics)
        return self.measured[key]

    def of_training(self, config: DenseConfig) -> _Cost:
        key = (config.model, config.dataset, config.batch_size, config.train.epochs)
        if key not in self.costs:
            known = self.of(config)
            self.costs[key] = self._training(config, config.train.epochs, 1, known.weight_bytes)
        return self.costs[key]

    def of_trial(self, config: TrialConfig) -> _Cost:
        """Rounds of recovery, each measured; masks are stored, and weights where they were trained."""
        dense, schedule = config.dense, config.prune.schedule
        stages = (config.recover, config.when, config.prepare, config.distill, schedule)
        key = (dense.model, dense.dataset, dense.batch_size, dense.train, *stages)
        if key not in self.costs:
            known, epochs = self.of(dense), _epochs(config)
            taught = bool(distillations.get(config.distill).traits["needs_teacher"])
            stored = known.mask_bytes + (known.weight_bytes if epochs else 0)
            self.costs[key] = self._training(dense, epochs, _rounds(schedule) + 1, stored, taught=taught)
        return self.costs[key]

    def _training(
        self, config: DenseConfig, epochs: int, measured: int, stored: int, *, taught: bool = False
    ) -> _Cost:
        known = self.of(config)
        train, validation, test = _split_sizes(config.dataset)
        looked_at = epochs * validation + measured * (validation + test)
        steps = epochs * ceil(train / config.batch_size)
        image_passes = epochs * train * (1 + FORWARD_SHARE * taught) + FORWARD_SHARE * looked_at
        seconds = image_passes * known.image_seconds + steps * known.step_seconds
        flops = train_flops(known.cost, epochs * train, has_teacher=taught)
        return _Cost(seconds, flops, RUN_BYTES + stored)


@cache
def _split_sizes(dataset: str) -> tuple[int, int, int]:
    name, options = parse(dataset)
    return split_sizes(name, **options)


def _epochs(config: TrialConfig) -> int:
    """Epochs of the whole trial, the dense training aside."""
    train = config.dense.train
    recovery = epochs_per_round(config.recover, train)
    if config.when == "during":
        return train.epochs + recovery
    length = preparations.get(config.prepare).options.get("epochs")
    before = 0 if length is None else epochs_of(length, train)
    return before + recovery * (1 if config.when == "init" else _rounds(config.prune.schedule))


def _rounds(schedule: str) -> int:
    return rounds_of(schedules.get(schedule))
