"""What may be added to a plain training: a loss, a regularizer, what changes the network on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from orchestrator.training.checkpoint_packing import Checkpoint
from orchestrator.training.losses import Loss, cross_entropy

# (optimizer, images of the batch) -> new masks, or None for those of before
OptimizerStep = Callable[[torch.optim.Optimizer, int], Mapping[str, Tensor] | None]


class Regularizer(Protocol):
    """Acts before and after every optimizer step; `progress` in [0, 1] is that of the phase."""

    def before_step(self, *, progress: float) -> None: ...

    def after_step(self, lr: float, *, progress: float) -> None: ...


class StatefulHook(Protocol):
    """What the hooks remember from epoch to epoch, beside the network."""

    def state_dict(self) -> Checkpoint:
        """Return what the next epochs depend on."""

    def load_state_dict(self, saved: Checkpoint) -> Mapping[str, Tensor]:
        """Load what `state_dict` returned, and return the masks in force."""


@dataclass(frozen=True, eq=False)
class TrainingHooks:
    """What may be added to a plain training.

    `after_epoch(epoch)` may change the network, and returns new masks or None for those of before;
    `optimizer_step`, in place of the optimizer's own, may do so at every step. `after_backward()` sees the
    gradient of every batch, whole and not yet clipped. What these remember is in `stateful`. A loss and a
    regularizer keep nothing from step to step.
    """

    loss: Loss = cross_entropy
    regularizer: Regularizer | None = None
    after_epoch: Callable[[int], Mapping[str, Tensor] | None] | None = None
    stateful: StatefulHook | None = None
    after_backward: Callable[[], None] | None = None
    optimizer_step: OptimizerStep | None = None

    @property
    def cannot_resume(self) -> bool:
        """Whether what the hooks remember would be lost: such a training starts anew."""
        in_use = (self.after_epoch, self.after_backward, self.optimizer_step)
        return self.stateful is None and any(hook is not None for hook in in_use)

    def state_dict(self) -> Checkpoint:
        """Return what the hooks remember; empty where they are not stateful."""
        return Checkpoint({}, {}) if self.stateful is None else self.stateful.state_dict()


NO_HOOKS = TrainingHooks()
