"""Group lasso: a penalty on the 2-norm of whole groups of weights, so that training itself empties them.

Wen et al., Learning Structured Sparsity in Deep Neural Networks (SSL), NeurIPS 2016; the factor sqrt(|g|) is
Yuan & Lin's (2006) and not theirs. Only weights are penalised: biases and norms stay, and a unit whose
weights are all zero may still put out a constant until it is masked.

Groups are `filter` (each row of a hidden layer), `channel` (what one layer reads of one hidden channel: a
column), or `group` (a unit of a dependency group: its rows in every layer that makes it and its columns in
every layer that reads it, under one norm). Rows do not overlap, nor do columns. Units of `group` do where a
layer has rows in one and columns in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor, nn

from pruning.checks import check_groups_fit, check_network, check_one_of
from pruning.dataflow import find_data_flow
from pruning.granularity import unit_groups
from pruning.hyperparameters import Between
from pruning.masking import Group, Member, parameter_dims, prunable_layers
from pruning.registry import Registry

regularizers = Registry("regularizer")
KINDS = ("filter", "channel", "group")
MODES = ("proximal", "subgradient")
GROUP_SCALES = ("sqrt", "none")


@dataclass(frozen=True)
class LassoSlice:
    """Positions `index` along `dim` of the parameter `name`, and the lasso group `root` of each; int64.

    `length` is the parameter's along `dim`.
    """

    name: str
    dim: int
    index: Tensor
    root: Tensor
    length: int


@dataclass(frozen=True)
class LassoGroups:
    """The lasso groups of a network, numbered through; `sizes`, int64 [G], counts the weights of each.

    The lines of all slices, one value for each position along `dim`, lie behind each other in one vector: a
    step takes two operations a slice, and some twenty for all.
    """

    sizes: Tensor
    slices: tuple[LassoSlice, ...]

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths of the lines."""
        return [piece.length for piece in self.slices]

    @cached_property
    def positions(self) -> Tensor:
        """Where in all lines the positions of each slice are, int64."""
        starts = [0, *accumulate(self.lengths)]
        return torch.cat([piece.index + start for piece, start in zip(self.slices, starts, strict=False)])

    @cached_property
    def roots(self) -> Tensor:
        """The lasso group of each of `positions`, int64."""
        return torch.cat([piece.root for piece in self.slices])


def make_lasso_groups(net: nn.Module, kind: str, *, groups: Sequence[Group] | None = None) -> LassoGroups:
    """Return the weights that are penalised as one.

    `groups` (of `trace`, or of `unit_groups`) limits all kinds to the layers in it, and `group` needs it.
    With it, `channel` joins the columns that a flattened map repeats per cell; without, every column of
    every layer but the first that runs stands alone. ValueError for another kind, or for no weights at all.
    """
    check_one_of("kind", kind, KINDS)
    check_network(net)
    if groups is not None:
        check_groups_fit(net, groups)
    weights = dict(net.named_parameters())
    sizes: list[Tensor] = []
    positions: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for size, members in _iter_joined_members(net, kind, groups):
        count = torch.zeros(size, dtype=torch.int64)
        for member in members:
            name, dim = parameter_dims(member)[0]
            weight = get_weight(weights, name)
            per_position = torch.full_like(member.root, weight.numel() // weight.shape[dim])
            count.index_add_(0, member.root, per_position)
            positions.setdefault((name, dim), []).append((member.index, member.root + start))
        sizes.append(count)
        start += size
    if not positions:
        kinds = ", ".join(name for name in KINDS if name != kind)
        raise ValueError(f"kind {kind!r} finds no weights to penalise here; other kinds: {kinds}")
    slices = []
    # One slice for all the groups along a dimension: in a DenseNet twenty of them share a layer's columns.
    for (name, dim), pairs in positions.items():
        index, root = (torch.cat(tensors).to(weights[name].device) for tensors in zip(*pairs, strict=True))
        slices.append(LassoSlice(name, dim, index, root, weights[name].shape[dim]))
    return LassoGroups(torch.cat(sizes).to(slices[0].index.device), tuple(slices))


def _iter_joined_members(
    net: nn.Module, kind: str, groups: Sequence[Group] | None
) -> Iterator[tuple[int, tuple[Member, ...]]]:
    """Yield (number of lasso groups, the members that they share)."""
    if kind == "group":
        if groups is None:
            raise ValueError("kind 'group' needs groups, those of trace(net, example_input)")
        for group in groups:
            yield group.size, tuple(member for member in group.members if member.side != "norm")
    elif groups is None and kind == "channel":
        layers = prunable_layers(net)
        first = find_data_flow(net).layers[0] if len(layers) > 1 else None
        for name in (name for name in layers if name != first):
            columns = torch.arange(layers[name].weight.shape[1])
            yield len(columns), (Member(name, "in", columns, columns),)
    else:
        side = "out" if kind == "filter" else "in"
        for group in unit_groups(net) if groups is None else groups:
            for module in dict.fromkeys(member.module for member in group.members if member.side == side):
                yield group.size, tuple(m for m in group.members if (m.module, m.side) == (module, side))


def group_norms(weights: Mapping[str, Tensor], lasso: LassoGroups) -> Tensor:
    """Return [G]: the 2-norm of each lasso group; differentiable, with gradient 0 at zero."""
    norms = torch.cat([slice_norms(weights[s.name], s.dim) for s in lasso.slices])
    squares = norms.square()[lasso.positions]
    totals = squares.new_zeros(len(lasso.sizes)).index_add(0, lasso.roots, squares)
    # The root of zero has an infinite gradient, and that times 0 is NaN: it is kept out of the graph.
    empty = totals == 0
    return totals.masked_fill(empty, 1.0).sqrt().masked_fill(empty, 0.0)


def slice_norms(weight: Tensor, dim: int) -> Tensor:
    """Return the 2-norm of each slice along `dim`, in float32 at least."""
    dims = [d for d in range(weight.dim()) if d != dim]
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=dims, dtype=wide)
    return norms


