"""The exponential moving average of a network's weights, which takes the place of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator.training.masked_step import Masker


class WeightAverage:
    """An average over the steps: after the first the weights, then decay average + (1 - decay) weights.

    Statistics of norms are averaged as weights are, counters are copied. A weight that is dead is zero in
    the average too, and what regrows starts at zero in both.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        saved, tensors = net.state_dict().keys(), dict(net.named_parameters()) | dict(net.named_buffers())
        self._weights = {name: tensor.detach() for name, tensor in tensors.items() if name in saved}
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, new_masks: Mapping[str, Tensor] | None = None) -> None:
        """Add the weights after a step; `new_masks` are those that this step has changed."""
        if not self._average:
            self._average = {name: tensor.clone() for name, tensor in self._weights.items()}
            return
        names = [name for name, tensor in self._weights.items() if tensor.is_floating_point()]
        averages, weights = [self._average[n] for n in names], [self._weights[n] for n in names]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for name in self._weights.keys() - set(names):
            self._average[name].copy_(self._weights[name])
        if new_masks is not None:
            self.mask(new_masks)

    def mask(self, masks: Mapping[str, Tensor]) -> None:
        """Set what the masks prune to zero; later updates leave it so."""
        if self._average:
            Masker(self._average, masks)()

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Within the block the network has the average, which the block may change."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def replace_weights(self) -> None:
        """Give the network the average for good."""
        for name, average in self._average.items():
            self._weights[name].copy_(average)

    @torch.no_grad()
    def _swap(self) -> None:
        # By value: masks and optimizers hold views of the network's own memory.
        for name, average in self._average.items():
            weights = self._weights[name].clone()
            self._weights[name].copy_(average)
            average.copy_(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy on the CPU, contiguous; empty before the first step."""
        return {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self._average.items()
        }

    def load_state_dict(self, average: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._average = {
            name: torch.empty_like(self._weights[name]).copy_(tensor) for name, tensor in average.items()
        }
