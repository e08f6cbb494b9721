"""Networks in eval mode: copies to run and change, and random images to run them on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checks import COMPUTED, FORWARD_ERRORS, one_line
from pruning.masking import prunable_layers

SCALES = (10.0, 255.0, 0.1, 1.0)  # images may be scaled to 1, or be pixels up to 255


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """Put the networks in eval mode; afterwards every module is in the mode that it was in.

    `net.train(mode)` would put all modules into the mode of the outermost: a batch norm that was frozen
    by its own `eval()` would be trained from then on.
    """
    # A list, not a dictionary by name: a shared module is in it once, and a nameless one is not lost.
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def fixed_generators(net: nn.Module) -> Iterator[None]:
    """Leave the global generators where they are, whatever a pass in training mode draws."""
    devices = {parameter.device.index for parameter in net.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def model_copy(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode with gradients on. ValueError where the network cannot be copied."""
    copy = _copy(net, {})
    for parameter in copy.parameters():
        # An integer has no gradient; a single number may be a counter, which counts in place.
        if parameter.is_floating_point() and parameter.numel() > 1:
            parameter.requires_grad_(True)
    return copy


def _copy(net: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return deepcopy(net, _copied_hooks(net) | memo).eval()
    except FORWARD_ERRORS as error:
        computed = [name for name, layer in prunable_layers(net).items() if "weight" not in layer._parameters]
        reason = f"{computed[0]}: {COMPUTED}" if computed else one_line(error)
        raise ValueError(
            f"{type(net).__name__} cannot be copied: {reason}; tensors of an earlier forward pass that it "
            "keeps are to be detached or deleted first"
        ) from error


def float64_copy(net: nn.Module) -> nn.Module:
    """Return a `model_copy` in float64."""
    return model_copy(net).double()


def widened_copy(net: nn.Module) -> nn.Module:
    """Return a copy in float64 in eval mode, without gradients, and without a float32 copy in between."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to(torch.float64, copy=True), requires_grad=False)
        for parameter in net.parameters()
        if parameter.is_floating_point() and type(parameter) is nn.Parameter
    }
    return _copy(net, memo).double()


def share_parameters(net: nn.Module) -> nn.Module:
    """Return a copy that has the very parameters of `net`: for changes that put others in their place."""
    return deepcopy(net, _copied_hooks(net) | {id(parameter): parameter for parameter in net.parameters()})


def _copied_hooks(net: nn.Module) -> dict[int, Any]:
    """Return what `deepcopy` makes of empty dictionaries of hooks: a dozen a module, its slowest part."""
    return {
        id(value): OrderedDict()
        for module in net.modules()
        for value in vars(module).values()
        if type(value) is OrderedDict and not value
    }


def first_float(net: nn.Module) -> nn.Parameter:
    """Return the first floating-point parameter: its device and type are those that the network reads."""
    return next(parameter for parameter in net.parameters() if parameter.is_floating_point())


def random_images(like: Tensor, parameter: Tensor, *, draw: int = 0) -> Tensor:
    """Return normal images in the shape of `like`, of the parameter's device and type, always the same.

    Draw 0 has deviation 1, draw 1 one of `SCALES` for each image, draw 2 is small: a threshold in the network
    may matter at some sizes alone. Draw 1 has no negative values, as pixels have none.
    """
    generator = torch.Generator().manual_seed(draw)
    images = torch.randn(tuple(like.shape), generator=generator, dtype=torch.float64)
    scales = {0: (1.0,), 1: SCALES, 2: (0.1,)}[draw]
    factors = torch.tensor([scales[i % len(scales)] for i in range(len(like))], dtype=torch.float64)
    images *= factors.reshape(-1, *[1] * (images.dim() - 1))
    images = images.abs() if draw == 1 else images
    return images.to(parameter.device, parameter.dtype)
