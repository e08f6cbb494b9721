"""Activations of a group's units as the layers read them, and the QR factor of these.

A unit's column holds what the layers that consume it read, after activation and pooling; a row is an image,
or a position of a map. Activations are never stored whole: their factor R, [n, n], grows batch by batch.
Networks run as float64 copies in eval mode; the caller's network stays untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS, check_example, one_line, shape_text
from pruning.cutting.layer_widths import SelectedLinear
from pruning.dataflow import layer_input
from pruning.masking import Group, Member, Scores, channel_dim, parameter_dims

CHUNK_SIZE = 64  # images at a time
OnRows = Callable[[Tensor], None]


def check_matrix(activations: Tensor) -> Tensor:
    """Return the activations in float64. ValueError unless they are a matrix with entries."""
    if activations.dim() != 2 or not activations.numel():
        raise ValueError(f"activations of shape {tuple(activations.shape)}; a matrix [rows, n] is needed")
    return activations.detach().double()


def update_qr(r: Tensor | None, rows: Tensor) -> Tensor:
    """Return the factor R of all rows so far and `rows`. ValueError for rows that are not finite.

    The QR of R under new rows is that of all rows together, and squares none of them.
    """
    if not torch.isfinite(rows).all():
        raise ValueError("activations that are not finite numbers: nothing can be fitted to them")
    factor: Tensor = torch.linalg.qr(rows if r is None else torch.cat([r, rows]), mode="r").R
    return factor


def producers(group: Group) -> list[Member]:
    """Return the members that make the units: rows; columns for a network's input features."""
    return [member for member in group.members if member.side == "out"] or list(group.members)


def spread_over_rows(group: Group, unit_scores: Tensor, scores: Scores) -> None:
    """Write each unit's score, float64 [size], to all of its weights in the layers that make it, in place."""
    for member in producers(group):
        name, dim = parameter_dims(member)[0]
        if name in scores:
            rows = scores[name].movedim(dim, 0)
            rows[member.index] = unit_scores[member.root].reshape(-1, *[1] * (rows.dim() - 1))


def consumers(group: Group) -> list[str]:
    """Return the names of the layers that read the units. ValueError for groups that nothing reads."""
    names = list(dict.fromkeys(member.module for member in group.members if member.side == "in"))
    if not names:
        raise ValueError(f"{group.name}: no layer is known that reads it; take the groups of trace")
    return names


def consumed_columns(group: Group, layer: str) -> Tensor:
    """Return int64 [cells, size]: a layer's columns by unit; a flattened map has a cell per position."""
    members = [member for member in group.members if (member.module, member.side) == (layer, "in")]
    index, root = (torch.cat([getattr(member, name) for member in members]) for name in ("index", "root"))
    if len(root.bincount(minlength=group.size).unique()) > 1:
        raise ValueError(f"{group.name}: {layer} reads some of its channels more often than others")
    # stable: the cells of every unit stay in the map's order
    return index[root.argsort(stable=True)].reshape(group.size, -1).T


@contextmanager
def capture_inputs(net: nn.Module, group: Group, on_rows: OnRows) -> Iterator[None]:
    """Call `on_rows` with the group's units, float64 [rows, size], wherever a layer of `net` reads them."""
    with ExitStack() as stack:
        for name in consumers(group):
            hook = partial(_pass_rows, consumed_columns(group, name), on_rows)
            handle = net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _pass_rows(
    columns: Tensor, on_rows: OnRows, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    features = layer_input(args, kwargs)
    if features is None:
        raise ValueError(f"a {type(layer).__name__} is called without a tensor to read")
    features = features.movedim(channel_dim(layer), -1)
    if isinstance(layer, SelectedLinear):
        features = features.index_select(-1, layer.inputs)
    on_rows(features[..., columns.to(features.device)].reshape(-1, columns.shape[1]))


def iter_batches(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yield the images in float64, on the network's device, a chunk at a time. ValueError without any."""
    if isinstance(images, Tensor) and not len(images):
        raise ValueError("no images: give a few hundred, [n, C, H, W]; labels are not needed")
    check_example(images, "images")
    device = next(net.parameters()).device
    for chunk in images.split(CHUNK_SIZE):
        yield chunk.detach().to(device, torch.float64)


def qr_factors(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Return group name -> factor R of its activations, from one pass; in the order of the first reads."""
    factors: dict[str, Tensor] = {}

    def on_rows(name: str, rows: Tensor) -> None:
        factors[name] = update_qr(factors.get(name), rows)

    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(capture_inputs(net, group, partial(on_rows, group.name)))
        for batch in iter_batches(net, images):
            run_forward(net, batch)
    return factors


def run_forward(net: nn.Module, images: Tensor) -> None:
    """Run one forward pass for its hooks. ValueError where the network does not take the images."""
    try:
        net(images)
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"{type(net).__name__} does not run on {shape_text(images)}: {one_line(error)}"
        ) from error
