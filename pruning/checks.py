"""Checks of the arguments before anything is computed: networks, images, labels, layer names, groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.cutting.layer_widths import SelectedLinear
from pruning.hyperparameters import to_int
from pruning.masking import Conv, Group, Layer, Member, channel_dim, prunable_layers

# What a network's own forward may raise on an input that does not suit it.
FORWARD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
COMPUTED = (
    "its weight is computed from other parameters, so that a mask would not hold; make it permanent first "
    "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations, remove_weight_norm), or protect it"
)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
BATCH_SIZE = 2  # of the random images that a network or layer is tried on
LABEL_TYPES = (torch.int64, torch.uint8)


def check_network(net: object) -> nn.Module:
    """Return the network. ValueError unless it has layers to prune and every parameter has values."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net is of type {type(net).__name__}; a torch.nn.Module is needed")
    if isinstance(net, (nn.Linear, Conv)):
        raise ValueError(f"net is a bare {type(net).__name__}; wrap it in torch.nn.Sequential")
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet (a lazy layer): run the network once before it is pruned"
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values: load the network's weights first"
            )
    if not prunable_layers(net):
        raise ValueError(
            f"{type(net).__name__} has no Linear or convolution layer: there is nothing to prune"
        )
    return net


def check_example(example_input: object, label: str = "example_input") -> Tensor:
    """Return the example input. ValueError unless it is a batch of float images, [N, ...] with N >= 1."""
    if not isinstance(example_input, Tensor):
        raise ValueError(f"{label} is of type {type(example_input).__name__}; images [N, C, H, W] are needed")
    if not example_input.is_floating_point() or example_input.dim() < 2 or not example_input.numel():
        raise ValueError(
            f"{label} is {shape_text(example_input)}; floating-point images [N, C, H, W] are needed"
        )
    return example_input


def check_sample(sample: object) -> None:
    """Raise ValueError unless a sample is None, or (images [n, ...], labels [n] from 0 up)."""
    if sample is None:
        return
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise ValueError("sample is no pair; give (images [n, C, H, W], labels [n])")
    images, labels = check_example(sample[0], "sample's images"), sample[1]
    is_integer = isinstance(labels, Tensor) and labels.dtype in LABEL_TYPES
    if not is_integer or labels.shape != images.shape[:1] or labels.min() < 0:
        raise ValueError(
            f"sample: labels are needed as int64 from 0 up, one for each of the {len(images)} images"
        )


def names_of_layers(label: str, names: object) -> tuple[str, ...]:
    """Return the names in `protect` or `only`, which may be a single one. ValueError for anything else."""
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{label} is {names!r}; give names of layers, patterns such as 'layer4.*', `input` or `output`"
        )
    return tuple(names)


def check_one_of(label: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name, unless `value` is in `allowed`."""
    if value not in allowed:
        near = get_close_matches(value, allowed, n=1) or allowed
        raise ValueError(f"{label} is {value!r}; it must be {' or '.join(near)}")


def check_seed(seed: object) -> int:
    """Return the seed. ValueError unless it is a whole number that torch's generators take."""
    number = to_int(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"seed is {seed!r}; a whole number of at most 64 bits is needed")
    return number


def check_groups_fit(net: nn.Module, groups: object) -> None:
    """Raise ValueError unless these are groups of this network: of `trace`, or of `unit_groups`."""
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise ValueError(
            f"groups is of type {type(groups).__name__}; give what trace(net, example_input) returns"
        )
    modules = dict(net.named_modules())
    for group in groups:
        for member in group.members:
            width = _width(modules.get(member.module), member)
            traced = member.width or len(member.index.unique())
            is_whole = member.side != "out" or traced == width
            if width is None or not is_whole or int(member.index.max()) >= width:
                raise ValueError(
                    f"group {group.name!r} does not fit this network at {member.module}: it was traced on "
                    "another one; trace this network"
                )


def _width(module: nn.Module | None, member: Member) -> int | None:
    """Return the number of positions along a member's side; None where the module has no such side."""
    if member.parameter:
        tensor = getattr(module, member.parameter, None)
        if not isinstance(tensor, Tensor) or tensor.dim() <= member.dim:
            return None
        return tensor.shape[member.dim]
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        width = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        return width if member.side == "norm" else None
    if not isinstance(module, (nn.Linear, Conv)) or member.side == "norm":
        return None
    return int(module.weight.shape[0 if member.side == "out" else 1])


def shape_text(tensor: Tensor) -> str:
    """Return type and shape of a tensor in words."""
    return f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}".replace("torch.", "")


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_stored_weights(net: nn.Module, layers: Collection[str]) -> None:
    """Raise ValueError unless each of these layers computes with the weight that it stores, entry by entry.

    Masks set entries of the stored weight to zero. In a layer whose weight is computed from others
    (`weight_norm`, `spectral_norm`, `torch.nn.utils.prune`), or whose forward standardises or quantises
    it, that zero would not be one in the result.
    """
    for name, layer in prunable_layers(net).items():
        if name not in layers:
            continue
        if "weight" not in layer._parameters:
            raise ValueError(f"{name}: {COMPUTED}")
        if not _is_plain(layer) and not _is_entrywise(layer):
            raise ValueError(
                f"{name}: {type(layer).__name__} computes with another weight than the one that it stores, "
                "so that a zero there would not be one; use a plain Linear or convolution, or protect the "
                "layer"
            )


