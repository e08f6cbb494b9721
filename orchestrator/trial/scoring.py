"""The network that a criterion scores: on the CPU, or a copy on the GPU for criteria that run it there."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from orchestrator.system.memory import is_out_of_memory
from pruning.criteria import criteria

CPU = torch.device("cpu")
Result = TypeVar("Result")


def scoring_device(criterion: str, device: torch.device) -> torch.device:
    """Return where a criterion, in text form, scores the networks that are trained on `device`.

    A GPU has float64 as a CPU has it: scores agree to its rounding. Criteria that run no network, and those
    that do not say that they can be on any device, stay on the CPU.
    """
    is_on_gpu = device.type == "cuda" and criteria.get(criterion).traits.get("on_device", False)
    return device if is_on_gpu else CPU


def score_on(device: torch.device, net: nn.Module, *, runs_it: bool, prune: Callable[[nn.Module], Result]) -> Result:
    """Return what `prune` makes of the network on `device`; on the CPU where the GPU's memory does not do.

    A criterion that `runs_it` has a copy, so that the network is left as it is.
    """
    if device.type != "cpu":
        try:
            return prune(deepcopy(net).to(device))
        except (RuntimeError, ValueError) as error:  # a criterion's errors are ValueErrors
            if not is_out_of_memory(error):
                raise
        # Only here, after the except block: until its end the error holds the tensors of what did not fit.
    is_on_cpu = all(tensor.device.type == "cpu" for tensor in net.parameters())
    return prune(net if is_on_cpu and not runs_it else deepcopy(net).cpu())
