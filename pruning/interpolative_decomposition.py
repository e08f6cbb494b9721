"""Interpolative decomposition: weights that make up for pruned channels by those that remain.

Chee et al., Model preserving compression for neural networks, NeurIPS 2022: with Z the activations that
a layer reads, [rows, channels], Z ~= Z[:, remaining] T; the other channels are pruned, and the weights that
read them pass into those of the remaining ones. No labels, no training, bias unchanged.

Here the choice of channels is a criterion (`pivoted_qr`) and the correction a recovery (`refit`), which takes
any choice. Both look at what the next layer reads, after activation and pooling: only linear operations
commute with T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.activations import (
    capture_inputs,
    check_matrix,
    consumed_columns,
    consumers,
    iter_batches,
    producers,
    qr_factors,
    run_forward,
    update_qr,
)
from pruning.checks import check_groups_fit, check_network
from pruning.eval_mode import float64_copy
from pruning.masking import Group, Masks, apply_masks, parameter_dims

# Directions weaker than this beside the strongest drown in the rounding of float32 weights.
WEAKEST = torch.finfo(torch.float32).eps


def interpolation_matrix(activations: Tensor, remaining: Tensor) -> Tensor:
    """Return T, float64 [k, n], of least ||Z - Z[:, remaining] T||: the identity on `remaining`.

    `activations` are Z, [rows, n]; `remaining` is int64 [k] in any order, or bool [n]. For the first k pivots
    T is [I, R11^-1 R12] P^T (Chee et al.). Where the remaining columns depend on each other, the T of least
    norm.
    """
    z = check_matrix(activations)
    remaining = remaining.nonzero().flatten() if remaining.dtype == torch.bool else remaining
    return _solve(update_qr(None, _residual(z[:, remaining], z, remaining)), remaining)


def refit(
    net: nn.Module,
    masks: Masks,
    groups: Sequence[Group],
    images: Tensor,
    *,
    dense: nn.Module,
    sequential: bool = True,
) -> dict[str, Tensor]:
    """Return new weights, by parameter name, of the layers that read a group of which some units are pruned.

    `groups` are those of `trace`; a unit is pruned when the rows that make it are pruned in `masks`, whatever
    chose it. The weights are those of `dense`, the network before the cut, with T multiplied in; columns of
    pruned units, and what else is masked, are zero. `sequential` goes from front to back and fits what the
    layer reads in `dense` by what the masked network, refitted so far, passes to it: errors of earlier layers
    are corrected as well. Else T is of `dense` alone, as in the paper. Exact where the remaining activations
    span all. A ridge chosen by cross-validation pulls T to plain removal where rows (images x positions) are
    few: plain least squares on as many rows as channels raised the error by orders.

    ValueError for a group with pruned units that several layers read (concatenation, residual sum): one T
    per layer would be needed, of weights that share inputs. Protect it.
    """
    check_network(net)
    check_groups_fit(net, groups)
    masked, reference = (float64_copy(each).requires_grad_(False) for each in (net, dense))
    _check_same_shapes(masked, reference)
    apply_masks(masked, masks)
    alive = {group.name: _alive_units(group, masks) for group in groups}
    cut = [group for group in groups if alive[group.name].any() and not alive[group.name].all()]
    layers = {group.name: _only_consumer(group) for group in cut}
    read_order = list(qr_factors(reference, cut, images[:1])) if cut else []
    weights, targets = dict(masked.named_parameters()), dict(reference.named_parameters())
    for group in sorted(cut, key=lambda group: read_order.index(group.name)):
        remaining, name = alive[group.name].nonzero().flatten(), f"{layers[group.name]}.weight"
        r, rows = _joint_factor(masked if sequential else reference, reference, group, images, remaining)
        t = _solve(r, remaining, rows=rows)
        columns, dim = consumed_columns(group, layers[group.name]), _column_dim(group, layers[group.name])
        weight, target = (tensors[name].movedim(dim, 1) for tensors in (weights, targets))
        _interpolate(weight, target, columns, t, remaining)
        if name in masks:
            apply_masks(masked, {name: masks[name]})
    dtypes = {name: parameter.dtype for name, parameter in net.named_parameters()}
    names = dict.fromkeys(f"{layer}.weight" for layer in layers.values())
    return {name: weights[name].detach().to(dtypes[name]) for name in names}


def _check_same_shapes(net: nn.Module, dense: nn.Module) -> None:
    shapes, dense_shapes = ({name: [*p.shape] for name, p in n.named_parameters()} for n in (net, dense))
    for name in {**dense_shapes, **shapes}:
        if shapes.get(name) != dense_shapes.get(name):
            raise ValueError(
                f"{name}: its shape is {shapes.get(name)} in net and {dense_shapes.get(name)} in dense; "
                "refit before the cut, with the network that the masks were made for"
            )


def _residual(remaining_z: Tensor, z: Tensor, remaining: Tensor) -> Tensor:
    """Return [Z_remaining, Z minus Z_remaining at its columns]: least norm is then least change."""
    return torch.cat([remaining_z, z.index_add(1, remaining.to(z.device), remaining_z, alpha=-1)], 1)


def _solve(r: Tensor, remaining: Tensor, *, rows: int | None = None) -> Tensor:
    """Return T [k, n] from the factor of `_residual`; by ridge regression with its number of `rows`."""
    r, k = r.cpu(), len(remaining)
    u, sizes, v = torch.linalg.svd(r[:, :k], full_matrices=False)
    strong = sizes > WEAKEST * sizes[0]
    sizes, projections = sizes[strong], (u.T @ r[:, k:])[strong]
    ridge = 0.0 if rows is None else _ridge(sizes, projections, float(r[:, k:].square().sum()), rows)
    t: Tensor = v[strong].T @ ((sizes / (sizes.square() + ridge))[:, None] * projections)
    t[torch.arange(k), remaining] += 1.0
    return t


def _ridge(sizes: Tensor, projections: Tensor, energy: float, rows: int) -> float:
    """Return the ridge of least generalized cross-validation (Golub, Heath & Wahba, Technometrics, 1979).

    ||residual||^2 / (1 - degrees of freedom / rows)^2, over half decades from 1e-14 of the largest squared
    singular value up.
    """
    if not len(sizes):
        return 0.0
    grid = float(sizes[0]) ** 2 * torch.logspace(-14, 2, 33, dtype=torch.float64)
    lost = grid[:, None] / (sizes.square() + grid[:, None])
    strengths = projections.square().sum(1)
    residual = (lost.square() * strengths).sum(1) + max(0.0, energy - float(strengths.sum()))
    freedom = (rows - len(sizes) + lost.sum(1)).clamp(min=torch.finfo(torch.float64).tiny)
    return float(grid[(residual / freedom.square()).argmin()])


def _alive_units(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Return bool [size]: whether any weight that makes the unit is alive; a layer without a mask is."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for member in producers(group):
        name, dim = parameter_dims(member)[0]
        rows = torch.ones(len(member.index), dtype=torch.bool)
        if name in masks:
            rows = masks[name].cpu().movedim(dim, 0).flatten(1).any(1)[member.index]
        alive[member.root[rows]] = True
    return alive


def _only_consumer(group: Group) -> str:
    names = consumers(group)
    if len(names) > 1:
        raise ValueError(
            f"{group.name}: {len(names)} layers read its channels ({', '.join(names[:3])}, ...), "
            "and refit corrects only one; protect it, or choose another recovery"
        )
    return names[0]


def _column_dim(group: Group, layer: str) -> int:
    """Return the dimension of a layer's weight along which its inputs lie: 0 in a transposed convolution."""
    return next(
        dim
        for member in group.members
        if (member.module, member.side) == (layer, "in")
        for _, dim in parameter_dims(member)
    )


