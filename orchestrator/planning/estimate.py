"""Estimate the seconds, FLOPs and bytes of a plan, and check that its runs fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

from orchestrator.config import DenseConfig, TrialConfig, method_name
from orchestrator.errors import DiskFullError
from orchestrator.formatting import format_size
from orchestrator.planning.constraints import Shape, meta_model, shape_of, split_sizes_of
from orchestrator.planning.plan import Plan
from orchestrator.planning.step_times import NO_CALIBRATION, Calibration, Speed, mask_bytes, measure_speed
from orchestrator.system.machine import gpus
from orchestrator.training.lengths import epochs_of
from orchestrator.trial.distillation import distillations
from orchestrator.trial.metrics import dense_bytes, train_flops
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_per_round, recoveries, reuses_dense_weights, trains_cut
from orchestrator.trial.task import Task
from pruning.criteria import criteria
from pruning.schedules import rounds_of, schedules

FORWARD_SHARE = 1 / 3  # of a forward and backward pass
# Measured with four-techniques on two cores, see docs/benchmarks.md: the time before the first training and
# after the last run, and what each run adds to training: pruning, measuring and recording.
START_SECONDS = 12.0
RECORD_SECONDS = 0.25
RUN_BYTES = 80_000  # of a run without its tensors: ten files of a disk block each, and its database rows
# Models whose estimates were compared with sweeps; others, and GPUs, may take another time.
COMPARED_MODELS = ("slp", "mlp", "cnn")


@dataclass(frozen=True)
class Estimate:
    """The cost of a sweep. `seconds` is for the whole sweep at the concurrency that was asked for.

    It is the sum of `start_seconds`, `training_seconds` and `recording_seconds`. `reused` trials are in the
    store. `basis` says how the seconds were estimated; `unknown` why their error is not known, or is empty.
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


def estimate(
    plan: Plan,
    *,
    finished: Collection[str],
    concurrency: int = 1,
    calibration: Calibration = NO_CALIBRATION,
) -> Estimate:
    """Estimate what the rest of a plan costs; `finished` are the keys that the store has.

    The seconds are by the step times of the calibration, or by a few training steps that are timed here; see
    `Estimate.basis`.
    """
    finished = frozenset(finished)
    to_run = [trial.config for trial in plan.trials if trial.key not in finished]
    dense_keys = {config.dense.key() for config in to_run} - finished
    dense_to_run = [config for config in plan.dense if config.key() in dense_keys]
    costs_of = _Costs(calibration)
    costs = [costs_of.training(config) for config in dense_to_run]
    costs += [costs_of.trial(config) for config in to_run]
    workers = max(1, min(concurrency, len(costs)))
    longest = max((cost.seconds for cost in costs), default=0.0)
    training = max(sum(cost.seconds for cost in costs) / workers, longest)
    start, recording = START_SECONDS if costs else 0.0, RECORD_SECONDS * len(costs) / workers
    return Estimate(
        seconds=start + training + recording,
        start_seconds=start,
        training_seconds=training,
        recording_seconds=recording,
        train_flops=sum(cost.flops for cost in costs),
        disk_bytes=sum(cost.bytes for cost in costs),
        trials_to_run=len(to_run),
        dense_to_run=len(dense_to_run),
        reused=len(plan.trials) - len(to_run),
        basis=_basis(to_run, concurrency, calibration),
        unknown="; ".join(dict.fromkeys((*costs_of.untimed(), *unknown_costs(to_run, calibration)))),
    )


def _basis(to_run: Sequence[TrialConfig], concurrency: int, calibration: Calibration) -> str:
    if not to_run:
        return "nothing is left to run"
    kinds = {(config.dense.model, config.dense.dataset): config.dense for config in to_run}
    are_calibrated = [_is_calibrated(dense, calibration) for dense in kinds.values()]
    device = to_run[0].dense.numerics.device if gpus() else "cpu"
    timed = f"a few timed training steps of each model on this machine's {device}"
    measured = f"step times of a {calibration.device}"
    if all(are_calibrated):
        timed = measured
    elif any(are_calibrated):
        timed = f"{measured}, and of models without any {timed}"
    return f"{timed}, {concurrency} at a time; start-up and recording as on an idle machine of two cores"


def _is_calibrated(config: DenseConfig, calibration: Calibration) -> bool:
    return calibration.find(config.model, shape_of(config.dataset)[0], config.numerics) is not None


def unknown_costs(to_run: Sequence[TrialConfig], calibration: Calibration = NO_CALIBRATION) -> Iterator[str]:
    """Yield what the estimate of these trials does not count, or never was compared with a sweep for."""
    # What is not counted is the methods': each combination of them once.
    kinds = {(c.dense.model, c.dense.dataset, c.prune.criterion, c.recover, c.prepare): c for c in to_run}
    for config in kinds.values():
        if config.dense.numerics.device == "cuda":
            is_timed_here = bool(gpus()) or _is_calibrated(config.dense, calibration)
            no_gpu = "" if is_timed_here else ", and this machine has none: timed on the CPU"
            yield f"no estimate was compared with a sweep on a GPU{no_gpu}"
        criterion = criteria.get(config.prune.criterion)
        if criterion.traits.get("data"):
            yield f"the passes of {criterion.label} through the network are not counted"
        for registry, text in ((recoveries, config.recover), (preparations, config.prepare)):
            method = registry.get(text)
            is_counted = "length" in method.traits or "epochs" in method.options or method.name == "none"
            if not is_counted:
                yield f"the time of {method.label} is not counted"
        if trains_cut(config.recover):
            yield "what is saved by training the network that is cut (on='cut') is not counted"
    names = dict.fromkeys(method_name(config.dense.model) for config in to_run)
    if others := [name for name in names if name not in COMPARED_MODELS]:
        yield f"no estimate was compared with a sweep of {', '.join(others)}"


