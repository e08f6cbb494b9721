"""Criteria that sum over the steps of a training, and the accumulator of these sums: movement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from pruning.criteria import ScoringContext, criteria
from pruning.masking import Scores, full_masks
from pruning.registry import Method

Addend = Callable[[Tensor, Tensor], Tensor]  # (weight, its gradient), both float64 -> what a step adds


class Accumulator:
    """Sums over training steps of what a criterion needs of every weight, float64, on the weights' device.

    `sums` starts at zero and is for `pruning.prune(..., accumulated=sums)`. Call `add` between the backward
    pass, before gradients are clipped, and the step of the optimizer.
    """

    def __init__(
        self, net: nn.Module, criterion: str | Method, *, names: Collection[str] | None = None
    ) -> None:
        """`names` are those of the weights, all prunable ones by default.

        ValueError for a criterion that does not sum over steps, and for a name that the network lacks.
        """
        method = criteria.get(criterion)
        if not is_accumulated(method):
            known = ", ".join(known.name for known in criteria.iter_importable() if is_accumulated(known))
            raise ValueError(f"criterion {method.name!r} sums over no steps; those that do: {known}")
        parameters = dict(net.named_parameters())
        names = full_masks(net, None) if names is None else names
        if missing := [name for name in names if name not in parameters]:
            raise ValueError(f"the network has no parameter {missing[0]!r} to sum over")
        self._addend: Addend = method.traits["accumulates"]
        self._weights = {name: parameters[name] for name in names}
        self.sums: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Set all sums to zero."""
        self.sums = {
            name: torch.zeros_like(weight, dtype=torch.float64, requires_grad=False)
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def add(self) -> None:
        """Add this step's part of every weight that has a gradient."""
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self.sums[name] += self._addend(weight.detach().double(), weight.grad.double())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the sums on the CPU, contiguous."""
        return {
            name: total.cpu().clone(memory_format=torch.contiguous_format)
            for name, total in self.sums.items()
        }

    def load_state_dict(self, sums: Mapping[str, Tensor]) -> None:
        """Set the sums to those of a `state_dict`. ValueError for another network's."""
        for name, total in self.sums.items():
            if name not in sums or sums[name].shape != total.shape:
                raise ValueError(f"the sums are of another network: none of {name!r} fits")
            total.copy_(sums[name])


def is_accumulated(criterion: Method) -> bool:
    """Return whether a criterion sums over training steps, and so works while a network trains alone."""
    return criterion.traits.get("accumulates") is not None


def minus_weight_times_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return -w g: positive where the step of gradient descent moves the weight away from zero."""
    return -weight * gradient


@criteria.register(
    summary="how far training moved the weight away from zero",
    paper="Sanh et al., Movement Pruning, NeurIPS 2020",
    accumulates=minus_weight_times_gradient,
)
def movement(context: ScoringContext) -> Scores:
    """-sum over the training steps so far of w g, with g the gradient of the batch's loss at that step.

    The paper's score without its learning rate, which is the same for all weights. g is the gradient
    before clipping and without weight decay, of the masked network: a weight adds nothing once it is dead.
    For `when: during`; the paper's weights may come back where masks are chosen anew, and here they do not.
    """
    return context.require_accumulated("movement")
