"""Optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer

from orchestrator.config import Train
from orchestrator.errors import SpaceError, unknown_name

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


def make_optimizer(train: Train, net: nn.Module) -> Optimizer:
    """Return the recipe's optimizer for all parameters of a network. SpaceError for an unknown name."""
    return make_group_optimizer(train, [list(net.parameters())])


def make_group_optimizer(train: Train, groups: Sequence[Sequence[nn.Parameter]]) -> Optimizer:
    """Return the recipe's optimizer, with a learning rate for each group of parameters."""
    if train.optimizer not in OPTIMIZERS:
        raise SpaceError(unknown_name("optimizer", train.optimizer, OPTIMIZERS))
    return OPTIMIZERS[train.optimizer]([{"params": list(group)} for group in groups], train)
