"""Drop and grow: the one exception to "what is pruned never comes back", for sparse training.

An update takes some alive weights out of a layer and puts as many others in, so that the number of its alive
weights stays exactly what it was. What grows was not alive just before, or was dropped by the same update:
in the code of the authors of both methods a weight that is dropped competes for a place again, and so it does
here. What has grown starts at zero, and with it whatever the optimizer remembers of it. Ties go by index, the
first one first. A layer in which everything is alive has no place for another weight, and is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regrowth:
    """One layer after an update, bool in its shape: which weights are `alive`, and which start at zero.

    `grown` is a part of `alive`; the other alive weights are as they were before.
    """

    alive: Tensor
    grown: Tensor


def regrow_at_random(
    weight: Tensor, alive: Tensor, *, fraction: float, generator: torch.Generator
) -> Regrowth:
    """Drop the positive and the negative weights closest to zero, and grow as many anywhere else.

    Of the m positive alive weights the floor(fraction m) smallest are dropped, of the negative ones likewise,
    and with them every alive weight that is exactly zero. The places of the new ones are drawn uniformly from
    all that is not alive then; a weight that is dropped and drawn again starts at zero, too.
    Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired
    by Network Science, Nature Communications 2018 (SET). All tensors are on the CPU, `alive` is bool.
    ValueError for a weight that is not a number, or a fraction outside of [0, 1].
    """
    weight = _checked("weights", weight, fraction)
    if bool(alive.all()):
        return Regrowth(alive.clone(), torch.zeros_like(alive))
    survivors = alive & (weight != 0)
    for side in (survivors & (weight > 0), survivors & (weight < 0)):
        survivors = survivors & ~_lowest(weight.abs(), side, math.floor(fraction * int(side.sum())))
    draws = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    grown = _lowest(draws, ~survivors, int(alive.sum()) - int(survivors.sum()))
    return Regrowth(survivors | grown, grown)


def regrow_by_gradient(weight: Tensor, gradient: Tensor, alive: Tensor, *, fraction: float) -> Regrowth:
    """Drop the smallest weights, and grow as many where the loss changes fastest.

    Of n alive weights the floor(fraction n) smallest by |w| are dropped. Of all that is not alive then the
    same number with the largest |g| becomes alive, `gradient` being that of the loss by every weight of the
    layer, masked ones included. A weight that is dropped and chosen again keeps its value, as in the authors'
    code: it is alive before and after. Evci et al., Rigging the Lottery, ICML 2020, algorithm 1 (RigL). All
    tensors are on the CPU, `alive` is bool. ValueError for a weight or gradient that is not a number, or a
    fraction outside of [0, 1].
    """
    weight, gradient = _checked("weights", weight, fraction), _checked("gradients", gradient, fraction)
    if bool(alive.all()):
        return Regrowth(alive.clone(), torch.zeros_like(alive))
    count = math.floor(fraction * int(alive.sum()))
    survivors = alive & ~_lowest(weight.abs(), alive, count)
    grown = _lowest(-gradient.abs(), ~survivors, count)
    return Regrowth(survivors | grown, grown & ~alive)


def cosine_fraction(step: float, *, start: float, end: float) -> float:
    """Return start / 2 (1 + cos(pi step / end)): from `start` at step 0 to 0 at step `end`, and after it.

    Evci et al., ICML 2020, section 3 (2): f_decay.
    """
    return 0.0 if step >= end else start / 2 * (1 + math.cos(math.pi * step / end))


def _checked(what: str, values: Tensor, fraction: float) -> Tensor:
    """Return the values in float64."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; it must be in [0, 1]")
    if values.isnan().any():
        raise ValueError(f"the {what} contain NaN: nothing can be dropped or grown by them")
    return values.detach().double()


def _lowest(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return bool in the shape of the scores: the `count` candidates with the lowest scores."""
    places = candidates.flatten().nonzero().flatten()
    order = scores.flatten()[places].sort(stable=True).indices[:count]
    return torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, places[order], True).view_as(scores)
