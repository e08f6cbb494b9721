"""What the layers that read a group of units are given: their activations, and the QR factor of those.

A unit's column holds what its readers see of it, after activation and pooling; a row is an image, or a
position of a map. Activations are never kept whole: their factor R, [n, n], grows batch by batch.
Networks run as float64 copies in eval mode; what is passed in stays untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.checks import FORWARD_ERRORS, check_example, one_line, shape_text
from pruning.dataflow import received
from pruning.masking import Group, Member

CHUNK = 64  # images at a time
Watch = Callable[[Tensor], None]


def float64_copy(net: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients."""
    return deepcopy(net).double().eval().requires_grad_(False)


def matrix(activations: Tensor) -> Tensor:
    """The activations in float64; ValueError unless they are a matrix with entries."""
    if activations.dim() != 2 or not activations.numel():
        raise ValueError(f"activations of shape {tuple(activations.shape)}; a matrix [rows, n] is needed")
    return activations.detach().double()


def fold_in(r: Tensor | None, rows: Tensor) -> Tensor:
    """The factor R of everything so far and `rows`; QR of R is QR of all the rows, without squaring them."""
    if not torch.isfinite(rows).all():
        raise ValueError("activations that are not finite numbers: nothing can be fitted to them")
    factor: Tensor = torch.linalg.qr(rows if r is None else torch.cat([r, rows]), mode="r").R
    return factor


def makers(group: Group) -> list[Member]:
    """The members that make the units: rows; columns for a network's input features."""
    return [member for member in group.members if member.side == "out"] or list(group.members)


def readers_of(group: Group) -> list[str]:
    """Names of the layers that read the units. ValueError for groups that nothing reads."""
    readers = list(dict.fromkeys(member.module for member in group.members if member.side == "in"))
    if not readers:
        raise ValueError(f"{group.name}: no layer is known that reads it; take the groups of trace")
    return readers


def columns_of(group: Group, reader: str) -> Tensor:
    """int64 [cells, size]: where the reader finds each unit; a flattened map has a cell per position."""
    members = [member for member in group.members if (member.module, member.side) == (reader, "in")]
    index, root = (torch.cat([getattr(member, name) for member in members]) for name in ("index", "root"))
    if len(root.bincount(minlength=group.size).unique()) > 1:
        raise ValueError(f"{group.name}: {reader} reads some of its channels more often than others")
    return index[root.argsort(stable=True)].reshape(group.size, -1).T


@contextmanager
def watching(net: nn.Module, group: Group, see: Watch) -> Iterator[None]:
    """Let `see` have the group's units, float64 [rows, size], wherever a layer of `net` reads them."""
    handles = [
        net.get_submodule(reader).register_forward_pre_hook(
            partial(_show, columns_of(group, reader), see), with_kwargs=True
        )
        for reader in readers_of(group)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show(
    columns: Tensor, see: Watch, layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    features = received(args, keywords)
    if features is None:
        raise ValueError(f"a {type(layer).__name__} is called without a tensor to read")
    features = features.movedim(-3, -1) if isinstance(layer, nn.Conv2d) else features
    if isinstance(layer, SelectedLinear):
        features = features.index_select(-1, layer.inputs)
    see(features[..., columns.to(features.device)].reshape(-1, columns.shape[1]))


def batches(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """The images in float64, on the network's device, a chunk at a time; ValueError without any."""
    if isinstance(images, Tensor) and not len(images):
        raise ValueError("no images: give a few hundred, [n, C, H, W]; labels are not needed")
    check_example(images, "images")
    device = next(net.parameters()).device
    for part in images.split(CHUNK):
        yield part.detach().to(device, torch.float64)


def factors_of(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Group name -> factor R of its activations, all in one pass; first read, first named."""
    factors: dict[str, Tensor] = {}

    def fold(name: str, rows: Tensor) -> None:
        factors[name] = fold_in(factors.get(name), rows)

    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(watching(net, group, partial(fold, group.name)))
        for part in batches(net, images):
            run(net, part)
    return factors


def run(net: nn.Module, images: Tensor) -> None:
    """One forward pass, for the hooks that look on; ValueError where the network does not take the images."""
    try:
        net(images)
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"{type(net).__name__} does not run on {shape_text(images)}: {one_line(error)}"
        ) from error
