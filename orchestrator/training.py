"""Training and evaluation: pure torch, nothing in the loop waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.augmentation import augment
from orchestrator.config import Numerics, Train
from orchestrator.data import Split, batches
from orchestrator.errors import DivergedError, SpaceError, unknown
from orchestrator.evaluation import evaluate, precision

OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter], Train], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, train: torch.optim.SGD(
        parameters,
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
        weight_decay=train.weight_decay,
    ),
    "adam": lambda parameters, train: torch.optim.Adam(
        parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True
    ),
    "adamw": lambda parameters, train: torch.optim.AdamW(
        parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True
    ),
}

# Factor of the peak rate at `progress` in [0, 1] of the whole training.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "step": lambda progress: 0.1 ** ((progress >= 0.5) + (progress >= 0.75)),
    "linear": lambda progress: 1.0 - progress,
}


@dataclass(frozen=True)
class Phase:
    """`epochs` to train, starting at position `start` (in epochs) of the recipe's learning-rate schedule.

    With `hold` the position stays where it is: the rate is constant. `lr_factor` scales it.
    """

    epochs: int
    start: float = 0.0
    hold: bool = False
    lr_factor: float = 1.0


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training gave; `seconds` without the validation."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


Report = Callable[[int, EpochRecord], None]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, images, labels) -> the sum over the batch


class Regularizer(Protocol):
    """What a regularizer does around every optimizer step; `progress` in [0, 1] is of the phase."""

    def before_step(self, *, progress: float) -> None: ...

    def after_step(self, lr: float, *, progress: float) -> None: ...


def cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p(label), in nats."""
    return functional.cross_entropy(logits, labels, reduction="sum")


@dataclass(frozen=True, eq=False)
class Extras:
    """What may be added to a plain training.

    `after_epoch(epoch)` may change the network and gives new masks, or None for those of before.
    """

    loss: Loss = cross_entropy
    regularizer: Regularizer | None = None
    after_epoch: Callable[[int], Mapping[str, Tensor] | None] | None = None


PLAIN = Extras()


def learning_rate(train: Train, position: float, *, step: float = 0.0) -> float:
    """The recipe's rate at `position` epochs: a linear warm-up, then its schedule. SpaceError if unknown.

    `step` is the length of a step in epochs: the warm-up counts it, so that the first is not for nothing.
    """
    if train.schedule not in LR_SCHEDULES:
        raise SpaceError(unknown("learning-rate schedule", train.schedule, LR_SCHEDULES))
    warm = min(1.0, (position + step) / train.warmup_epochs) if train.warmup_epochs else 1.0
    return train.lr * warm * LR_SCHEDULES[train.schedule](min(position / train.epochs, 1.0))


def make_optimizer(train: Train, net: nn.Module) -> torch.optim.Optimizer:
    if train.optimizer not in OPTIMIZERS:
        raise SpaceError(unknown("optimizer", train.optimizer, OPTIMIZERS))
    return OPTIMIZERS[train.optimizer](list(net.parameters()), train)


def train(
    net: nn.Module,
    split: Split,
    validation: Split,
    *,
    recipe: Train,
    phase: Phase,
    batch_size: int,
    numerics: Numerics,
    generator: torch.Generator,
    masks: Mapping[str, Tensor] | None = None,
    extras: Extras = PLAIN,
    report: Report | None = None,
) -> list[EpochRecord]:
    """Train `net` in place for one phase with a fresh optimizer; masked weights are zero after every step.

    Batches and augmentation are drawn from `generator`. DivergedError, with the epoch, once the
    loss is no longer finite.
    """
    loop = _Loop(
        net, split, make_optimizer(recipe, net), recipe, phase, batch_size, numerics, generator, extras
    )
    mask = _Masker(net, masks or {})
    records = []
    for epoch in range(phase.epochs):
        started = perf_counter()
        loss, hits, rate = loop.epoch(epoch, mask)
        new = extras.after_epoch(epoch + 1) if extras.after_epoch else None
        mask = mask if new is None else _Masker(net, new)
        seconds = perf_counter() - started
        held_out = evaluate(net, validation, numerics=numerics)
        if not math.isfinite(loss) or not math.isfinite(held_out.loss):
            raise DivergedError(f"the loss is no longer finite in epoch {epoch + 1} of {phase.epochs}")
        records.append(EpochRecord(loss, hits, held_out.loss, held_out.accuracy, rate, seconds))
        if report is not None:
            report(epoch + 1, records[-1])
    return records


@dataclass(frozen=True, eq=False)
class _Loop:
    net: nn.Module
    split: Split
    optimizer: torch.optim.Optimizer
    recipe: Train
    phase: Phase
    batch_size: int
    numerics: Numerics
    generator: torch.Generator
    extras: Extras

    def epoch(self, number: int, mask: _Masker) -> tuple[float, float, float]:
        """One pass over the split: (mean loss, accuracy, last learning rate)."""
        self.net.train()
        size, device = len(self.split), self.split.images.device
        total, hits, rate = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
        steps = math.ceil(size / self.batch_size)
        for step, index in enumerate(batches(size, self.batch_size, self.generator)):
            rate = self._set_rate(number + step / steps, step=1 / steps)
            self.optimizer.zero_grad(set_to_none=True)
            # Parts of nearly one size: a part of one image would have no batch statistics.
            for part in index.to(device).tensor_split(math.ceil(len(index) / self.numerics.micro_batch)):
                loss, right = self._accumulate(part, len(index))
                total += loss
                hits += right
            self._step(rate, progress=(number + step / steps) / self.phase.epochs)
            mask()
        return float(total) / size, float(hits) / size, rate

    def _set_rate(self, epochs: float, *, step: float) -> float:
        position = self.phase.start + (0.0 if self.phase.hold else epochs)
        rate = self.phase.lr_factor * learning_rate(self.recipe, position, step=step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _accumulate(self, part: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of one part of a batch; (its summed loss, how many it has right)."""
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
    """Multiplies masks into the parameters; the float copies are made once, not at every step."""

    def __init__(self, net: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(net.named_parameters())
        partial = {name: mask for name, mask in masks.items() if not mask.all()}
        self.parameters: list[Tensor] = [parameters[name] for name in partial]
        self.factors = [mask.to(parameters[name]) for name, mask in partial.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        if self.parameters:
            torch._foreach_mul_(self.parameters, self.factors)
