"""Interpolative decomposition: which channels the others can be interpolated from, and how.

Chee et al., Model preserving compression for neural networks, NeurIPS 2022: with Z the activations that
a layer reads, [rows, channels], Z ~= Z[:, kept] T; the channels that are not kept leave, and the weights
that read them pass into those of the kept ones. No labels, no training, bias unchanged.

On the axes here choosing is a criterion (`pivoted_qr`) and correcting a recovery (`refit`), which takes
any choice. Both look at what the reader is given, after activation and pooling: only linear operations
commute with T. Activations are never kept whole: their QR factor R, [n, n], grows batch by batch.
Networks run as float64 copies in eval mode; what is passed in stays untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial

import scipy.linalg
import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.criteria import Scene, criteria
from pruning.masking import Group, Masks, Member, Scores, apply_masks, entries
from pruning.structure import trace

CHUNK = 64  # images at a time
# Directions weaker than this beside the strongest drown in the rounding of float32 weights.
WEAKEST = torch.finfo(torch.float32).eps
Watch = Callable[[Tensor], None]


def pivot_scores(activations: Tensor) -> Tensor:
    """float64 [n]: |R_kk| of QR with column pivoting, at the column that was the k-th pivot.

    `activations` is [rows, n]. The k highest are the first k pivots, for every k: |R_kk| never grows with
    k, and (n - k) 2^-50 |R_11| is added, less than the rounding of the QR, so that no two are equal and
    no tie goes by index. ValueError for what is not finite or not a matrix.
    """
    return _ordered(*_pivots(_fold(None, _matrix(activations))))


def interpolation(activations: Tensor, kept: Tensor) -> Tensor:
    """T, float64 [k, n], of least ||activations - activations[:, kept] T||: the identity on `kept`.

    `kept` is int64 [k] in any order, or bool [n]. For the first k pivots T is [I, R11^-1 R12] P^T
    (Chee et al.). Where the kept columns depend on each other, the T of least norm.
    """
    z = _matrix(activations)
    kept = kept.nonzero().flatten() if kept.dtype == torch.bool else kept
    return _solve(_fold(None, _change(z[:, kept], z, kept)), kept)


def pivot_scores_of(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Group name -> `pivot_scores` of its units [size], from `images` [N, C, H, W].

    A unit's column holds what every layer that reads it is given, all of them stacked: each position of a
    map is a row. ValueError for groups that nothing reads (those of `unit_groups`), or without images.
    """
    return {name: _ordered(*_pivots(r)) for name, r in _factors(_copy(net), groups, images).items()}


