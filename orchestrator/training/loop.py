"""The training loop, and its state between two epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn

from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.errors import DivergedError
from orchestrator.system.determinism import global_states, set_global_states
from orchestrator.training.averaging import WeightAverage
from orchestrator.training.checkpoint_packing import Checkpoint, load_optimizer, optimizer_tensors, snapshot
from orchestrator.training.device_group import ALONE, DeviceGroup
from orchestrator.training.evaluation import evaluate, precision
from orchestrator.training.hooks import NO_HOOKS, TrainingHooks
from orchestrator.training.inputs import Inputs
from orchestrator.training.losses import Labels
from orchestrator.training.lr_schedules import TrainingPhase, learning_rate
from orchestrator.training.masked_step import Masker, step_and_mask
from orchestrator.training.optimizers import make_optimizer
from orchestrator.training.synchronized_norm import synchronized_norms


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch of training; losses in nats, `seconds` without the validation."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


OnEpoch = Callable[[int, EpochRecord], None]


@dataclass(frozen=True, eq=False)
class TrainerState:
    """A training between two epochs, on the CPU: it resumes from this with the same bits.

    Its position in the schedule is the number of its records. `optimizer` may be empty after the last epoch.
    `generator` is that of the order, augmentation and mixup; dropout draws from the global ones. `average` is
    that of the weights, empty for a recipe without one, and after the last epoch, when it is in `weights`.
    """

    records: tuple[EpochRecord, ...]
    micro_batch: int
    weights: dict[str, Tensor]
    optimizer: Mapping[str, Tensor]
    generator: Tensor
    global_generators: Mapping[str, Tensor]
    hook_state: Checkpoint
    average: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochSums:
    """The sums over the images of an epoch: losses in nats, correct predictions; and its last rate."""

    loss: float
    correct: float
    lr: float


# Called at every epoch's end with a function that captures the state: a copy is made only where one is due.
MaybeSave = Callable[[Callable[[], TrainerState]], None]


class TrainingCheckpointer(Protocol):
    """Records the trainings of a trial, so that another process can resume them."""

    def resume(self, stage: str, round: int) -> TrainerState | None:
        """Return how far an earlier process came with the next training; None to start it anew."""

    def maybe_save(self, stage: str, round: int, capture: Callable[[], TrainerState]) -> None:
        """Save the captured state after an epoch, if it is time."""

    def finished(self, stage: str, round: int, trainer_state: TrainerState) -> None:
        """Record a finished training."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training that is to be run: what `train` takes.

    What is not in the weights of a network that `is_cut` may differ from that of others of its shapes.
    """

    net: nn.Module
    split: Split
    validation: Split
    recipe: Train
    phase: TrainingPhase
    batch_size: int
    numerics: Numerics
    generator: torch.Generator
    masks: Mapping[str, Tensor] | None = None
    hooks: TrainingHooks = NO_HOOKS
    on_epoch: OnEpoch | None = None
    resume_from: TrainerState | None = None
    maybe_save: MaybeSave | None = None
    is_cut: bool = False


RunTraining = Callable[[Training], list[EpochRecord]]


def train(
    net: nn.Module,
    split: Split,
    validation: Split,
    *,
    recipe: Train,
    phase: TrainingPhase,
    batch_size: int,
    numerics: Numerics,
    generator: torch.Generator,
    masks: Mapping[str, Tensor] | None = None,
    hooks: TrainingHooks = NO_HOOKS,
    on_epoch: OnEpoch | None = None,
    resume_from: TrainerState | None = None,
    maybe_save: MaybeSave | None = None,
) -> list[EpochRecord]:
    """Train `net` in place for one phase with a fresh optimizer; masked weights are zero after every step.

    Batches, augmentation and mixup are drawn from `generator`, dropout from the global one: the caller seeds
    both. A recipe with an average of the weights evaluates it after every epoch, and `net` ends with it.
    Returns a record per epoch; with `resume_from` those of its epochs come first. DivergedError once a loss
    is not finite.
    """
    settings = (recipe, phase, batch_size, numerics, generator, masks, hooks)
    return run_training(Training(net, split, validation, *settings, on_epoch, resume_from, maybe_save))


def run_training(training: Training, group: DeviceGroup = ALONE) -> list[EpochRecord]:
    """Run one training, as `train` says; as the first of a group's devices its batches are shared.

    RuntimeError where the group has another number of devices than the training is to have.
    """
    with _norms_of(training, group):
        loop = TrainingLoop(training, group)
        for epoch in range(len(loop.records), training.phase.epochs):
            started = perf_counter()
            sums = loop.run_epoch(epoch)
            loop.finish_epoch(epoch, sums, seconds=perf_counter() - started)
        return loop.finish()


def follow_training(training: Training, group: DeviceGroup, *, first_epoch: int) -> None:
    """Work on this device's part of each batch of a training that the first device of the group runs."""
    with _norms_of(training, group):
        loop = TrainingLoop(training, group)
        for epoch in range(first_epoch, training.phase.epochs):
            loop.run_epoch(epoch)


