"""Group lasso: a penalty on the 2-norm of whole groups of weights, so that training itself empties them.

Wen et al., Learning Structured Sparsity in Deep Neural Networks (SSL), NeurIPS 2016; the factor
sqrt(|g|) is Yuan & Lin's (2006) and not theirs. Only weights are penalised: biases and norms stay, and
a unit whose weights are all zero may still give a constant until it is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pruning.lasso_groups import (
    KINDS,
    LassoGroups,
    LassoPart,
    check_one_of,
    known_weight,
    lasso_groups,
    norms_along,
    norms_of,
    weights_of,
)
from pruning.masking import Group, entries
from pruning.registry import Between, Registry

regularizers = Registry("regularizer")
MODES = ("proximal", "subgradient")
GROUP_SCALES = ("sqrt", "none")


def penalty(net: nn.Module, lasso: LassoGroups, *, group_scale: str = "sqrt") -> Tensor:
    """sum_g s_g ||W_g||_2, a scalar that can be differentiated; s_g is sqrt(|g|) or 1 (`none`).

    Its gradient at a group of zeros is 0.
    """
    return (_scale(lasso, group_scale) * norms_of(weights_of(net), lasso)).sum()


@torch.no_grad()
def add_subgradient(
    net: nn.Module, lasso: LassoGroups, *, strength: float, group_scale: str = "sqrt"
) -> None:
    """Add strength s_g W_g / ||W_g|| to the gradients, in place; 0 for a group of zeros.

    Call it after `backward`. Frozen parameters are left alone. It shrinks groups but hardly ever gives
    an exact zero: cut by `dead_units` with a tolerance, or use `proximal_step`.
    """
    weights = weights_of(net)
    norms = norms_of(weights, lasso)
    rates = strength * _scale(lasso, group_scale) / norms.masked_fill(norms == 0, torch.inf)
    for part, weight in _trainable(weights, lasso):
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.addcmul_(weight, _along(weight, part, rates, elsewhere=0.0))


@torch.no_grad()
def proximal_step(net: nn.Module, lasso: LassoGroups, *, step: float, group_scale: str = "sqrt") -> None:
    """W_g <- max(0, 1 - step s_g / ||W_g||) W_g, in place: zeros are exact.

    `step` is learning rate x strength. Of groups that do not overlap this is the proximal operator of
    `penalty` (block soft thresholding; Parikh & Boyd, Proximal Algorithms, 2014), so that after a plain SGD
    step it is proximal gradient descent; after Adam it is decoupled from Adam's metric, as AdamW's decay is.
    Where groups overlap all factors come from the weights before the step, and an entry is multiplied by
    each of its own: to first order in `step` the same, but not the exact operator, which has no closed form.
    Frozen parameters count in the norms and are left alone.
    """
    if not step >= 0:
        raise ValueError(f"step is {step!r}; it must be 0 or more: learning rate x strength")
    weights = weights_of(net)
    norms = norms_of(weights, lasso)
    norms = norms.clamp(min=torch.finfo(norms.dtype).tiny)
    factors = (1.0 - step * _scale(lasso, group_scale) / norms).clamp(min=0.0)
    for part, weight in _trainable(weights, lasso):
        weight.mul_(_along(weight, part, factors, elsewhere=1.0))


@torch.no_grad()
def dead_units(
    net: nn.Module, groups: Sequence[Group], *, tolerance: float = 0.0, side: str = "out"
) -> dict[str, Tensor]:
    """Group name -> bool [size]: True where nothing is left of a unit.

    `expand(group, ~dead, masks)` then masks it. Nothing is left where, in every layer that makes the unit,
    its weights are all zero or their 2-norm is below `tolerance` x the largest in that layer. `side="in"`
    looks at the layers that read it instead, which the kind `channel` empties; input features, which no
    layer makes, always go by columns.
    ValueError for a group without that side, or a tolerance outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}; it must be in [0, 1)")
    check_one_of("side", side, ("out", "in"))
    weights = weights_of(net)
    return {group.name: _dead(group, weights, tolerance, side) for group in groups}


