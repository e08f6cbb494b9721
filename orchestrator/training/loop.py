"""The training loop, what may be added to it, and its state between two epochs."""

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
from orchestrator.training.checkpoint_format import Checkpoint, load_optimizer, optimizer_tensors, snapshot
from orchestrator.training.evaluation import evaluate, precision
from orchestrator.training.inputs import Inputs
from orchestrator.training.losses import Labels, Loss, cross_entropy
from orchestrator.training.masker import Masker
from orchestrator.training.optimizers import TrainingPhase, learning_rate, make_optimizer

# (optimizer, images of the batch) -> new masks, or None for those of before
OptimizerStep = Callable[[torch.optim.Optimizer, int], Mapping[str, Tensor] | None]


class Regularizer(Protocol):
    """Acts before and after every optimizer step; `progress` in [0, 1] is that of the phase."""

    def before_step(self, *, progress: float) -> None: ...

    def after_step(self, lr: float, *, progress: float) -> None: ...


class StatefulHook(Protocol):
    """What the hooks remember from epoch to epoch, beside the network."""

    def state_dict(self) -> Checkpoint:
        """Return what the next epochs depend on."""

    def load_state_dict(self, saved: Checkpoint) -> Mapping[str, Tensor]:
        """Load what `state_dict` returned, and return the masks in force."""


@dataclass(frozen=True, eq=False)
class TrainingHooks:
    """What may be added to a plain training.

    `after_epoch(epoch)` may change the network, and returns new masks or None for those of before;
    `optimizer_step`, in place of the optimizer's own, may do so at every step. `after_backward()` sees the
    gradient of every batch, whole and not yet clipped. What these remember is in `stateful`. A loss and a
    regularizer keep nothing from step to step.
    """

    loss: Loss = cross_entropy
    regularizer: Regularizer | None = None
    after_epoch: Callable[[int], Mapping[str, Tensor] | None] | None = None
    stateful: StatefulHook | None = None
    after_backward: Callable[[], None] | None = None
    optimizer_step: OptimizerStep | None = None

    @property
    def cannot_resume(self) -> bool:
        """Whether what the hooks remember would be lost: such a training starts anew."""
        in_use = (self.after_epoch, self.after_backward, self.optimizer_step)
        return self.stateful is None and any(hook is not None for hook in in_use)

    def state_dict(self) -> Checkpoint:
        """Return what the hooks remember; empty where they are not stateful."""
        return Checkpoint({}, {}) if self.stateful is None else self.stateful.state_dict()


NO_HOOKS = TrainingHooks()


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
    inputs, average = Inputs(split, recipe, generator), WeightAverage(net, recipe.ema) if recipe.ema else None
    optimizer = make_optimizer(recipe, net)
    loop = _Loop(net, inputs, optimizer, recipe, phase, batch_size, numerics, generator, hooks, average)
    records = [] if resume_from is None else list(resume_from.records)
    if resume_from is not None:
        masks = loop.load_state_dict(resume_from) or masks
    apply_masks = Masker(dict(net.named_parameters()), masks or {})
    for epoch in range(len(records), phase.epochs):
        started = perf_counter()
        loss, accuracy, lr = loop.run_epoch(epoch, apply_masks)
        with loop.averaged():
            new_masks = hooks.after_epoch(epoch + 1) if hooks.after_epoch else None
            seconds = perf_counter() - started
            evaluation = evaluate(net, validation, numerics=numerics)
        if new_masks is not None:
            apply_masks.replace(new_masks)
            if average is not None:
                apply_masks()  # the hook has changed the average alone
        _check_finite(loss, evaluation.loss, epoch=epoch + 1, epochs=phase.epochs)
        records.append(EpochRecord(loss, accuracy, evaluation.loss, evaluation.accuracy, lr, seconds))
        if maybe_save is not None:
            maybe_save(partial(loop.state_dict, tuple(records)))
        if on_epoch is not None:
            on_epoch(epoch + 1, records[-1])
    if average is not None:
        average.replace_weights()
    return records


def _check_finite(*losses: float, epoch: int, epochs: int) -> None:
    if not all(map(math.isfinite, losses)):
        raise DivergedError(f"the loss is no longer finite in epoch {epoch} of {epochs}")


