"""Checkpoints of an unfinished training: tensors and JSON, from which it resumes with the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.config import Json

SECONDS_BETWEEN = 60.0  # from a process's start, then from the end of its last checkpoint


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors on the CPU, contiguous, none sharing memory with another; and JSON without NaN.

    Nothing of it changes later: it may be written while the training continues.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Json]


class CheckpointStore(Protocol):
    """Holds the last checkpoint of one trial."""

    def load_latest(self) -> Checkpoint | None:
        """Return what an earlier process saved; None for a fresh start."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint before."""


def pack(state: Mapping[str, object]) -> Checkpoint:
    """Copy a nested state: its tensors by path, such as `round_start/weights/head.bias`, the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    paths: list[Json] = []

    def remainder(value: Any, path: tuple[str | int, ...]) -> Json:
        if isinstance(value, (list, tuple)):
            return [remainder(item, (*path, index)) for index, item in enumerate(value)]
        if is_dataclass(value):
            value = {field.name: getattr(value, field.name) for field in fields(value)}
        if not isinstance(value, Mapping):
            return value
        values: dict[str, Json] = {}
        for name, item in value.items():
            if isinstance(item, Tensor):
                copy = item.detach().clone(memory_format=torch.contiguous_format)
                tensors["/".join(map(str, (*path, name)))] = copy
                # Neither safetensors nor JSON promises an order, and ties in pruning go by it.
                paths.append([[*path, name], str(copy.dtype), list(copy.shape)])
            else:
                values[name] = remainder(item, (*path, name))
        return values

    return Checkpoint(tensors, {**remainder(state, ()), "tensors": paths})


def unpack(saved: Checkpoint) -> dict[str, Any]:
    """Return the nested state that `pack` copied; KeyError, TypeError or ValueError if it is incomplete."""
    state: dict[str, Any] = deepcopy(dict(saved.metadata))
    for path, dtype, shape in state.pop("tensors"):
        tensor = saved.tensors["/".join(map(str, path))]
        if (str(tensor.dtype), list(tensor.shape)) != (dtype, shape):
            raise ValueError("it is incomplete: a tensor has another type or shape")
        container = state
        for name in path[:-1]:
            container = container[name]
        container[path[-1]] = tensor
    return state


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, copied to the CPU, contiguous."""
    return {name: _copy(tensor) for name, tensor in net.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by `index of the parameter/name`, copied to the CPU.

    Its options are not in it: they are the recipe's, and the learning rate is set at every step.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": _copy(value) for index, values in state.items() for name, value in values.items()
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned into a fresh optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for path, tensor in tensors.items():
        index, _, name = path.partition("/")
        like = parameters[int(index)] if tensor.shape == parameters[int(index)].shape else tensor
        # Copied: the optimizer writes into what it is given, and its bits depend on the alignment. In the
        # order of the parameter: fused optimizers go through both as they lie in memory.
        state.setdefault(int(index), {})[name] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) over names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
