"""The law of cutting: a network that is cut out computes what the masked one computes.

It is tried on half of the channels, on random images in float64. Groups for which it does not hold are found
by halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS
from pruning.equivalence import check_equal
from pruning.eval_mode import first_float, float64_copy, random_images
from pruning.masking import Group, apply_masks, full_masks, mask_units
from pruning.removal import all_masks, removed_positions
from pruning.resize import cut_out


class CuttingLaw:
    """The law of cutting, on half of the channels of some groups: cut out and masked compute the same."""

    def __init__(self, net: nn.Module, example_input: Tensor) -> None:
        self.net = net
        wide = float64_copy(net)
        self.perturbed = _perturbed(wide)
        if not _runs(self.perturbed, random_images(example_input, first_float(wide))):
            self.perturbed = wide  # a scale under a root, say, that has become negative
        self.example = example_input
        self.draws: tuple[int, ...] = (0, 1, 2)

    def at(self, example_input: Tensor) -> CuttingLaw:
        """Return the same law on one draw of images of another size."""
        law = copy(self)
        law.example, law.draws = example_input, (0,)
        return law

    def keep_exact(self, groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], dict[str, str]]:
        """Return the groups that hold the law together, and name -> the error of each other one."""
        error = self.error(groups)
        if not error or not groups:
            return groups, {}
        if len(groups) == 1:
            return (), {groups[0].name: error}
        middle = len(groups) // 2
        exact: tuple[Group, ...] = ()
        errors: dict[str, str] = {}
        for half in (groups[:middle], groups[middle:]):
            held, failed = self.keep_exact(half)
            exact, errors = (*exact, *held), errors | failed
        if exact != groups and not self.error(exact):
            return exact, errors
        held_one_by_one: tuple[Group, ...] = ()
        for group in exact:  # groups that hold alone and not together
            if error := self.error((*held_one_by_one, group)):
                errors[group.name] = error
            else:
                held_one_by_one = (*held_one_by_one, group)
        return held_one_by_one, errors

    def error(self, groups: Sequence[Group]) -> str:
        """Return why the law does not hold for these groups; "" where it does."""
        try:
            self.check(groups)
        except ValueError as error:
            return str(error)
        return ""

    def check(self, groups: Sequence[Group]) -> None:
        """Raise ValueError unless half of every group, cut out, leaves what the masked network computes."""
        if all(group.size == 1 for group in groups):
            return
        parameter = first_float(self.perturbed)
        generator, full = torch.Generator().manual_seed(0), full_masks(self.net, groups)
        for draw in self.draws:
            masks = full
            for group in groups:
                order = torch.randperm(group.size, generator=generator)
                alive = torch.ones(group.size, dtype=torch.bool)
                masks = mask_units(group, alive.index_fill(0, order[: group.size // 2], False), masks)
            masked = deepcopy(self.perturbed)
            apply_masks(masked, masks)
            removed = removed_positions(groups, all_masks(masked, masks))
            images = random_images(self.example, parameter, draw=draw)
            check_equal(masked, cut_out(deepcopy(masked), removed), images, removed=removed)


@torch.no_grad()
def _perturbed(net: nn.Module) -> nn.Module:
    """Return a copy whose parameters and statistics are moved from their initial values.

    A fresh network has shifts of 0, scales of 1, and often a scale of 0 behind a residual branch: these hide
    what training will show. Rows and columns are moved as such: numbers for every weight take too long.
    """
    copy = deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if not tensor.dim() and isinstance(tensor, nn.Parameter):
            tensor.add_(0.1234)  # the scale 0 of a residual branch would hide the branch
        for dim in range(min(tensor.dim(), 2)):
            factor = torch.rand(tensor.shape[dim], generator=generator, dtype=torch.float64).add_(0.5)
            tensor.mul_(_along(factor, dim, tensor))
        if tensor.dim() and (isinstance(tensor, nn.Parameter) or name.endswith("running_mean")):
            shift = _along(torch.rand(len(tensor), generator=generator, dtype=torch.float64) - 0.5, 0, tensor)
            if tensor.dim() > 1:
                column = torch.rand(tensor.shape[1], generator=generator, dtype=torch.float64) - 0.5
                shift = shift * _along(column, 1, tensor)
            tensor.add_(0.2 * shift)
    return copy


def _along(values: Tensor, dim: int, tensor: Tensor) -> Tensor:
    """Return the values in a shape that multiplies `tensor` along one dimension."""
    return values.to(tensor.device).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


@torch.no_grad()
def _runs(net: nn.Module, images: Tensor) -> bool:
    try:
        logits = net(images)
    except FORWARD_ERRORS:
        return False
    return isinstance(logits, Tensor) and bool(torch.isfinite(logits[:1]).all())