def _dead(group: Group, weights: Mapping[str, Tensor], tolerance: float, side: str) -> Tensor:
    if all(member.side == "in" for member in group.members):
        side = "in"
    modules = dict.fromkeys(member.module for member in group.members if member.side == side)
    if not modules:
        raise ValueError(f"{group.name}: it has no {side!r} side; take the groups of trace")
    dead = torch.ones(group.size, dtype=torch.bool)
    for module in modules:
        squares = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if (member.module, member.side) == (module, side):
                name, dim = entries(member)[0]
                norms = norms_along(known_weight(weights, name).double(), dim).cpu()
                squares.index_add_(0, member.root, norms[member.index].square())
        norms = squares.sqrt()
        dead &= (norms == 0) | (norms < tolerance * norms.max())
    return dead


@dataclass(frozen=True)
class GroupLasso:
    """Group lasso bound to a network; it keeps no state, so that a training can be carried on anywhere.

    `progress`, in [0, 1], is the fraction of the training that is done; only a warm-up needs it.
    """

    net: nn.Module
    lasso: LassoGroups
    strength: float
    mode: str
    group_scale: str
    warmup: float

    def strength_at(self, progress: float | None = None) -> float:
        """The strength, rising linearly from 0 over the first `warmup` of the training."""
        if not self.warmup:
            return self.strength
        if progress is None:
            raise ValueError(f"warmup is {self.warmup!r}: give progress, the fraction of the training done")
        return self.strength * min(1.0, progress / self.warmup)

    def penalty(self, *, progress: float | None = None) -> Tensor:
        """strength x sum_g s_g ||W_g||: what is added to the loss, a scalar for the log."""
        return self.strength_at(progress) * penalty(self.net, self.lasso, group_scale=self.group_scale)

    def before_step(self, *, progress: float | None = None) -> None:
        """To be called after `backward` and before the optimizer's step."""
        if self.mode == "subgradient":
            strength = self.strength_at(progress)
            add_subgradient(self.net, self.lasso, strength=strength, group_scale=self.group_scale)

    def after_step(self, lr: float, *, progress: float | None = None) -> None:
        """To be called after the optimizer's step, with the learning rate that it took."""
        if self.mode == "proximal":
            step = lr * self.strength_at(progress)
            proximal_step(self.net, self.lasso, step=step, group_scale=self.group_scale)


def check_lasso(*, kind: str, strength: float, mode: str, group_scale: str, warmup: float) -> None:
    """ValueError for an unknown kind, mode or group_scale."""
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
    strength: Annotated[float, Between(0, under=True)] = 1e-4,
    mode: str = "proximal",
    group_scale: str = "sqrt",
    warmup: Annotated[float, Between(0, 1)] = 0.0,
) -> GroupLasso:
    """Hooks for a training loop: `before_step()` after backward, `after_step(lr)` after the optimizer's step.

    `warmup` is the fraction of the training over which the strength rises from 0.
    """
    lasso = lasso_groups(net, kind, groups=groups)
    return GroupLasso(net, lasso, strength, mode, group_scale, warmup)


def _scale(lasso: LassoGroups, group_scale: str) -> Tensor:
    """[G]: s_g."""
    check_one_of("group_scale", group_scale, GROUP_SCALES)
    return lasso.sizes.float().sqrt() if group_scale == "sqrt" else torch.ones_like(lasso.sizes).float()


def _trainable(
    weights: Mapping[str, nn.Parameter], lasso: LassoGroups
) -> Iterator[tuple[LassoPart, nn.Parameter]]:
    for part in lasso.parts:
        if weights[part.name].requires_grad:
            yield part, weights[part.name]


def _along(weight: Tensor, part: LassoPart, values: Tensor, *, elsewhere: float) -> Tensor:
    """The values of the lasso groups at their positions, shaped to be multiplied with the weight."""
    line = torch.full((weight.shape[part.dim],), elsewhere, dtype=weight.dtype, device=weight.device)
    line[part.index] = values.to(weight.dtype)[part.root]
    return line.reshape([-1 if dim == part.dim else 1 for dim in range(weight.dim())])
