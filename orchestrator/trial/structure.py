"""A model's layers, units and channels, found on a fresh network once in a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import nn

import models
from orchestrator.system.determinism import seeded
from orchestrator.trial.network_size import Architecture, size_conflict
from pruning.channels import trace
from pruning.checks import check_stored_weights
from pruning.dataflow import DataFlow, find_data_flow, find_protected_layers, find_unprunable
from pruning.granularity import unit_groups
from pruning.masking import Group

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _once(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Cache the function's result, or its ValueError: a network that cannot be traced is traced once, too."""

    @lru_cache(maxsize=256)
    def outcome(*args: object) -> object:
        try:
            with seeded(0):  # a network may draw as it runs, too
                return cast(Callable[..., object], function)(*args)
        except ValueError as error:
            return error.with_traceback(None)  # whose frames would hold the network

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        result = outcome(*args, *kwargs.values())
        if isinstance(result, ValueError):
            raise ValueError(str(result))
        return cast(_T, result)

    return call


@_once
def flow_of(architecture: Architecture) -> DataFlow:
    """Return which layers run, make the logits, are read by norms. ValueError if the network cannot run."""
    return find_data_flow(_network(architecture), _image(architecture))


@_once
def layers_protected(architecture: Architecture, protect: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the layers for `protect`, sorted. ValueError for a layer that is not there."""
    has_alias = bool({"input", "output"} & set(protect))
    flow = flow_of(architecture) if has_alias else None
    return tuple(sorted(find_protected_layers(_network(architecture), protect, flow=flow)))


@_once
def channels_of(architecture: Architecture, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return the channel groups. ValueError where a channel cannot be cut out exactly."""
    return trace(_network(architecture), _image(architecture), protect=protect)


def units_of(architecture: Architecture, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return one group of units per hidden layer. ValueError if the network cannot run."""
    return unit_groups(_network(architecture), protect=protect, flow=flow_of(architecture))


@_once
def unpruned_of(architecture: Architecture, granularity: str) -> tuple[str, ...]:
    """Return what has weights and is not pruned, as `name (type)`. ValueError if the network cannot run."""
    is_grouped = granularity.partition("(")[0] in ("unit", "channel")
    return find_unprunable(_network(architecture), flow_of(architecture) if is_grouped else None)


@_once
def check_weights(architecture: Architecture, protect: tuple[str, ...]) -> None:
    """ValueError for a layer, not protected, that computes with another weight than it stores."""
    net = _network(architecture)
    protected = set(layers_protected(architecture, protect))
    check_stored_weights(net, {name for name, _ in net.named_modules()} - protected)


@lru_cache(maxsize=2)
def _network(architecture: Architecture) -> nn.Module:
    """Return a fresh network, to be read and not changed. ValueError for one that is too large."""
    if reason := size_conflict(architecture):
        raise ValueError(reason)
    model, shape, classes = architecture
    with seeded(0):
        return models.build(model, input_shape=shape, num_classes=classes)


def _image(architecture: Architecture) -> torch.Tensor:
    return torch.zeros((2, *architecture[1]))  # only its shape matters
