"""What is given, checked before anything is done: networks, images, labels, layers to protect, groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.masking import Group, Member, Norm, prunable_layers
from pruning.scalars import whole_number

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
LABEL_TYPES = (torch.int64, torch.uint8)


def check_network(net: object) -> nn.Module:
    """The network; ValueError unless it has layers to prune, and every parameter has values of its own."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net is of type {_kind(net)}; a torch.nn.Module is needed")
    if isinstance(net, (nn.Linear, nn.Conv2d)):
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
        raise ValueError(f"{type(net).__name__} has no Linear or Conv2d layer: there is nothing to prune")
    return net


def check_example(example_input: object, label: str = "example_input") -> Tensor:
    """The example input; ValueError unless it is a batch of floating-point images, [N, ...] with N >= 1."""
    if not isinstance(example_input, Tensor):
        raise ValueError(f"{label} is of type {_kind(example_input)}; images [N, C, H, W] are needed")
    if not example_input.is_floating_point() or example_input.dim() < 2 or not example_input.numel():
        raise ValueError(
            f"{label} is {shape_text(example_input)}; floating-point images [N, C, H, W] are needed"
        )
    return example_input


def check_sample(sample: object) -> None:
    """ValueError unless a sample is None, or (images [n, ...], labels [n] from 0 up)."""
    if sample is None:
        return
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise ValueError("sample is no pair; give (images [n, C, H, W], labels [n])")
    images, labels = check_example(sample[0], "sample's images"), sample[1]
    whole = isinstance(labels, Tensor) and labels.dtype in LABEL_TYPES
    if not whole or labels.shape != images.shape[:1] or labels.min() < 0:
        raise ValueError(
            f"sample: labels are needed as int64 from 0 up, one for each of the {len(images)} images"
        )


def names_to_protect(protect: object) -> tuple[str, ...]:
    """The names in `protect`, which may be a single one; ValueError for anything else."""
    if isinstance(protect, str):
        return (protect,)
    if not isinstance(protect, Collection) or not all(isinstance(name, str) for name in protect):
        raise ValueError(f"protect is {protect!r}; give names of layers, `input` or `output`")
    return tuple(protect)


def check_seed(seed: object) -> int:
    """The seed; ValueError unless it is a whole number that torch's generators take."""
    number = whole_number(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"seed is {seed!r}; a whole number of at most 64 bits is needed")
    return number


def check_groups_fit(net: nn.Module, groups: object) -> None:
    """ValueError unless these are groups of this network: of `trace`, or of `unit_groups`."""
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise ValueError(f"groups is of type {_kind(groups)}; give what trace(net, example_input) returns")
    modules = dict(net.named_modules())
    for group in groups:
        for member in group.members:
            width = _width(modules.get(member.module), member)
            whole = member.side != "out" or (width is not None and len(member.index.unique()) == width)
            if width is None or not whole or int(member.index.max()) >= width:
                raise ValueError(
                    f"group {group.name!r} does not fit this network at {member.module}: it was traced on "
                    "another one; trace this network"
                )


def _width(module: nn.Module | None, member: Member) -> int | None:
    """How many positions there are along a member's side; None where the module has no such side."""
    if isinstance(module, Norm):
        return module.num_features if member.side == "norm" else None
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or member.side == "norm":
        return None
    return int(module.weight.shape[0 if member.side == "out" else 1])


def shape_text(tensor: Tensor) -> str:
    """Type and shape of a tensor in words."""
    return f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}".replace("torch.", "")


def one_line(error: BaseException) -> str:
    """An error's message, on one line of a bearable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _kind(value: object) -> str:
    return type(value).__name__
