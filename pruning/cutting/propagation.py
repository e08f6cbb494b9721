"""What is dead by consequence: columns that read nothing but pruned units, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.cutting.equivalence import find_zero_columns
from pruning.cutting.positions import all_masks
from pruning.eval_mode import first_float, float64_copy, random_images
from pruning.masking import Group, Masks, alive_units, apply_masks, parameter_dims


def propagate_masks(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    groups: Sequence[Group],
    *,
    example_input: Tensor,
) -> Masks:
    """Return the masks with the columns pruned, too, that read nothing but pruned units.

    A unit is pruned when its rows, biases and norm entries are; a bias without a mask is alive. Its columns
    are pruned where they read zero on random images, so that masking them changes nothing: behind a sigmoid
    they do not. Pruned columns may leave further units without an alive weight, and so on.
    """
    result, every_mask = dict(masks), all_masks(net, masks)
    while columns_by_layer := _columns_of_pruned_units(groups, every_mask):
        zero = _zero_columns(net, result, example_input)
        has_changed = False
        for (name, dim), columns in columns_by_layer.items():
            columns = columns[zero[name][columns]] if name in zero else columns[:0]
            weight = f"{name}.weight"
            if every_mask[weight].index_select(dim, columns).any():
                every_mask[weight] = result[weight] = every_mask[weight].index_fill(dim, columns, False)
                has_changed = True
        if not has_changed:
            break
    return result


def _columns_of_pruned_units(groups: Sequence[Group], every_mask: Masks) -> dict[tuple[str, int], Tensor]:
    """Return the columns that belong to pruned units, of the layers where some of them are alive.

    By (layer, dimension of its weight): a transposed convolution has its inputs in dimension 0.
    """
    pieces: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        pruned = ~alive_units(group, every_mask)
        for member in group.members if pruned.any() and len(group.members) > 1 else ():
            if member.side == "in" and f"{member.module}.weight" in every_mask:
                side = member.module, parameter_dims(member)[0][1]
                pieces.setdefault(side, []).append(member.index[pruned[member.root]])
    columns = {side: torch.cat(tensors) for side, tensors in pieces.items()}
    return {
        (name, dim): index
        for (name, dim), index in columns.items()
        if every_mask[f"{name}.weight"].index_select(dim, index).any()
    }


def _zero_columns(net: nn.Module, masks: Masks, example_input: Tensor) -> dict[str, Tensor]:
    """Return layer -> bool [columns]: where the masked network passes zeros alone, on all random images."""
    masked = float64_copy(net)
    apply_masks(masked, masks)
    first, second = (
        find_zero_columns(masked, random_images(example_input, first_float(masked), draw=draw))
        for draw in (0, 1)
    )
    return {name: first[name] & second[name] for name in first.keys() & second.keys()}
