"""Optimizers, and the learning rate at every position of a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer

from orchestrator.config import Train
from orchestrator.errors import SpaceError, unknown_name
from orchestrator.training.lr_schedules import TrainingPosition, get_lr_schedule

Kind = TypeVar("Kind", bound=Optimizer)


def _uncompiled(kind: type[Kind]) -> type[Kind]:
    """Return the optimizer without torch's wrappers for `torch.compile`, whose import costs a worker 1 s."""
    wrapped = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Kind], type(kind.__name__, (kind,), methods))


SGD, Adam, AdamW = (
    _uncompiled(torch.optim.SGD),
    _uncompiled(torch.optim.Adam),
    _uncompiled(torch.optim.AdamW),
)
ParameterGroups = list[dict[str, Any]]  # as torch's optimizers take them
OPTIMIZERS: dict[str, Callable[[ParameterGroups, Train], Optimizer]] = {
    "sgd": lambda groups, train: SGD(
        groups,
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
        weight_decay=train.weight_decay,
    ),
    "adam": lambda groups, train: Adam(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True),
    "adamw": lambda groups, train: AdamW(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True),
}


@dataclass(frozen=True)
class TrainingPhase:
    """`epochs` to train, starting at position `start` (in epochs) of the recipe's learning-rate schedule.

    With `constant_lr` the position, and so the rate, stays where it starts. `lr_factor` scales the rate.
    """

    epochs: int
    start: float = 0.0
    constant_lr: bool = False
    lr_factor: float = 1.0


def learning_rate(train: Train, position: float, *, step: float = 0.0) -> float:
    """Return the recipe's rate at `position` epochs: a linear warm-up, then its schedule.

    `step` is the length of a step in epochs: the warm-up counts it, so that the first step learns.
    SpaceError for an unknown schedule.
    """
    schedule = get_lr_schedule(train.schedule)
    warm = min(1.0, (position + step) / train.warmup_epochs) if train.warmup_epochs else 1.0
    return train.lr * warm * float(schedule(TrainingPosition(position, train.epochs, step)))


def make_optimizer(train: Train, net: nn.Module) -> Optimizer:
    """Return the recipe's optimizer for all parameters of a network. SpaceError for an unknown name."""
    return make_group_optimizer(train, [list(net.parameters())])


def make_group_optimizer(train: Train, groups: Sequence[Sequence[nn.Parameter]]) -> Optimizer:
    """Return the recipe's optimizer, with a learning rate for each group of parameters."""
    if train.optimizer not in OPTIMIZERS:
        raise SpaceError(unknown_name("optimizer", train.optimizer, OPTIMIZERS))
    return OPTIMIZERS[train.optimizer]([{"params": list(group)} for group in groups], train)
