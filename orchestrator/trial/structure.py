"""A model's layers, units and channels, found on a fresh network once in a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import ParamSpec, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn

import models
from orchestrator.system.determinism import seeded
from orchestrator.trial.unsaved_tensors import drawn_tensor_conflict
from pruning.amounts import (
    ALIASES,
    find_layer_amounts,
    find_pool_amounts,
    mean_amount,
    read_amounts,
    settle_amounts,
)
from pruning.channels import Channels, find_channels
from pruning.checks import check_stored_weights
from pruning.dataflow import DataFlow, find_data_flow, find_unprunable
from pruning.granularity import unit_groups
from pruning.layer_names import find_protected_layers
from pruning.masking import Group, prunable_layers
from pruning.user_code import own_code

MAX_PARAMETERS = 1_000_000_000  # 4 GB in float32
MAX_ACTIVATIONS = 1_000_000_000  # numbers that all layers give out for two images
FEW_PARAMETERS = 2_000_000  # below, the activations are not counted: that costs seconds, once
COPIES = 4  # of the weights in a training: themselves, their gradients and two moments
Architecture = tuple[str, tuple[int, int, int], int]  # a model in text form, input shape, number of classes
# What builders and torch raise for bad sizes.
BAD_SIZES = (TypeError, ValueError, RuntimeError, OverflowError, MemoryError)


def _shown(model: str) -> str:
    return own_code.shown(model)[:80]


def meta_module(architecture: Architecture) -> nn.Module:
    """Return the network without storage, in eval mode. One of BAD_SIZES where it cannot be built."""
    model, shape, classes = architecture
    with torch.device("meta"):
        net = models.build(model, input_shape=shape, num_classes=classes).eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{_shown(model)} has {count:,} parameters; {MAX_PARAMETERS:,} is the most")
    return net


@lru_cache(maxsize=256)
def size_conflict(architecture: Architecture) -> str | None:
    """Return why a network cannot be built and traced on this machine; None if it can."""
    try:
        net = meta_module(architecture)
    except BAD_SIZES as error:
        return " ".join(str(error).split())[:200]
    model, shape, classes = architecture
    weight_bytes = sum(parameter.nbytes for parameter in net.parameters())
    memory_bytes = psutil.virtual_memory().total
    if COPIES * weight_bytes > memory_bytes:
        return (
            f"{_shown(model)} takes {COPIES * weight_bytes / 1e9:.3g} GB of memory in training, for its "
            f"weights alone; this machine has {memory_bytes / 1e9:.3g} GB"
        )
    build = partial(models.build, model, input_shape=shape, num_classes=classes)
    if conflict := drawn_tensor_conflict(build):
        return f"{_shown(model)}: {conflict}"
    if weight_bytes < 4 * FEW_PARAMETERS:
        return None
    try:
        count = activations(net, torch.empty((2, *shape), device="meta"))
    except BAD_SIZES:
        return None  # what cannot run without storage is told by the run with it
    return activation_conflict(architecture, count)


def activation_conflict(architecture: Architecture, count: int) -> str | None:
    """Return why so many `activations` are too many; None if they are not."""
    if count <= MAX_ACTIVATIONS:
        return None
    return (
        f"{_shown(architecture[0])} gives out {count:,} numbers for two images of {architecture[1]}; "
        f"{MAX_ACTIVATIONS:,} is the most"
    )


@torch.no_grad()
def activations(net: nn.Module, images: Tensor) -> int:
    """Count the numbers that the layers give out for images on `meta`: nothing is computed."""
    counts: list[int] = [images.numel()]

    def count(module: nn.Module, inputs: object, output: object) -> None:
        counts.append(output.numel() if isinstance(output, Tensor) else 0)

    leaves = (module for module in net.modules() if not list(module.children()))
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


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
    return find_data_flow(fresh_network(architecture), _image(architecture))


@_once
def layers_protected(
    architecture: Architecture, protect: tuple[str, ...], only: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the names of the layers that `protect` and `only` leave whole, sorted.

    ValueError for a layer that is not there, and a pattern that matches none.
    """
    has_alias = bool({"input", "output"} & {*protect, *only})
    flow = flow_of(architecture) if has_alias else None
    return tuple(sorted(find_protected_layers(fresh_network(architecture), protect, only=only, flow=flow)))


@_once
def _channels(architecture: Architecture, protect: tuple[str, ...]) -> Channels:
    return find_channels(fresh_network(architecture), _image(architecture), protect=protect)