def _joint_factor(
    source: nn.Module, reference: nn.Module, group: Group, images: Tensor, remaining: Tensor
) -> tuple[Tensor, int]:
    """Return the factor of `_residual`, of `reference` by columns of `source`, and its number of rows."""
    r: Tensor | None = None
    rows = 0
    for batch in iter_batches(reference, images):
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        with (
            capture_inputs(source, group, inputs.append),
            capture_inputs(reference, group, targets.append),
        ):
            for net in {id(net): net for net in (source, reference)}.values():  # once where they are one
                run_forward(net, batch)
        columns = remaining.to(inputs[0].device)
        residual = _residual(torch.cat(inputs)[:, columns], torch.cat(targets), remaining)
        r, rows = update_qr(r, residual), rows + len(residual)
    assert r is not None, "there is a batch"
    return r, rows


def _interpolate(weight: Tensor, target: Tensor, columns: Tensor, t: Tensor, remaining: Tensor) -> None:
    """Set the group's columns of `weight` to those of `target` times T, in place; 0 for pruned units."""
    full = torch.zeros(columns.shape[1], columns.shape[1], dtype=t.dtype).index_copy_(0, remaining, t)
    positions = columns.flatten().to(weight.device)
    dense = target.index_select(1, positions).unflatten(1, columns.shape)
    moved = torch.einsum("ocn...,kn->ock...", dense, full.to(weight.device))
    weight.data.index_copy_(1, positions, moved.flatten(1, 2))
