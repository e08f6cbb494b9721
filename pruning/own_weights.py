"""Whether a layer computes with the very weight that it stores: then a zero there is one in the result."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.checks import COMPUTED, FORWARD_ERRORS
from pruning.dataflow import COPIES
from pruning.masking import Layer, prunable_layers


def check_own_weights(net: nn.Module, layers: Collection[str]) -> None:
    """ValueError unless each of these layers computes with the weight that it stores, entry by entry.

    Masks set entries of the stored weight to zero. In a layer whose weight is computed from others
    (`weight_norm`, `spectral_norm`, `torch.nn.utils.prune`), or whose forward standardises or quantises
    it, that zero would not be one.
    """
    for name, layer in prunable_layers(net).items():
        if name not in layers:
            continue
        if "weight" not in layer._parameters:
            raise ValueError(f"{name}: {COMPUTED}")
        if not _is_plain(layer) and not _is_entrywise(layer):
            raise ValueError(
                f"{name}: {type(layer).__name__} computes with another weight than the one that it stores, "
                "so that a zero there would not be one; use a plain Linear or Conv2d, or protect the layer"
            )


def _is_plain(layer: Layer) -> bool:
    """Whether a layer runs torch's own forward, or that of our own selected columns, and nothing else."""
    if "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        return False
    if isinstance(layer, nn.Conv2d):
        ours = (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        return (type(layer).forward, type(layer)._conv_forward) == ours
    return type(layer).forward in (nn.Linear.forward, SelectedLinear.forward)


def _is_entrywise(layer: Layer) -> bool:
    """Whether a layer is linear in its weight, each entry acting from one input channel on one output.

    Then a zero in the weight is a zero in what the layer computes. Tried on the layer alone, in float64.
    """
    with suppress(*FORWARD_ERRORS), torch.no_grad():
        return _acts_entrywise(deepcopy(layer).double().eval())
    return False


def _acts_entrywise(layer: nn.Module) -> bool:
    weight = layer.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    images = _layer_images(layer, generator)
    one, two = (
        torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device) for _ in "ab"
    )
    silent = _answer(layer, torch.zeros_like(weight), images)
    first, second = (_answer(layer, w, images) - silent for w in (one, two))
    both = _answer(layer, one + two, images) - silent
    scale = float(both.abs().max())
    if scale == 0 or float((first + second - both).abs().max()) > 1e-9 * scale:
        return False
    channel_dim = -3 if isinstance(layer, nn.Conv2d) else -1
    for position in torch.randint(weight.numel(), (8,), generator=generator).tolist():
        single = torch.zeros_like(weight).view(-1).index_fill(0, torch.tensor(position), 1.0).view_as(weight)
        row, column = (int(i) for i in torch.unravel_index(torch.tensor(position), weight.shape)[:2])
        answer = _answer(layer, single, images) - silent
        others = answer.movedim(channel_dim, 0).clone()
        others[row] = 0
        impulse = _impulse(layer, images, row, column)
        touched = (_answer(layer, single, impulse) - _answer(layer, torch.zeros_like(weight), impulse)) != 0
        if others.any() or int(touched[:1].sum()) > 1:
            return False
    return True


def _layer_images(layer: nn.Module, generator: torch.Generator) -> Tensor:
    device = layer.get_parameter("weight").device
    if isinstance(layer, nn.Conv2d):
        sides = [k * d + 6 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape: tuple[int, ...] = (COPIES, layer.in_channels, *sides)
    else:
        shape = (COPIES, int(getattr(layer, "in_features", 1)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def _impulse(layer: nn.Module, images: Tensor, row: int, column: int) -> Tensor:
    """Zeros, save for one pixel in the middle of the input channel that the weight's column reads."""
    impulse = torch.zeros_like(images)
    if isinstance(layer, nn.Conv2d):
        per_group = layer.in_channels // layer.groups
        channel = row // (layer.out_channels // layer.groups) * per_group + column
        impulse[0, channel, images.shape[-2] // 2, images.shape[-1] // 2] = 1.0
    else:
        impulse[0, column] = 1.0
    return impulse


def _answer(layer: nn.Module, weight: Tensor, images: Tensor) -> Tensor:
    layer.get_parameter("weight").data.copy_(weight)
    answer: Tensor = layer(images)
    return answer.clone()