def _norms_of(training: Training, group: DeviceGroup) -> AbstractContextManager[None]:
    """Return a block in which batch norms see what the training's numerics say."""
    is_together = training.numerics.sync_batch_norm and group.size > 1
    return synchronized_norms(training.net, group) if is_together else nullcontext()


def _check_finite(*losses: float, epoch: int, epochs: int) -> None:
    if not all(map(math.isfinite, losses)):
        raise DivergedError(f"the loss is no longer finite in epoch {epoch} of {epochs}")


class TrainingLoop:
    """One training, an epoch at a time; a training that is resumed begins after its `records`.

    Of a group's devices each passes over its part of the batches; only the first one ends epochs.
    """

    def __init__(self, training: Training, group: DeviceGroup = ALONE) -> None:
        if training.numerics.devices != group.size:
            raise RuntimeError(f"a training on {training.numerics.devices} devices was run on {group.size}")
        self.group = group
        self.training, self.net, self.recipe = training, training.net, training.recipe
        self.phase, self.numerics, self.hooks = training.phase, training.numerics, training.hooks
        self.inputs = Inputs(training.split, training.recipe, training.generator)
        self.average = WeightAverage(training.net, training.recipe.ema) if training.recipe.ema else None
        self.optimizer = make_optimizer(training.recipe, training.net)
        self.records: list[EpochRecord] = []
        masks = training.masks
        if training.resume_from is not None:
            self.records = list(training.resume_from.records)
            masks = self.load_state_dict(training.resume_from) or masks
        self.apply_masks = Masker(dict(training.net.named_parameters()), masks or {})

    @property
    def device(self) -> torch.device:
        return self.training.split.images.device

    def averaged(self) -> AbstractContextManager[None]:
        """Return a block in which the network has its average, if the recipe has one."""
        return nullcontext() if self.average is None else self.average.in_place_of_weights()

    def run_epoch(self, epoch: int) -> EpochSums:
        """Pass over the split once."""
        self.net.train()
        split, device = self.training.split, self.device
        loss_sum, correct, lr = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
        steps = math.ceil(len(split) / self.training.batch_size)
        self.group.start_epoch(self.training.generator)
        batches = self.inputs.epoch(
            self.training.batch_size, micro_batch=self.numerics.micro_batch, group=self.group
        )
        for step, (batch_size, micro_batches) in enumerate(batches):
            lr = self.lr_at(epoch + step / steps, step=1 / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.zero_grad(set_to_none=True)
            self.group.start_step(self.net, batch_size)
            for images, labels in micro_batches:
                loss, hits = self._accumulate(images, labels, batch_size)
                loss_sum += loss
                correct += hits
            self.group.sum_gradients(self.net)
            if self.group.rank:
                continue
            progress = (epoch + step / steps) / self.phase.epochs
            new_masks = self._step(lr, progress=progress, images=batch_size)
            if self.average is not None:
                self.average.update(new_masks)
        sums = self.group.sum(torch.stack([loss_sum, correct]))
        total_loss, total_correct = sums.tolist()  # the only wait for the device
        return EpochSums(total_loss, total_correct, lr)

    def finish_epoch(self, epoch: int, sums: EpochSums, *, seconds: float) -> None:
        """Let the hooks act, evaluate the network, and record the epoch, whose steps took `seconds`.

        DivergedError for a loss that is not finite.
        """
        training, new_masks = self.training, None
        with self.averaged():
            if self.hooks.after_epoch is not None:
                started = perf_counter()
                new_masks = self.hooks.after_epoch(epoch + 1)
                seconds += perf_counter() - started
            evaluation = evaluate(self.net, training.validation, numerics=self.numerics)
        if new_masks is not None:
            self.apply_masks.replace(new_masks)
            if self.average is not None:
                self.apply_masks()  # the hook has changed the average alone
        size = len(training.split)
        loss, accuracy = sums.loss / size, sums.correct / size
        _check_finite(loss, evaluation.loss, epoch=epoch + 1, epochs=self.phase.epochs)
        self.records.append(
            EpochRecord(loss, accuracy, evaluation.loss, evaluation.accuracy, sums.lr, seconds)
        )
        if training.maybe_save is not None:
            training.maybe_save(partial(self.state_dict, tuple(self.records)))
        if training.on_epoch is not None:
            training.on_epoch(epoch + 1, self.records[-1])

    def finish(self) -> list[EpochRecord]:
        """Give the network the average of the weights, if the recipe has one, and return the records."""
        if self.average is not None:
            self.average.replace_weights()
        return self.records

    def state_dict(self, records: tuple[EpochRecord, ...]) -> TrainerState:
        """Return a copy of the training's state after the epochs of these records."""
        return TrainerState(
            records,
            self.numerics.micro_batch,
            snapshot(self.net),
            optimizer_tensors(self.optimizer),
            self.training.generator.get_state(),
            global_states(self.device),
            self.hooks.state_dict(),
            {} if self.average is None else self.average.state_dict(),
        )

    def load_state_dict(self, state: TrainerState) -> Mapping[str, Tensor] | None:
        """Load what `state_dict` returned, and return the masks in force, if the hooks have any."""
        self.net.load_state_dict(state.weights)
        load_optimizer(self.optimizer, state.optimizer)
        self.training.generator.set_state(state.generator)
        set_global_states(state.global_generators, self.device)
        if self.average is not None:
            self.average.load_state_dict(state.average)
        return None if self.hooks.stateful is None else self.hooks.stateful.load_state_dict(state.hook_state)

    def lr_at(self, epochs: float, *, step: float) -> float:
        """Return the rate at a position of the phase; `step` is the length of a step. Both in epochs."""
        position = self.phase.start + (0.0 if self.phase.constant_lr else epochs)
        return self.phase.lr_factor * learning_rate(self.recipe, position, step=step)

    def _accumulate(self, images: Tensor, labels: Labels, batch_size: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of one micro-batch, and return (its summed loss, its correct predictions)."""
        with precision(self.numerics, images.device):
            logits = self.net(images)
        targets = labels.targets(logits.shape[1], smoothing=self.recipe.label_smoothing)
        loss = self.hooks.loss(logits.float(), images, targets)
        (loss / batch_size).backward()
        return loss.detach(), labels.count_hits(logits.detach().argmax(1))

    def _step(self, lr: float, *, progress: float, images: int) -> Mapping[str, Tensor] | None:
        """Let the optimizer step, and apply the masks; return new ones where a hook has changed them."""
        regularizer = self.hooks.regularizer
        if self.hooks.after_backward is not None:
            self.hooks.after_backward()
        if regularizer is not None:
            regularizer.before_step(progress=progress)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        if self.hooks.optimizer_step is None and regularizer is None:
            step_and_mask(self.optimizer, self.apply_masks)
            return None
        new_masks = None
        if self.hooks.optimizer_step is None:
            self.optimizer.step()
        else:
            new_masks = self.hooks.optimizer_step(self.optimizer, images)
        if regularizer is not None:
            regularizer.after_step(lr, progress=progress)
        if new_masks is not None:
            self.apply_masks.replace(new_masks)
        self.apply_masks()
        return new_masks