@dataclass(frozen=True, eq=False)
class _Loop:
    """One training, an epoch at a time: what it trains, on what, by which recipe."""

    net: nn.Module
    inputs: Inputs
    optimizer: torch.optim.Optimizer
    recipe: Train
    phase: TrainingPhase
    batch_size: int
    numerics: Numerics
    generator: torch.Generator
    hooks: TrainingHooks
    average: WeightAverage | None

    @property
    def split(self) -> Split:
        return self.inputs.split

    def averaged(self) -> AbstractContextManager[None]:
        """Return a block in which the network has its average, if the recipe has one."""
        return nullcontext() if self.average is None else self.average.in_place_of_weights()

    def run_epoch(self, epoch: int, apply_masks: Masker) -> tuple[float, float, float]:
        """Pass over the split once, and return (mean loss, accuracy, last learning rate)."""
        self.net.train()
        size, device = len(self.split), self.split.images.device
        loss_sum, correct, lr = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
        steps = math.ceil(size / self.batch_size)
        batches = self.inputs.epoch(self.batch_size, micro_batch=self.numerics.micro_batch)
        for step, (batch_size, micro_batches) in enumerate(batches):
            lr = self._set_lr(epoch + step / steps, step=1 / steps)
            self.optimizer.zero_grad(set_to_none=True)
            for images, labels in micro_batches:
                loss, hits = self._accumulate(images, labels, batch_size)
                loss_sum += loss
                correct += hits
            progress = (epoch + step / steps) / self.phase.epochs
            new_masks = self._step(lr, progress=progress, images=batch_size)
            if new_masks is not None:
                apply_masks.replace(new_masks)
            apply_masks()
            if self.average is not None:
                self.average.update(new_masks)
        total_loss, total_correct = torch.stack([loss_sum, correct]).tolist()  # the only wait for the device
        return total_loss / size, total_correct / size, lr

    def state_dict(self, records: tuple[EpochRecord, ...]) -> TrainerState:
        """Return a copy of the training's state after the epochs of these records."""
        return TrainerState(
            records,
            self.numerics.micro_batch,
            snapshot(self.net),
            optimizer_tensors(self.optimizer),
            self.generator.get_state(),
            global_states(self.split.images.device),
            self.hooks.state_dict(),
            {} if self.average is None else self.average.state_dict(),
        )

    def load_state_dict(self, state: TrainerState) -> Mapping[str, Tensor] | None:
        """Load what `state_dict` returned, and return the masks in force, if the hooks have any."""
        self.net.load_state_dict(state.weights)
        load_optimizer(self.optimizer, state.optimizer)
        self.generator.set_state(state.generator)
        set_global_states(state.global_generators, self.split.images.device)
        if self.average is not None:
            self.average.load_state_dict(state.average)
        return None if self.hooks.stateful is None else self.hooks.stateful.load_state_dict(state.hook_state)

    def _set_lr(self, epochs: float, *, step: float) -> float:
        position = self.phase.start + (0.0 if self.phase.constant_lr else epochs)
        lr = self.phase.lr_factor * learning_rate(self.recipe, position, step=step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _accumulate(self, images: Tensor, labels: Labels, batch_size: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of one micro-batch, and return (its summed loss, its correct predictions)."""
        with precision(self.numerics, images.device):
            logits = self.net(images)
        targets = labels.targets(logits.shape[1], smoothing=self.recipe.label_smoothing)
        loss = self.hooks.loss(logits.float(), images, targets)
        (loss / batch_size).backward()
        return loss.detach(), labels.count_hits(logits.detach().argmax(1))

    def _step(self, lr: float, *, progress: float, images: int) -> Mapping[str, Tensor] | None:
        """Let the optimizer step; return new masks where a hook has changed them."""
        regularizer = self.hooks.regularizer
        if self.hooks.after_backward is not None:
            self.hooks.after_backward()
        if regularizer is not None:
            regularizer.before_step(progress=progress)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        new_masks = None
        if self.hooks.optimizer_step is None:
            self.optimizer.step()
        else:
            new_masks = self.hooks.optimizer_step(self.optimizer, images)
        if regularizer is not None:
            regularizer.after_step(lr, progress=progress)
        return new_masks
