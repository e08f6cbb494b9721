"""Interpolative decomposition: how the channels that leave are interpolated from those that stay.

Chee et al., Model preserving compression for neural networks, NeurIPS 2022: with Z the activations that
a layer reads, [rows, channels], Z ~= Z[:, kept] T; the channels that are not kept leave, and the weights
that read them pass into those of the kept ones. No labels, no training, bias unchanged.

On the axes here choosing is a criterion (`pivoted_qr`) and correcting a recovery (`refit`), which takes
any choice. Both look at what the reader is given, after activation and pooling: only linear operations
commute with T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.activations import (
    batches,
    columns_of,
    factors_of,
    float64_copy,
    fold_in,
    makers,
    matrix,
    readers_of,
    watching,
)
from pruning.masking import Group, Masks, apply_masks, entries

# Directions weaker than this beside the strongest drown in the rounding of float32 weights.
WEAKEST = torch.finfo(torch.float32).eps


def interpolation(activations: Tensor, kept: Tensor) -> Tensor:
    """T, float64 [k, n], of least ||activations - activations[:, kept] T||: the identity on `kept`.

    `kept` is int64 [k] in any order, or bool [n]. For the first k pivots T is [I, R11^-1 R12] P^T
    (Chee et al.). Where the kept columns depend on each other, the T of least norm.
    """
    z = matrix(activations)
    kept = kept.nonzero().flatten() if kept.dtype == torch.bool else kept
    return _solve(fold_in(None, _change(z[:, kept], z, kept)), kept)


def refit(
    net: nn.Module,
    masks: Masks,
    groups: Sequence[Group],
    images: Tensor,
    *,
    dense: nn.Module,
    sequential: bool = True,
) -> dict[str, Tensor]:
    """New weights, by parameter name, of the layers that read a group of which some units are dead.

    `groups` are those of `trace`; a unit is dead when the rows that make it are dead in `masks`, whatever
    chose it. The weights are those of `dense`, the network before the cut, with T multiplied in; columns
    of the dead, and what else is masked, are zero. `sequential` goes from front to back and fits what the
    layer reads in `dense` by what the masked network, refitted so far, now gives it: errors of the layers
    before are corrected as well. Else T is of `dense` alone, as in the paper. Exact where the kept
    activations span all. A ridge chosen by cross-validation holds T to plain removal where rows (images x
    positions) are few: plain least squares on as many rows as channels raised the error by orders.

    ValueError for a group with dead units that several layers read (concatenation, residual sum): one T
    per reader would be needed, of weights that share inputs. Protect it.
    """
    twin, reference = float64_copy(net), float64_copy(dense)
    _check_alike(twin, reference)
    apply_masks(twin, masks)
    units = {group.name: _alive(group, masks) for group in groups}
    due = [group for group in groups if units[group.name].any() and not units[group.name].all()]
    readers = {group.name: _reader(group) for group in due}
    first_read = list(factors_of(reference, due, images[:1])) if due else []
    weights, targets = dict(twin.named_parameters()), dict(reference.named_parameters())
    for group in sorted(due, key=lambda group: first_read.index(group.name)):
        kept, name = units[group.name].nonzero().flatten(), f"{readers[group.name]}.weight"
        r, rows = _joint_factor(twin if sequential else reference, reference, group, images, kept)
        t = _solve(r, kept, rows=rows)
        _interpolate(weights[name], targets[name], columns_of(group, readers[group.name]), t, kept)
        if name in masks:
            apply_masks(twin, {name: masks[name]})
    parameters = dict(net.named_parameters())
    names = dict.fromkeys(f"{reader}.weight" for reader in readers.values())
    return {name: weights[name].detach().to(parameters[name].dtype) for name in names}


def _check_alike(net: nn.Module, dense: nn.Module) -> None:
    shapes, wanted = ({name: [*p.shape] for name, p in part.named_parameters()} for part in (net, dense))
    for name in [name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name)][:1]:
        raise ValueError(
            f"{name}: its shape is {shapes.get(name)} in net and {wanted.get(name)} in dense; refit before "
            "the cut, with the network that the masks were made for"
        )


def _change(kept_z: Tensor, z: Tensor, kept: Tensor) -> Tensor:
    """[Z_kept, Z - Z_kept placed at `kept`]: what is left to explain, so that least change is least norm."""
    return torch.cat([kept_z, z.index_add(1, kept.to(z.device), kept_z, alpha=-1)], 1)


def _solve(r: Tensor, kept: Tensor, *, rows: int | None = None) -> Tensor:
    """T [k, n] from the factor of `_change`; with `rows`, how many are behind it, by ridge regression."""
    r, k = r.cpu(), len(kept)
    u, sizes, v = torch.linalg.svd(r[:, :k], full_matrices=False)
    strong = sizes > WEAKEST * sizes[0]
    sizes, parts = sizes[strong], (u.T @ r[:, k:])[strong]
    ridge = 0.0 if rows is None else _ridge(sizes, parts, float(r[:, k:].square().sum()), rows)
    t: Tensor = v[strong].T @ ((sizes / (sizes.square() + ridge))[:, None] * parts)
    t[torch.arange(k), kept] += 1.0
    return t


def _ridge(sizes: Tensor, parts: Tensor, energy: float, rows: int) -> float:
    """The ridge of least generalized cross-validation (Golub, Heath & Wahba, Technometrics, 1979).

    ||residual||^2 / (1 - degrees of freedom / rows)^2, over half decades from 1e-14 of the largest squared
    singular value up.
    """
    if not len(sizes):
        return 0.0
    grid = float(sizes[0]) ** 2 * torch.logspace(-14, 2, 33, dtype=torch.float64)
    lost = grid[:, None] / (sizes.square() + grid[:, None])
    strengths = parts.square().sum(1)
    residual = (lost.square() * strengths).sum(1) + max(0.0, energy - float(strengths.sum()))
    freedom = (rows - len(sizes) + lost.sum(1)).clamp(min=torch.finfo(torch.float64).tiny)
    return float(grid[(residual / freedom.square()).argmin()])


def _alive(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """bool [size]: whether any weight that makes the unit is alive; a layer without a mask is."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for member in makers(group):
        name, dim = entries(member)[0]
        living = torch.ones(len(member.index), dtype=torch.bool)
        if name in masks:
            living = masks[name].cpu().movedim(dim, 0).flatten(1).any(1)[member.index]
        alive[member.root[living]] = True
    return alive


