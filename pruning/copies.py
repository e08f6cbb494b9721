"""Copies of a network that may be run and changed, and random images to run them on."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.checks import COMPUTED, FORWARD_ERRORS, one_line
from pruning.masking import prunable_layers

SCALES = (10.0, 255.0, 0.1, 1.0)  # images may be scaled to 1, or be pixels up to 255


def copy_in_eval_mode(net: nn.Module) -> nn.Module:
    """A copy in eval mode with gradients on; ValueError where the network cannot be copied."""
    try:
        twin = deepcopy(net).eval()
    except FORWARD_ERRORS as error:
        computed = [name for name, layer in prunable_layers(net).items() if "weight" not in layer._parameters]
        why = f"{computed[0]}: {COMPUTED}" if computed else one_line(error)
        raise ValueError(
            f"{type(net).__name__} cannot be copied: {why}; tensors of an earlier forward pass that it keeps "
            "are to be detached or deleted first"
        ) from error
    for parameter in twin.parameters():
        if parameter.is_floating_point():  # an integer has no gradient
            parameter.requires_grad_(True)
    return twin


def float64_twin(net: nn.Module) -> nn.Module:
    """The same in float64."""
    return copy_in_eval_mode(net).double()


def random_images(like: Tensor, parameter: Tensor, *, draw: int = 0) -> Tensor:
    """Normal images in the shape of `like`, on the parameter's device and of its type.

    From a generator of their own. Draw 0 has deviation 1, draw 1 one of `SCALES` for each image, draw 2 is
    small: a threshold in the network may matter at some sizes alone.
    """
    generator = torch.Generator().manual_seed(draw)
    images = torch.randn(tuple(like.shape), generator=generator, dtype=torch.float64)
    scales = {0: (1.0,), 1: SCALES, 2: (0.1,)}[draw]
    factors = torch.tensor([scales[i % len(scales)] for i in range(len(like))], dtype=torch.float64)
    images *= factors.reshape(-1, *[1] * (images.dim() - 1))
    return images.to(parameter.device, parameter.dtype)