def get_weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the weight of that name. ValueError where the network has none that can be changed."""
    if name not in weights:
        raise ValueError(f"{name} is no parameter of its own: it is computed, or tied to another layer's")
    return weights[name]


def penalty(net: nn.Module, lasso: LassoGroups, *, group_scale: str = "sqrt") -> Tensor:
    """Return sum_g s_g ||W_g||_2, with gradient 0 at a group of zeros; s_g is sqrt(|g|) or 1 (`none`)."""
    return (_scales(lasso, group_scale) * group_norms(dict(net.named_parameters()), lasso)).sum()


@torch.no_grad()
def add_subgradient(
    net: nn.Module, lasso: LassoGroups, *, strength: float, group_scale: str = "sqrt"
) -> None:
    """Add strength s_g W_g / ||W_g|| to the gradients, in place; 0 for a group of zeros.

    Call it after `backward`. Frozen parameters are left alone. It shrinks groups but hardly ever makes an
    exact zero: prune by `find_zero_units` with a tolerance, or use `proximal_step`.
    """
    weights = dict(net.named_parameters())
    norms = group_norms(weights, lasso)
    rates = strength * _scales(lasso, group_scale) / norms.masked_fill(norms == 0, torch.inf)
    for line, weight in _trainable(weights, lasso, rates, elsewhere=0.0):
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.addcmul_(weight, line)


@torch.no_grad()
def proximal_step(net: nn.Module, lasso: LassoGroups, *, step: float, group_scale: str = "sqrt") -> None:
    """Apply W_g <- max(0, 1 - step s_g / ||W_g||) W_g, in place: zeros are exact.

    `step` is learning rate x strength. For groups that do not overlap this is the proximal operator of
    `penalty` (block soft thresholding; Parikh & Boyd, Proximal Algorithms, 2014), so that after a plain SGD
    step it is proximal gradient descent; after Adam it is decoupled from Adam's metric, as AdamW's decay is.
    Where groups overlap all factors come from the weights before the step, and an entry is multiplied by
    each of its own: to first order in `step` the same, but not the exact operator, which has no closed form.
    Frozen parameters count in the norms and are left alone.
    """
    if not step >= 0:
        raise ValueError(f"step is {step!r}; it must be 0 or more: learning rate x strength")
    weights = dict(net.named_parameters())
    norms = group_norms(weights, lasso)
    norms = norms.clamp(min=torch.finfo(norms.dtype).tiny)  # a step of 0 would divide 0 by 0
    factors = (1.0 - step * _scales(lasso, group_scale) / norms).clamp(min=0.0)
    for line, weight in _trainable(weights, lasso, factors, elsewhere=1.0):
        weight.mul_(line)


def _scales(lasso: LassoGroups, group_scale: str) -> Tensor:
    """Return [G]: s_g."""
    check_one_of("group_scale", group_scale, GROUP_SCALES)
    return lasso.sizes.float().sqrt() if group_scale == "sqrt" else torch.ones_like(lasso.sizes).float()


def _trainable(
    weights: Mapping[str, nn.Parameter], lasso: LassoGroups, values: Tensor, *, elsewhere: float
) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """Yield the values of each slice in a shape that multiplies its weight, and the weight."""
    lines = values.new_full((sum(lasso.lengths),), elsewhere)
    lines[lasso.positions] = values[lasso.roots]
    for piece, line in zip(lasso.slices, lines.split(lasso.lengths), strict=True):
        weight = weights[piece.name]
        if weight.requires_grad:
            shape = [-1 if dim == piece.dim else 1 for dim in range(weight.dim())]
            yield line.to(weight.dtype).reshape(shape), weight


@torch.no_grad()
def find_zero_units(
    net: nn.Module, groups: Sequence[Group], *, tolerance: float = 0.0, side: str = "out"
) -> dict[str, Tensor]:
    """Return group name -> bool [size]: True for units whose weights are all zero, or nearly so.

    `mask_units(group, ~zero, masks)` then prunes them. In every layer that makes such a unit, its weights are
    all zero or their 2-norm is below `tolerance` x the largest in that layer. `side="in"` looks at the layers
    that read it instead, which the kind `channel` empties; input features, which no layer makes, always go by
    columns. ValueError for a group without that side, or a tolerance outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}; it must be in [0, 1)")
    check_one_of("side", side, ("out", "in"))
    weights = dict(net.named_parameters())
    return {group.name: _zero_units(group, weights, tolerance, side) for group in groups}