@criteria.register(
    summary="how far a unit or channel is from the span of those before it",
    paper="Chee et al., NeurIPS 2022",
    data=True,
    one_draw=True,
    groups=True,
)
def pivoted_qr(scene: Scene, *, relative: bool = True) -> Scores:
    """|R_kk| of the pivoted QR of the activations, over |R_11| of its group where `relative`.

    |R_k+1,k+1| / |R_11| is the paper's accuracy: with it, scope `global` cuts every layer at the same one.
    Needs images, no labels. Every weight of a row bears its unit's score; a weight of its own has none.
    """
    if scene.sample is None or not len(scene.sample[0]):
        raise ValueError("criterion 'pivoted_qr' needs sample, a pair (images [n, C, H, W], labels [n])")
    twin = _copy(scene.net)
    apply_masks(twin, scene.masks)
    groups = trace(scene.net, scene.sample[0][:1].to(next(twin.parameters()).device))
    factors = _factors(twin, groups, scene.sample[0])
    scores = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in scene.weights.items()}
    for group in groups:
        diagonal, order = _pivots(factors[group.name])
        scale = diagonal[0] if relative and diagonal[0] > 0 else torch.ones(())
        unit_scores = _ordered(diagonal / scale, order)
        for member in _makers(group):
            name, dim = entries(member)[0]
            if name in scores:
                rows = scores[name].movedim(dim, 0)
                rows[member.index] = unit_scores[member.root].reshape(-1, *[1] * (rows.dim() - 1))
    return scores


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
    twin, reference = _copy(net), _copy(dense)
    _check_alike(twin, reference)
    apply_masks(twin, masks)
    units = {group.name: _alive(group, masks) for group in groups}
    due = [group for group in groups if units[group.name].any() and not units[group.name].all()]
    readers = {group.name: _reader(group) for group in due}
    first_read = list(_factors(reference, due, images[:1])) if due else []
    weights, targets = dict(twin.named_parameters()), dict(reference.named_parameters())
    for group in sorted(due, key=lambda group: first_read.index(group.name)):
        kept, name = units[group.name].nonzero().flatten(), f"{readers[group.name]}.weight"
        r, rows = _joint_factor(twin if sequential else reference, reference, group, images, kept)
        t = _solve(r, kept, rows=rows)
        _interpolate(weights[name], targets[name], _columns(group, readers[group.name]), t, kept)
        if name in masks:
            weights[name].data.mul_(masks[name].to(weights[name].device))
    parameters = dict(net.named_parameters())
    names = dict.fromkeys(f"{reader}.weight" for reader in readers.values())
    return {name: weights[name].detach().to(parameters[name].dtype) for name in names}


def _copy(net: nn.Module) -> nn.Module:
    return deepcopy(net).double().eval().requires_grad_(False)


def _check_alike(net: nn.Module, dense: nn.Module) -> None:
    shapes, wanted = ({name: [*p.shape] for name, p in part.named_parameters()} for part in (net, dense))
    for name in [name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name)][:1]:
        raise ValueError(
            f"{name}: its shape is {shapes.get(name)} in net and {wanted.get(name)} in dense; refit before "
            "the cut, with the network that the masks were made for"
        )


def _matrix(activations: Tensor) -> Tensor:
    if activations.dim() != 2 or not activations.numel():
        raise ValueError(f"activations of shape {tuple(activations.shape)}; a matrix [rows, n] is needed")
    return activations.detach().double()


def _fold(r: Tensor | None, rows: Tensor) -> Tensor:
    """The factor R of everything so far and `rows`; QR of R is QR of all the rows, without squaring them."""
    if not torch.isfinite(rows).all():
        raise ValueError("activations that are not finite numbers: nothing can be fitted to them")
    factor: Tensor = torch.linalg.qr(rows if r is None else torch.cat([r, rows]), mode="r").R
    return factor


def _pivots(r: Tensor) -> tuple[Tensor, Tensor]:
    """|R_kk| [n], never growing, and the columns in the order of their choice, int64 [n]."""
    factor, order = scipy.linalg.qr(r.cpu().numpy(), mode="r", pivoting=True)
    diagonal = torch.zeros(len(order), dtype=torch.float64)
    found = torch.from_numpy(factor).diagonal().abs()
    diagonal[: len(found)] = found.cummin(0).values
    return diagonal, torch.from_numpy(order).long()


def _ordered(diagonal: Tensor, order: Tensor) -> Tensor:
    top = float(diagonal[0]) or 1.0
    apart = torch.arange(len(order) - 1, -1, -1, dtype=torch.float64) * (2.0**-50 * top)
    return torch.empty_like(diagonal).index_copy_(0, order, diagonal + apart)


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


def _makers(group: Group) -> list[Member]:
    """The members that make the units: rows; columns for a network's input features."""
    return [member for member in group.members if member.side == "out"] or list(group.members)