def _reader(group: Group) -> str:
    readers = readers_of(group)
    if len(readers) > 1:
        raise ValueError(
            f"{group.name}: {len(readers)} layers read its channels ({', '.join(readers[:3])}, ...), "
            "and refit corrects only one; protect it, or choose another recovery"
        )
    return readers[0]


def _joint_factor(
    source: nn.Module, reference: nn.Module, group: Group, images: Tensor, kept: Tensor
) -> tuple[Tensor, int]:
    """Factor of `_change` (what `source` gives, what `reference` has beyond), and how many rows it is of."""
    r: Tensor | None = None
    rows = 0
    for part in batches(reference, images):
        given: list[Tensor] = []
        wanted: list[Tensor] = []
        with watching(source, group, given.append), watching(reference, group, wanted.append):
            for net in {id(net): net for net in (source, reference)}.values():
                net(part)
        columns = kept.to(given[0].device)
        change = _change(torch.cat(given)[:, columns], torch.cat(wanted), kept)
        r, rows = fold_in(r, change), rows + len(change)
    assert r is not None, "there is a batch"
    return r, rows


def _interpolate(weight: Tensor, target: Tensor, columns: Tensor, t: Tensor, kept: Tensor) -> None:
    """Set the group's columns of `weight` to those of `target` times T, in place; 0 for the dead."""
    spread = torch.zeros(columns.shape[1], columns.shape[1], dtype=t.dtype).index_copy_(0, kept, t)
    places = columns.flatten().to(weight.device)
    dense = target.index_select(1, places).unflatten(1, columns.shape)
    moved = torch.einsum("ocn...,kn->ock...", dense, spread.to(weight.device))
    weight.data.index_copy_(1, places, moved.flatten(1, 2))