def _zero_units(group: Group, weights: Mapping[str, Tensor], tolerance: float, side: str) -> Tensor:
    if all(member.side == "in" for member in group.members):
        side = "in"
    modules = dict.fromkeys(member.module for member in group.members if member.side == side)
    if not modules:
        raise ValueError(f"{group.name}: it has no {side!r} side; take the groups of trace")
    zero = torch.ones(group.size, dtype=torch.bool)
    for module in modules:
        squares = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if (member.module, member.side) == (module, side):
                name, dim = parameter_dims(member)[0]
                norms = slice_norms(get_weight(weights, name).double(), dim).cpu()
                squares.index_add_(0, member.root, norms[member.index].square())
        norms = squares.sqrt()
        zero &= (norms == 0) | (norms < tolerance * norms.max())  # 0 is not below 0
    return zero


@dataclass(frozen=True)
class GroupLasso:
    """Group lasso bound to a network; it has no state, so that training can be resumed anywhere.

    `progress`, in [0, 1], is the fraction of the training that is done; only a warm-up needs it.
    """

    net: nn.Module
    lasso: LassoGroups
    strength: float
    mode: str
    group_scale: str
    warmup: float

    def strength_at(self, progress: float | None = None) -> float:
        """Return the strength, rising linearly from 0 over the first `warmup` of the training."""
        if not self.warmup:
            return self.strength
        if progress is None:
            raise ValueError(f"warmup is {self.warmup!r}: give progress, the fraction of the training done")
        return self.strength * min(1.0, progress / self.warmup)

    def penalty(self, *, progress: float | None = None) -> Tensor:
        """Return strength x sum_g s_g ||W_g||: what is added to the loss, a scalar for the log."""
        return self.strength_at(progress) * penalty(self.net, self.lasso, group_scale=self.group_scale)

    def before_step(self, *, progress: float | None = None) -> None:
        """Call it after `backward` and before the optimizer's step."""
        if self.mode == "subgradient":
            strength = self.strength_at(progress)
            add_subgradient(self.net, self.lasso, strength=strength, group_scale=self.group_scale)

    def after_step(self, lr: float, *, progress: float | None = None) -> None:
        """Call it after the optimizer's step, with the learning rate of that step."""
        if self.mode == "proximal":
            step = lr * self.strength_at(progress)
            proximal_step(self.net, self.lasso, step=step, group_scale=self.group_scale)


def check_lasso(*, kind: str, strength: float, mode: str, group_scale: str, warmup: float) -> None:
    """Raise ValueError for an unknown kind, mode or group_scale."""
    check_one_of("group_lasso(kind)", kind, KINDS)
    check_one_of("group_lasso(mode)", mode, MODES)
    check_one_of("group_lasso(group_scale)", group_scale, GROUP_SCALES)


@regularizers.register(
    summary="empties whole groups of weights in training",
    paper="Wen et al., SSL, NeurIPS 2016",
    check=check_lasso,
)
def group_lasso(
    net: nn.Module,
    *,
    groups: Sequence[Group] | None,
    kind: str = "group",
    strength: Annotated[float, Between(0, open_high=True)] = 1e-4,
    mode: str = "proximal",
    group_scale: str = "sqrt",
    warmup: Annotated[float, Between(0, 1)] = 0.0,
) -> GroupLasso:
    """Hooks for a training loop: `before_step()` after backward, `after_step(lr)` after the optimizer's step.

    `warmup` is the fraction of the training over which the strength rises from 0.
    """
    lasso = make_lasso_groups(net, kind, groups=groups)
    return GroupLasso(net, lasso, strength, mode, group_scale, warmup)