def _alive(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """bool [size]: whether any weight that makes the unit is alive; a layer without a mask is."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for member in _makers(group):
        name, dim = entries(member)[0]
        living = torch.ones(len(member.index), dtype=torch.bool)
        if name in masks:
            living = masks[name].cpu().movedim(dim, 0).flatten(1).any(1)[member.index]
        alive[member.root[living]] = True
    return alive


def _readers(group: Group) -> list[str]:
    readers = list(dict.fromkeys(member.module for member in group.members if member.side == "in"))
    if not readers:
        raise ValueError(f"{group.name}: no layer is known that reads it; take the groups of trace")
    return readers


def _reader(group: Group) -> str:
    readers = _readers(group)
    if len(readers) > 1:
        raise ValueError(
            f"{group.name}: {len(readers)} layers read its channels ({', '.join(readers[:3])}, ...), "
            "and refit corrects only one; protect it, or choose another recovery"
        )
    return readers[0]


def _columns(group: Group, reader: str) -> Tensor:
    """int64 [cells, size]: where the reader finds each unit; a flattened map has a cell per position."""
    members = [member for member in group.members if (member.module, member.side) == (reader, "in")]
    index, root = (torch.cat([getattr(member, name) for member in members]) for name in ("index", "root"))
    if len(root.bincount(minlength=group.size).unique()) > 1:
        raise ValueError(f"{group.name}: {reader} reads some of its channels more often than others")
    return index[root.argsort(stable=True)].reshape(group.size, -1).T


@contextmanager
def _watching(net: nn.Module, group: Group, see: Watch) -> Iterator[None]:
    """Let `see` have the group's units, float64 [rows, size], wherever a layer of `net` reads them."""
    handles = [
        net.get_submodule(reader).register_forward_pre_hook(partial(_show, _columns(group, reader), see))
        for reader in _readers(group)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show(columns: Tensor, see: Watch, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    features = inputs[0].movedim(-3, -1) if isinstance(layer, nn.Conv2d) else inputs[0]
    if isinstance(layer, SelectedLinear):
        features = features.index_select(-1, layer.inputs)
    see(features[..., columns.to(features.device)].reshape(-1, columns.shape[1]))


def _batches(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    if not len(images):
        raise ValueError("no images: give a few hundred, [n, C, H, W]; labels are not needed")
    device = next(net.parameters()).device
    for part in images.split(CHUNK):
        yield part.detach().to(device, torch.float64)


def _factors(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Group name -> factor R of its activations, all in one pass; first read, first named."""
    factors: dict[str, Tensor] = {}

    def fold(name: str, rows: Tensor) -> None:
        factors[name] = _fold(factors.get(name), rows)

    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(_watching(net, group, partial(fold, group.name)))
        for part in _batches(net, images):
            net(part)
    return factors


def _joint_factor(
    source: nn.Module, reference: nn.Module, group: Group, images: Tensor, kept: Tensor
) -> tuple[Tensor, int]:
    """Factor of `_change` (what `source` gives, what `reference` has beyond), and how many rows it is of."""
    r: Tensor | None = None
    rows = 0
    for part in _batches(reference, images):
        given: list[Tensor] = []
        wanted: list[Tensor] = []
        with _watching(source, group, given.append), _watching(reference, group, wanted.append):
            for net in {id(net): net for net in (source, reference)}.values():
                net(part)
        columns = kept.to(given[0].device)
        change = _change(torch.cat(given)[:, columns], torch.cat(wanted), kept)
        r, rows = _fold(r, change), rows + len(change)
    assert r is not None, "there is a batch"
    return r, rows


def _interpolate(weight: Tensor, target: Tensor, columns: Tensor, t: Tensor, kept: Tensor) -> None:
    """Set the group's columns of `weight` to those of `target` times T, in place; 0 for the dead."""
    spread = torch.zeros(columns.shape[1], columns.shape[1], dtype=t.dtype).index_copy_(0, kept, t)
    places = columns.flatten().to(weight.device)
    dense = target.index_select(1, places).unflatten(1, columns.shape)
    moved = torch.einsum("ocn...,kn->ock...", dense, spread.to(weight.device))
    weight.data.index_copy_(1, places, moved.flatten(1, 2))
