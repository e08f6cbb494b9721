"""What may be added to a plain training: a loss, a regularizer, something to do after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from orchestrator.walk.checkpoint import Saved

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, images, labels) -> the sum over the batch


class Regularizer(Protocol):
    """What a regularizer does around every optimizer step; `progress` in [0, 1] is of the phase."""

    def before_step(self, *, progress: float) -> None: ...

    def after_step(self, lr: float, *, progress: float) -> None: ...


def cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p(label), in nats."""
    return functional.cross_entropy(logits, labels, reduction="sum")


class Memory(Protocol):
    """What `after_epoch` knows from epoch to epoch, beside the network."""

    def saved(self) -> Saved: ...

    def restore(self, saved: Saved) -> Mapping[str, Tensor]:
        """Know it again; the masks in force come back."""


@dataclass(frozen=True, eq=False)
class Extras:
    """What may be added to a plain training.

    `after_epoch(epoch)` may change the network and gives new masks, or None for those of before; what
    it remembers is in `memory`. A loss and a regularizer keep nothing from step to step.
    """

    loss: Loss = cross_entropy
    regularizer: Regularizer | None = None
    after_epoch: Callable[[int], Mapping[str, Tensor] | None] | None = None
    memory: Memory | None = None

    @property
    def forgetful(self) -> bool:
        """Whether what `after_epoch` knows would be lost: such a training cannot be carried on."""
        return self.after_epoch is not None and self.memory is None

    def remembered(self) -> Saved:
        return Saved({}, {}) if self.memory is None else self.memory.saved()


PLAIN = Extras()
