"""What may be added to a plain training: a loss, a regularizer, something to do after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config import Numerics, Train
from orchestrator.data.batches import augment, iter_batches
from orchestrator.data.loading import Split
from orchestrator.errors import DivergedError
from orchestrator.system.determinism import global_states, set_global_states
from orchestrator.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors, snapshot
from orchestrator.training.evaluation import evaluate, precision
from orchestrator.training.optimizers import TrainingPhase, learning_rate, make_optimizer
from pruning.masking import bits_of

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, images, labels) -> the sum over the batch


class Regularizer(Protocol):
    """What a regularizer does around every optimizer step; `progress` in [0, 1] is of the phase."""

    def before_step(self, *, progress: float) -> None: ...

    def after_step(self, lr: float, *, progress: float) -> None: ...


def cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p(label), in nats."""
    return functional.cross_entropy(logits, labels, reduction="sum")


class StatefulHook(Protocol):
    """What `after_epoch` knows from epoch to epoch, beside the network."""

    def state_dict(self) -> Checkpoint: ...

    def load_state_dict(self, saved: Checkpoint) -> Mapping[str, Tensor]:
        """Know it again; the masks in force come back."""


@dataclass(frozen=True, eq=False)
class TrainingHooks:
    """What may be added to a plain training.

    `after_epoch(epoch)` may change the network and gives new masks, or None for those of before; what
    it remembers is in `memory`. A loss and a regularizer keep nothing from step to step.
    """

    loss: Loss = cross_entropy
    regularizer: Regularizer | None = None
    after_epoch: Callable[[int], Mapping[str, Tensor] | None] | None = None
    stateful: StatefulHook | None = None

    @property
    def cannot_resume(self) -> bool:
        """Whether what `after_epoch` knows would be lost: such a training cannot be carried on."""
        return self.after_epoch is not None and self.stateful is None

    def state_dict(self) -> Checkpoint:
        return Checkpoint({}, {}) if self.stateful is None else self.stateful.state_dict()


NO_HOOKS = TrainingHooks()


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training gave; `seconds` without the validation."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


OnEpoch = Callable[[int, EpochRecord], None]


@dataclass(frozen=True, eq=False)
class TrainerState:
    """A training between two epochs, on the CPU: what it goes on from with the same bits.

    Its position in the schedule is the number of its records. `optimizer` may be empty after the last.
    `generator` is that of the order and the augmentation; dropout draws from the global ones.
    """

    records: tuple[EpochRecord, ...]
    micro_batch: int
    weights: dict[str, Tensor]
    optimizer: Mapping[str, Tensor]
    generator: Tensor
    global_generators: Mapping[str, Tensor]
    hook_state: Checkpoint


Keep = Callable[[Callable[[], TrainerState]], None]  # called at every epoch's end; calls for what it wants


class TrainingCheckpointer(Protocol):
    """Where the trainings of a walk are written down, so that another process carries on with them."""

    def resume(self, stage: str, round: int) -> TrainerState | None:
        """How far the next training came before; None if it is new."""

    def maybe_save(self, stage: str, round: int, capture: Callable[[], TrainerState]) -> None:
        """An epoch has ended."""

    def finished(self, stage: str, round: int, underway: TrainerState) -> None:
        """The training has ended."""


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
    maybe_save: Keep | None = None,
) -> list[EpochRecord]:
    """Train `net` in place for one phase with a fresh optimizer; masked weights are zero after every step.

    Batches and augmentation are drawn from `generator`, dropout from the global one: the caller seeds both.
    With `underway` it goes on from there, those records first. DivergedError once a loss is not finite.
    """
    loop = _Loop(
        net, split, make_optimizer(recipe, net), recipe, phase, batch_size, numerics, generator, hooks
    )
    records: list[EpochRecord] = []
    if resume_from is not None:
        masks = loop.go_on_from(resume_from) or masks
        records += resume_from.records
    mask = _Masker(net, masks or {})
    for epoch in range(len(records), phase.epochs):
        started = perf_counter()
        loss, hits, rate = loop.epoch(epoch, mask)
        new = hooks.after_epoch(epoch + 1) if hooks.after_epoch else None
        mask = mask if new is None else _Masker(net, new)
        seconds = perf_counter() - started
        held_out = evaluate(net, validation, numerics=numerics)
        if not math.isfinite(loss) or not math.isfinite(held_out.loss):
            raise DivergedError(f"the loss is no longer finite in epoch {epoch + 1} of {phase.epochs}")
        records.append(EpochRecord(loss, hits, held_out.loss, held_out.accuracy, rate, seconds))
        if maybe_save is not None:
            maybe_save(partial(loop.underway, tuple(records)))
        if on_epoch is not None:
            on_epoch(epoch + 1, records[-1])
    return records