class _Costs:
    """Costs of trainings and trials; each model is measured once per input shape."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.speeds: dict[tuple[str, Shape, int], Speed] = {}  # by model, image shape and classes
        self.costs: dict[tuple[object, ...], _Cost] = {}

    def speed(self, config: DenseConfig) -> Speed:
        key = (config.model, *shape_of(config.dataset))
        if key not in self.speeds:
            self.speeds[key] = measure_speed(
                config.model,
                *shape_of(config.dataset),
                numerics=config.numerics,
                calibration=self.calibration,
            )
        return self.speeds[key]

    def untimed(self) -> Iterator[str]:
        """Yield of which models no seconds are counted."""
        for (model, *_), speed in self.speeds.items():
            if not speed.is_timed:
                name = method_name(model)
                yield f"the time of {name} is not known, and not counted: memory ran out at two images"

    def training(self, config: DenseConfig) -> _Cost:
        key = (config.model, config.dataset, config.batch_size, config.train.epochs)
        if key not in self.costs:
            stored = self.speed(config).weight_bytes
            self.costs[key] = self._cost(config, config.train.epochs, measurements=1, stored=stored)
        return self.costs[key]

    def trial(self, config: TrialConfig) -> _Cost:
        """Return the cost of all rounds; masks are stored, and weights where they were trained."""
        dense, schedule = config.dense, config.prune.schedule
        methods = (config.recover, config.when, config.prepare, config.distill, schedule)
        key = (dense.model, dense.dataset, dense.batch_size, dense.train, *methods)
        if key not in self.costs:
            speed, epochs = self.speed(dense), trial_epochs(config)
            has_teacher = bool(distillations.get(config.distill).traits["needs_teacher"])
            stored = speed.mask_bytes + (speed.weight_bytes if epochs else 0)
            measurements = rounds_of(schedules.get(schedule)) + 1
            self.costs[key] = self._cost(
                dense, epochs, measurements=measurements, stored=stored, has_teacher=has_teacher
            )
        return self.costs[key]

    def _cost(
        self, config: DenseConfig, epochs: int, *, measurements: int, stored: int, has_teacher: bool = False
    ) -> _Cost:
        speed = self.speed(config)
        train, validation, test = split_sizes_of(config.dataset)
        forward_images = epochs * validation + measurements * (validation + test)
        steps = epochs * ceil(train / config.batch_size)
        trained = epochs * train * (1 + FORWARD_SHARE * has_teacher) / config.numerics.devices
        passes = trained + FORWARD_SHARE * forward_images
        seconds = passes * speed.image_seconds + steps * speed.step_seconds
        return _Cost(
            seconds, train_flops(speed.cost, epochs * train, has_teacher=has_teacher), RUN_BYTES + stored
        )


def trial_epochs(config: TrialConfig) -> int:
    """Return the epochs of a whole trial, those of the dense training aside."""
    train = config.dense.train
    recovery = epochs_per_round(config.recover, train)
    if config.when == "during":
        return train.epochs + recovery
    length = preparations.get(config.prepare).options.get("epochs")
    preparation = 0 if length is None else epochs_of(length, train)
    return preparation + recovery * (
        1 if config.when == "init" else rounds_of(schedules.get(config.prune.schedule))
    )


def check_disk_space(tasks: Sequence[Task], folder: Path | None) -> None:
    """Raise DiskFullError where the runs do not fit on the disk of `folder`; None is a remote store."""
    if folder is not None and needed_bytes(tasks) > shutil.disk_usage(folder).free:
        raise DiskFullError(disk_space_message(tasks, folder))


def disk_space_message(tasks: Sequence[Task], folder: Path) -> str:
    """Return one line: the free space, what the runs need, and what to do."""
    free = format_size(shutil.disk_usage(folder).free)
    runs = "the run that is left needs" if len(tasks) == 1 else f"the {len(tasks)} runs that are left need"
    needed = format_size(needed_bytes(tasks))
    return f"{folder} has {free} left, and {runs} about {needed}; make room, and the same command carries on"


def needed_bytes(tasks: Iterable[Task]) -> int:
    """Return the bytes that runs store: weights where they were trained, masks of trials, and files."""
    total = 0
    for task in tasks:
        weights, masks = _tensor_bytes(task.dense.model, *shape_of(task.dense.dataset))
        if not isinstance(task.config, TrialConfig):
            total += RUN_BYTES + weights
        else:
            total += RUN_BYTES + masks + (0 if reuses_dense_weights(task.config) else weights)
    return total


@lru_cache(maxsize=64)
def _tensor_bytes(model: str, input_shape: Shape, num_classes: int) -> tuple[int, int]:
    net = meta_model(model, input_shape, num_classes)
    return dense_bytes(net), mask_bytes(net)