def _is_plain(layer: Layer) -> bool:
    """Return whether a layer runs torch's own forward, or a SelectedLinear's, without hooks."""
    if "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        return False
    if isinstance(layer, Conv):
        # _conv_forward too: a subclass may change what it passes on as the weight there alone.
        plain = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        return all(
            getattr(type(layer), name, None) is getattr(plain, name, None)
            for name in ("forward", "_conv_forward", "_output_padding")
        )
    return type(layer).forward in (nn.Linear.forward, SelectedLinear.forward)


def _is_entrywise(layer: Layer) -> bool:
    """Return whether a layer is linear in its weight, each entry acting from one input channel on one output.

    Then a zero in the weight is a zero in what the layer computes. Tried on the layer alone, in float64.
    """
    if isinstance(layer, Conv) and layer.transposed:
        return False  # only torch's own is known
    with suppress(*FORWARD_ERRORS), torch.no_grad():
        return _acts_entrywise(deepcopy(layer).double().eval())
    return False


def _acts_entrywise(layer: nn.Module) -> bool:
    weight = layer.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    images = _layer_images(layer, generator)
    first, second = (
        torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device) for _ in "ab"
    )
    # A bias answers to a weight of zeros, too: it is subtracted, so that what is left must be linear.
    constant = _forward(layer, torch.zeros_like(weight), images)
    of_first, of_second, of_sum = (
        _forward(layer, w, images) - constant for w in (first, second, first + second)
    )
    scale = float(of_sum.abs().max())
    if scale == 0 or float((of_first + of_second - of_sum).abs().max()) > 1e-9 * scale:
        return False
    for position in torch.randint(weight.numel(), (8,), generator=generator).tolist():
        single = torch.zeros_like(weight).view(-1).index_fill(0, torch.tensor(position), 1.0).view_as(weight)
        row, column = (int(i) for i in torch.unravel_index(torch.tensor(position), weight.shape)[:2])
        other_outputs = (_forward(layer, single, images) - constant).movedim(channel_dim(layer), 0).clone()
        other_outputs[row] = 0
        impulse = _impulse(layer, images, row, column)
        touched = (_forward(layer, single, impulse) - _forward(layer, torch.zeros_like(weight), impulse)) != 0
        if other_outputs.any() or int(touched[:1].sum()) > 1:
            return False
    return True


def _layer_images(layer: nn.Module, generator: torch.Generator) -> Tensor:
    device = layer.get_parameter("weight").device
    if isinstance(layer, Conv):
        sides = [k * d + 6 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape: tuple[int, ...] = (BATCH_SIZE, layer.in_channels, *sides)
    else:
        shape = (BATCH_SIZE, int(getattr(layer, "in_features", 1)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def _impulse(layer: nn.Module, images: Tensor, row: int, column: int) -> Tensor:
    """Return zeros with one pixel of 1, in the middle of the input channel that the weight's column reads."""
    impulse = torch.zeros_like(images)
    if isinstance(layer, Conv):
        per_group = layer.in_channels // layer.groups
        channel = row // (layer.out_channels // layer.groups) * per_group + column
        impulse[(0, channel, *(side // 2 for side in images.shape[2:]))] = 1.0
    else:
        impulse[0, column] = 1.0
    return impulse


def _forward(layer: nn.Module, weight: Tensor, images: Tensor) -> Tensor:
    layer.get_parameter("weight").data.copy_(weight)
    output: Tensor = layer(images)
    return output.clone()
