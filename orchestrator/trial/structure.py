"""A model's layers, units and channels, seen on a fresh network once in a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

import torch
from torch import nn

import models
from orchestrator.system.determinism import seeded
from orchestrator.trial.network_size import size_conflict
from pruning.dataflow import DataFlow, data_flow, protected_layers, unpruned
from pruning.masking import Group
from pruning.own_weights import check_own_weights
from pruning.structure import trace
from pruning.units import unit_groups

Shape = tuple[int, int, int]
Built = tuple[str, Shape, int]  # a model's text, its input shape and number of classes


def flow_of(built: Built) -> DataFlow:
    """Which layers run, make the logits, are read by norms. ValueError for a network that cannot run."""
    return _once(_flow_of, built)


def layers_protected(built: Built, protect: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the layers for `protect`, in the order of the alphabet. ValueError for others."""
    return _once(_layers_protected, built, protect)


def channels_of(built: Built, protect: tuple[str, ...] = ()) -> tuple[Group, ...]:
    """The channel groups. ValueError where a channel cannot be cut out exactly."""
    return _once(_channels_of, built, protect)


def units_of(built: Built, protect: tuple[str, ...] = ()) -> tuple[Group, ...]:
    """One group per hidden layer."""
    return unit_groups(_network(built), protect=protect, flow=flow_of(built))


def unpruned_of(built: Built, granularity: str) -> tuple[str, ...]:
    """What has weights and is not pruned, as `name (type)`. ValueError for a network that cannot run."""
    return _once(_unpruned_of, built, granularity.partition("(")[0] in ("unit", "channel"))


def check_weights(built: Built, protect: tuple[str, ...]) -> None:
    """ValueError for a layer, not protected, that computes with another weight than it stores."""
    _once(_check_weights, built, protect)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _once(function: Callable[_P, _T], *args: _P.args, **_: _P.kwargs) -> _T:
    """The function's answer, or its ValueError, kept: a network that cannot be traced is traced once, too."""
    answer = _answers(function, args)
    if isinstance(answer, ValueError):
        raise ValueError(str(answer))
    return cast(_T, answer)


@lru_cache(maxsize=256)
def _answers(function: Callable[..., object], args: tuple[object, ...]) -> object:
    try:
        with seeded(0):  # a network may draw as it runs, too
            return function(*args)
    except ValueError as error:
        return error.with_traceback(None)


@lru_cache(maxsize=2)
def _network(built: Built) -> nn.Module:
    """A fresh network, to be looked at and left as it is. ValueError for one that is too large."""
    if reason := size_conflict(built):
        raise ValueError(reason)
    model, shape, classes = built
    with seeded(0):
        return models.build(model, input_shape=shape, num_classes=classes)


def _image(built: Built) -> torch.Tensor:
    return torch.zeros((2, *built[1]))  # of which the shape counts alone


def _flow_of(built: Built) -> DataFlow:
    return data_flow(_network(built), _image(built))


def _layers_protected(built: Built, protect: tuple[str, ...]) -> tuple[str, ...]:
    net = _network(built)
    aliases = {"input", "output"} & set(protect)
    return tuple(sorted(protected_layers(net, protect, flow=flow_of(built) if aliases else None)))


def _channels_of(built: Built, protect: tuple[str, ...]) -> tuple[Group, ...]:
    return trace(_network(built), _image(built), protect=protect)


def _unpruned_of(built: Built, grouped: bool) -> tuple[str, ...]:
    return unpruned(_network(built), flow_of(built) if grouped else None)


def _check_weights(built: Built, protect: tuple[str, ...]) -> None:
    net = _network(built)
    check_own_weights(net, {name for name, _ in net.named_modules()} - set(layers_protected(built, protect)))
