"""Training and evaluation: pure torch, nothing in the loop waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config import Numerics, Train
from orchestrator.data import Split, augment, batches
from orchestrator.errors import DivergedError, SpaceError, unknown

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
class Evaluation:
    """On one split: fractions for the accuracies, nats for the cross-entropy `loss`."""

    accuracy: float
    top5: float
    loss: float
    confusion: Tensor
    seconds: float


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


def learning_rate(train: Train, position: float) -> float:
    """The recipe's rate at `position` epochs: a linear warm-up, then its schedule. SpaceError if unknown."""
    if train.schedule not in LR_SCHEDULES:
        raise SpaceError(unknown("learning-rate schedule", train.schedule, LR_SCHEDULES))
    warm = min(1.0, (position + 1e-9) / train.warmup_epochs) if train.warmup_epochs else 1.0
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
    report: Report | None = None,
) -> list[EpochRecord]:
    """Train `net` in place for one phase with a fresh optimizer; masked weights are zero after every step.

    Batches and augmentation are drawn from `generator`. DivergedError, with the epoch, once the
    loss is no longer finite.
    """
    optimizer = make_optimizer(recipe, net)
    mask = _Masker(net, masks or {})
    records = []
    for epoch in range(phase.epochs):
        started = perf_counter()
        loss, hits, rate = _epoch(
            net, split, optimizer, mask, recipe, phase, epoch, batch_size, numerics, generator
        )
        seconds = perf_counter() - started
        held_out = evaluate(net, validation, numerics=numerics)
        if not math.isfinite(loss) or not math.isfinite(held_out.loss):
            raise DivergedError(f"the loss is no longer finite in epoch {epoch + 1} of {phase.epochs}")
        records.append(EpochRecord(loss, hits, held_out.loss, held_out.accuracy, rate, seconds))
        if report is not None:
            report(epoch + 1, records[-1])
    return records


def _epoch(
    net: nn.Module,
    split: Split,
    optimizer: torch.optim.Optimizer,
    mask: _Masker,
    recipe: Train,
    phase: Phase,
    epoch: int,
    batch_size: int,
    numerics: Numerics,
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """One pass over the split: (mean loss, accuracy, last learning rate)."""
    net.train()
    device = split.images.device
    total, hits, rate = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
    steps = math.ceil(len(split) / batch_size)
    for step, index in enumerate(batches(len(split), batch_size, generator)):
        position = phase.start + (0.0 if phase.hold else epoch + step / steps)
        rate = phase.lr_factor * learning_rate(recipe, position)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        for part in index.to(device).tensor_split(math.ceil(len(index) / numerics.micro_batch)):
            images = augment(split.images[part], generator, kind=recipe.augment)
            labels = split.labels[part]
            with _precision(numerics, device):
                logits = net(images)
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            (loss / len(index)).backward()
            total += loss.detach()
            hits += (logits.detach().argmax(1) == labels).sum()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm)
        optimizer.step()
        mask()
    return float(total) / len(split), float(hits) / len(split), rate


@torch.inference_mode()
def evaluate(net: nn.Module, split: Split, *, numerics: Numerics) -> Evaluation:
    """Accuracy, top-5 accuracy, mean cross-entropy and confusion matrix [true, predicted], in eval mode."""
    net.eval()
    started = perf_counter()
    parts = []
    for part in torch.arange(len(split)).split(numerics.micro_batch):
        with _precision(numerics, split.images.device):
            parts.append(net(split.images[part.to(split.images.device)]).float())
    logits = torch.cat(parts)
    classes = logits.shape[1]
    ranked = logits.topk(min(5, classes), dim=1).indices
    confusion = torch.bincount(split.labels * classes + ranked[:, 0], minlength=classes * classes)
    loss = functional.cross_entropy(logits, split.labels)
    found = ranked == split.labels[:, None]
    hits, hits5, nats = torch.stack([found[:, 0].sum(), found.any(1).sum(), loss.double()]).tolist()
    size = len(split)
    return Evaluation(
        hits / size, hits5 / size, nats, confusion.reshape(classes, classes).cpu(), perf_counter() - started
    )


def _precision(numerics: Numerics, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=numerics.precision == "bf16")


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