@dataclass(frozen=True, eq=False)
class _Loop:
    net: nn.Module
    split: Split
    optimizer: torch.optim.Optimizer
    recipe: Train
    phase: TrainingPhase
    batch_size: int
    numerics: Numerics
    generator: torch.Generator
    extras: TrainingHooks

    def epoch(self, number: int, mask: _Masker) -> tuple[float, float, float]:
        """One pass over the split: (mean loss, accuracy, last learning rate)."""
        self.net.train()
        size, device = len(self.split), self.split.images.device
        total, hits, rate = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
        steps = math.ceil(size / self.batch_size)
        for step, index in enumerate(iter_batches(size, self.batch_size, self.generator, device=device)):
            rate = self._set_rate(number + step / steps, step=1 / steps)
            self.optimizer.zero_grad(set_to_none=True)
            # Parts of nearly one size: a part of one image would have no batch statistics.
            for part in index.tensor_split(math.ceil(len(index) / self.numerics.micro_batch)):
                loss, right = self._accumulate(part, len(index))
                total += loss
                hits += right
            self._step(rate, progress=(number + step / steps) / self.phase.epochs)
            mask()
        summed, right = torch.stack([total, hits]).tolist()  # the epoch's only wait for the device
        return summed / size, right / size, rate

    def underway(self, records: tuple[EpochRecord, ...]) -> TrainerState:
        """Where the training stands after these epochs, copied."""
        return TrainerState(
            records,
            self.numerics.micro_batch,
            snapshot(self.net),
            optimizer_tensors(self.optimizer),
            self.generator.get_state(),
            global_states(self.split.images.device),
            self.extras.state_dict(),
        )

    def go_on_from(self, underway: TrainerState) -> Mapping[str, Tensor] | None:
        """Stand where a training stood; the masks in force, if its hooks know of any."""
        self.net.load_state_dict(underway.weights)
        load_optimizer(self.optimizer, underway.optimizer)
        self.generator.set_state(underway.generator)
        set_global_states(underway.global_generators, self.split.images.device)
        memory = self.extras.stateful
        return None if memory is None else memory.load_state_dict(underway.hook_state)

    def _set_rate(self, epochs: float, *, step: float) -> float:
        position = self.phase.start + (0.0 if self.phase.constant_lr else epochs)
        rate = self.phase.lr_factor * learning_rate(self.recipe, position, step=step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _accumulate(self, part: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of one part of a batch; (its summed loss, how many it has right)."""
        # Not index_select: it orders grey images otherwise in memory, and convolutions then have other bits.
        images = augment(self.split.images[part], self.generator, kind=self.recipe.augment)
        labels = self.split.labels[part]
        with precision(self.numerics, images.device):
            logits = self.net(images)
        loss = self.extras.loss(logits.float(), images, labels)
        (loss / batch).backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _step(self, rate: float, *, progress: float) -> None:
        regularizer = self.extras.regularizer
        if regularizer is not None:
            regularizer.before_step(progress=progress)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if regularizer is not None:
            regularizer.after_step(rate, progress=progress)


class _Masker:
    """Sets dead weights to zero, whatever the step has made of them; its copies are made once.

    What is multiplied are the bits (see `bits_of`): in floats, 0 times an infinite weight is NaN.
    """

    def __init__(self, net: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(net.named_parameters())
        pruned = {name: mask for name, mask in masks.items() if not mask.all()}
        self.parameters = [bits_of(parameters[name]) for name in pruned]
        # Each in its parameter's order in memory, so that the two are multiplied as they lie.
        self.factors = [
            torch.empty_like(bits).copy_(mask)
            for bits, mask in zip(self.parameters, pruned.values(), strict=True)
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        if self.parameters:
            torch._foreach_mul_(self.parameters, self.factors)
