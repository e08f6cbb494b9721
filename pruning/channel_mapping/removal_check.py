"""Check which groups can be removed: the network that is cut out computes what the masked one computes.

It is checked on half of the channels, on a single one and on three quarters, on random images in float64. The
groups for which this is wrong are found by the layer at which it breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS
from pruning.cutting.equivalence import UnequalError, check_equal, run_masked
from pruning.cutting.layer_widths import cut_out
from pruning.cutting.positions import removed_positions
from pruning.eval_mode import first_float, random_images, widened_copy
from pruning.masking import Group, Masks, full_masks, mask_units, parameter_dims


class RemovalCheck:
    """Cuts some of the channels of some groups out of copies, and compares them with the masked network."""

    def __init__(self, net: nn.Module, example_input: Tensor) -> None:
        self.net, self.is_moved = net, True
        self.example = example_input
        self.draws: tuple[int, ...] = (0, 1, 2)
        # A scale under a root, say, that has become negative.
        self.is_moved = _runs(self.copy(), example_input)

    def copy(self) -> nn.Module:
        """Return the network in float64, with its values moved where it runs with moved values.

        A new one at each call: one at a time is in memory.
        """
        wide = widened_copy(self.net)
        return _move(wide) if self.is_moved else wide

    def at(self, example_input: Tensor) -> RemovalCheck:
        """Return the same check on one draw of images of another size."""
        check = copy(self)
        check.example, check.draws = example_input, (0,)
        return check

    def keep_exact(self, groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], dict[str, str]]:
        """Return the groups that can be removed together, and name -> the error of each other one.

        A group at whose layer outputs differ is put aside, until the others are exact; then those that
        were put aside are tried again, one by one.
        """
        exact, errors = self._keep_exact(groups, self.draws[:1])
        if exact and self._break(exact, self.draws[1:]) is not None:  # rare: what fails by the first is out
            return self._keep_exact(groups, self.draws)
        return exact, errors

    def _keep_exact(
        self, groups: tuple[Group, ...], draws: Sequence[int]
    ) -> tuple[tuple[Group, ...], dict[str, str]]:
        exact, aside = groups, list[Group]()
        while exact and (error := self._break(exact, draws)) is not None:
            blamed = [g for g in exact if any(member.module == error.layer for member in g.members)]
            aside += blamed or exact
            exact = tuple(group for group in exact if blamed and group not in blamed)
        errors: dict[str, str] = {}
        for group in sorted(aside, key=groups.index):
            if error := self._break((*exact, group), draws):
                errors[group.name] = str(error)
            else:
                exact = (*exact, group)
        return tuple(sorted(exact, key=groups.index)), errors

    def error(self, groups: Sequence[Group]) -> str:
        """Return why these groups cannot be removed exactly; "" where they can."""
        return str(self._break(groups, self.draws) or "")

    def holds_for_any_count(self, exact: Sequence[Group], group: Group) -> bool:
        """Return whether the groups are exact where single and many units of the last are cut out."""
        generator = torch.Generator().manual_seed(1)
        counts = (1, 1, group.size // 4, group.size // 2, group.size // 2, group.size - 1)
        full = full_masks(self.net, (*exact, group))
        try:
            for count in filter(None, counts):
                dead = torch.randperm(group.size, generator=generator)[:count]
                self._check_draw((group,), (dead,), full, 0)
            self._check_draws((*exact, group), self.draws)
        except ValueError:
            return False
        return True

    def _break(self, groups: Sequence[Group], draws: Sequence[int]) -> UnequalError | None:
        try:
            self._check_draws(groups, draws)
        except UnequalError as error:
            return error
        except ValueError as error:
            return UnequalError("", str(error))
        return None

    def check(self, groups: Sequence[Group]) -> None:
        """Raise ValueError unless some of every group, cut out, leave what the masked network computes."""
        self._check_draws(groups, self.draws)

    def _check_draws(self, groups: Sequence[Group], draws: Sequence[int]) -> None:
        if all(group.size == 1 for group in groups):
            return
        generator, full = torch.Generator().manual_seed(0), full_masks(self.net, groups)
        for draw in self.draws:
            dead = [torch.randperm(g.size, generator=generator)[: _count(g, draw)] for g in groups]
            if draw in draws:
                self._check_draw(groups, dead, full, draw)

    def _check_draw(self, groups: Sequence[Group], dead: Sequence[Tensor], full: Masks, draw: int) -> None:
        masks, alive = full, list[Tensor]()
        for group, units in zip(groups, dead, strict=True):
            alive.append(torch.ones(group.size, dtype=torch.bool).index_fill(0, units, False))
            masks = mask_units(group, alive[-1], masks)
        removed = removed_positions(groups, masks)
        del masks

        def rebuild() -> nn.Module:
            net = self.copy()
            for group, units in zip(groups, alive, strict=True):
                _silence(net, group, units)
            return net

        net = rebuild()
        images = random_images(self.example, first_float(net), draw=draw)
        masked = run_masked(net, images, removed=removed)
        net = cut_out(net, removed)  # in place: two such networks do not fit where one does
        check_equal(masked, net, images, rebuild=rebuild)


def _count(group: Group, draw: int) -> int:
    """Return how many units of a group a draw cuts out: of other numbers, other splits come out even."""
    return (group.size // 2, min(1, group.size - 1), group.size - max(1, group.size // 4))[draw]


@torch.no_grad()
def _silence(net: nn.Module, group: Group, alive: Tensor) -> None:
    """Set to zero, in place, what masks of these units set to zero: without a product as large as a layer."""
    parameters = dict(net.named_parameters())
    for member in group.members:
        dead = member.index[~alive[member.root]]
        for name, dim in parameter_dims(member):
            if name in parameters and len(dead):
                parameters[name].index_fill_(dim, dead.to(parameters[name].device), 0.0)


@torch.no_grad()
def _move(net: nn.Module) -> nn.Module:
    """Move parameters and statistics from their initial values, in place; return the network.

    A fresh network has shifts of 0, scales of 1, and often a scale of 0 behind a residual branch: these hide
    what training will show. Rows and columns are moved as such: numbers for every weight take too long.
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if not tensor.is_floating_point() and not tensor.is_complex():
            continue
        if not tensor.dim() and isinstance(tensor, nn.Parameter):
            tensor.add_(0.1234)  # the scale 0 of a residual branch would hide the branch
        for dim in range(min(tensor.dim(), 2)):
            factor = torch.rand(tensor.shape[dim], generator=generator, dtype=torch.float64).add_(0.5)
            tensor.mul_(_along(factor, dim, tensor))
        if tensor.dim() and (isinstance(tensor, nn.Parameter) or name.endswith("running_mean")):
            shift = 0.2 * (torch.rand(len(tensor), generator=generator, dtype=torch.float64) - 0.5)
            if tensor.dim() == 1:
                tensor.add_(shift.to(tensor.device))
                continue
            column = torch.rand(tensor.shape[1], generator=generator, dtype=torch.float64) - 0.5
            if tensor.dim() == 2 and tensor.dtype == torch.float64:
                tensor.addr_(shift.to(tensor.device), column.to(tensor.device))  # no product beside it
            else:
                tensor.add_(_along(shift, 0, tensor) * _along(column, 1, tensor))
    return net


def _along(values: Tensor, dim: int, tensor: Tensor) -> Tensor:
    """Return the values in a shape that multiplies `tensor` along one dimension."""
    return values.to(tensor.device).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


@torch.no_grad()
def _runs(net: nn.Module, example_input: Tensor) -> bool:
    try:
        logits = net(random_images(example_input, first_float(net)))
    except FORWARD_ERRORS:
        return False
    return isinstance(logits, Tensor) and bool(torch.isfinite(logits[:1]).all())