def channels_of(architecture: Architecture, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return the channel groups. ValueError where nothing can be cut out exactly."""
    return _channels(architecture, protect).groups


def heads_of(architecture: Architecture, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return the groups of attention heads. ValueError for a network without heads that can be cut out."""
    heads = _channels(architecture, protect).heads
    if not heads:
        raise ValueError(f"{architecture[0]} has no attention whose heads can be removed")
    return heads


def units_of(architecture: Architecture, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return one group of units per hidden layer. ValueError if the network cannot run."""
    return unit_groups(fresh_network(architecture), protect=protect, flow=flow_of(architecture))


def removable_of(architecture: Architecture, granularity: str, protect: tuple[str, ...]) -> tuple[Group, ...]:
    """Return the groups that can be cut out where units, channels or heads are pruned: its heads or channels.

    ValueError as of their functions.
    """
    return (heads_of if granularity == "head" else channels_of)(architecture, protect)


def groups_of(
    architecture: Architecture, granularity: str, protect: tuple[str, ...]
) -> tuple[Group, ...] | None:
    """Return what a granularity removes together; None for single weights. ValueError as of its function."""
    find_groups = {"channel": channels_of, "head": heads_of, "unit": units_of}.get(granularity)
    return None if find_groups is None else find_groups(architecture, protect)


@_once
def layer_amounts_of(architecture: Architecture, amounts: str) -> dict[str, float]:
    """Return the amount of every layer; `amounts` is canonical text. ValueError for an entry without one."""
    net, by_pattern = fresh_network(architecture), read_amounts(amounts)
    has_alias = not {*ALIASES}.isdisjoint({*by_pattern, *prunable_layers(net)})
    return find_layer_amounts(net, by_pattern, flow=flow_of(architecture) if has_alias else None)


@_once
def settled_amounts_of(
    architecture: Architecture, granularity: str, protect: tuple[str, ...], amounts: str
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Return the amount where all that is removed has one, and (); else the mean, and every layer's."""
    net, by_layer = fresh_network(architecture), layer_amounts_of(architecture, amounts)
    groups, protected = groups_of(architecture, granularity, protect), layers_protected(architecture, protect)
    settled = settle_amounts(net, by_layer, groups=groups, protected=protected)
    if isinstance(settled, float):
        return settled, ()
    return mean_amount(net, by_layer), tuple(settled.items())


@_once
def pool_amounts_of(
    architecture: Architecture,
    granularity: str,
    protect: tuple[str, ...],
    layer_amounts: tuple[tuple[str, float], ...],
) -> dict[str, float]:
    """Return the amount of every weight or group by its name."""
    groups, protected = groups_of(architecture, granularity, protect), layers_protected(architecture, protect)
    pools = find_pool_amounts(
        fresh_network(architecture), dict(layer_amounts), groups=groups, protected=protected
    )
    return {name: amount for name, (amount, _) in pools.items()}


@_once
def mixed_amounts_of(
    architecture: Architecture, granularity: str, protect: tuple[str, ...], amounts: str
) -> tuple[str, ...]:
    """Return what layers of several amounts make together, and its amount: `conv1 (25% and 50%) gets 25%`."""
    groups, protected = groups_of(architecture, granularity, protect), layers_protected(architecture, protect)
    by_layer = layer_amounts_of(architecture, amounts)
    pools = find_pool_amounts(fresh_network(architecture), by_layer, groups=groups, protected=protected)
    return tuple(
        f"{pool} ({' and '.join(f'{100 * a:.4g}%' for a in different)}) gets {100 * smallest:.4g}%"
        for pool, (smallest, names) in pools.items()
        if len(different := sorted({by_layer[name] for name in names})) > 1
    )


@_once
def unpruned_of(architecture: Architecture, granularity: str) -> tuple[str, ...]:
    """Return what has weights and is not pruned, as `name (type)`. ValueError if the network cannot run."""
    granularity = granularity.partition("(")[0]
    flow = flow_of(architecture) if granularity in ("unit", "channel", "head") else None
    names = find_unprunable(fresh_network(architecture), flow)
    if granularity == "channel":
        return (*names, *_channels(architecture, ()).left_whole)
    return (*names, *_channels(architecture, ()).heads_left_whole) if granularity == "head" else names


@_once
def check_weights(architecture: Architecture, protect: tuple[str, ...]) -> None:
    """ValueError for a layer, not protected, that computes with another weight than it stores."""
    net = fresh_network(architecture)
    protected = set(layers_protected(architecture, protect))
    check_stored_weights(net, {name for name, _ in net.named_modules()} - protected)


@lru_cache(maxsize=2)
def fresh_network(architecture: Architecture) -> nn.Module:
    """Return a fresh network, to be read and not changed. ValueError for one that is too large."""
    if reason := size_conflict(architecture):
        raise ValueError(reason)
    model, shape, classes = architecture
    with seeded(0):
        return models.build(model, input_shape=shape, num_classes=classes)


def _image(architecture: Architecture) -> torch.Tensor:
    return torch.zeros((2, *architecture[1]))  # only its shape matters
