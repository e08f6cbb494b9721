"""Pruning at the ends of epochs, while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from orchestrator.config import TrialConfig
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.loop import TrainingHooks
from orchestrator.training.optimizers import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.stages import choose_masks, initial, train_more
from orchestrator.trial.structure import layers_protected
from pruning.masking import Group, Masks, apply_masks, full_masks, gather, prunable_layers
from pruning.schedules import rounds_of, schedules

LAST_ROUND_AT = 0.75  # of the training; what is left repairs
SMALLEST = 1e-12


def prune_during_training(
    context: TrialContext, config: TrialConfig, groups: Sequence[Group] | None
) -> NetworkState:
    """Train from the initial weights and prune on the way, by the schedule of the configuration."""
    start = initial(context)
    pruner = EpochPruner(context, config, groups, start.masks)
    hooks = partial(_extras, pruner)
    phase = TrainingPhase(context.config.train.epochs)
    state = train_more(context, start, phase, stage="during", round=0, hooks=hooks)
    return replace(state, masks=pruner.masks)


def _extras(pruner: EpochPruner, net: nn.Module) -> TrainingHooks:
    pruner.start()  # again, where memory ran out and the training starts anew
    after_epoch = partial(pruner.after_epoch, net)
    return TrainingHooks(loss=pruner.context.loss, after_epoch=after_epoch, stateful=pruner)


class EpochPruner:
    """The masks so far, and the mean norms that tell whether a layer has settled."""

    def __init__(
        self, context: TrialContext, config: TrialConfig, groups: Sequence[Group] | None, inherited: Masks
    ) -> None:
        self.context, self.config, self.groups = context, config, groups
        self.schedule = schedules.get(config.prune.schedule)
        # Of all layers from the start: one that never settles is whole, and counts in the sparsity.
        protect = layers_protected(context.built, config.prune.protect)
        self.whole = full_masks(context.build().cpu(), groups, protect=protect) | inherited
        self.start()

    def start(self) -> None:
        """Nothing is pruned but what was inherited so, and nothing known, as before the first epoch."""
        self.masks: Masks = self.whole
        self.norms: dict[str, float] = {}
        self.round = 0

    def state_dict(self) -> Checkpoint:
        """What the next epochs depend on."""
        return Checkpoint(dict(self.masks), {"round": self.round, "norms": dict(self.norms)})

    def load_state_dict(self, saved: Checkpoint) -> Masks:
        """Stand where `saved` was read; the masks so far."""
        self.masks, self.norms = dict(saved.tensors), dict(saved.metadata["norms"])
        self.round = saved.metadata["round"]
        return self.masks

    def after_epoch(self, net: nn.Module, epoch: int) -> Mapping[str, Tensor] | None:
        """Prune in place for every round that is due at this epoch's end; the masks if any was."""
        norms = self._prunable(_mean_norms(net, self.groups))
        waiting = self._unsettled(norms)
        due = self._rounds_due(epoch)
        done, self.round = self.round, due  # an epoch that was waited through is not made up for
        if len(waiting) == len(norms):
            return None
        for round in range(done + 1, due + 1):
            self.masks = choose_masks(
                self.context, self.config, net, self.masks, self.groups, round=round, protect=waiting
            )
            apply_masks(net, self.masks)
        return self.masks if due else None

    def _prunable(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Without protected layers; groups hold none."""
        protect = self.config.prune.protect if self.groups is None else ()
        kept = layers_protected(self.context.built, protect)
        return {name: norm for name, norm in norms.items() if name not in kept}

    def _rounds_due(self, epoch: int) -> int:
        """A schedule that waits for layers looks at every epoch; others spread their rounds."""
        if "tolerance" in self.schedule.options:
            return epoch
        rounds, epochs = rounds_of(self.schedule), self.context.config.train.epochs
        return min(rounds, int(rounds * epoch / max(1.0, LAST_ROUND_AT * epochs) + 1e-9))

    def _unsettled(self, norms: Mapping[str, float]) -> tuple[str, ...]:
        """Layers whose mean unit norm still changes by `tolerance` or more, relative, per epoch."""
        if "tolerance" not in self.schedule.options:
            return ()
        moving = []
        for name, norm in norms.items():
            before = self.norms.get(name)
            change = abs(norm - before) / max(before, SMALLEST) if before is not None else float("inf")
            if change >= self.schedule.options["tolerance"]:
                moving.append(name)
            self.norms[name] = norm
        return tuple(moving)


def _mean_norms(net: nn.Module, groups: Sequence[Group] | None) -> dict[str, float]:
    """Mean 2-norm of the units of each group, or of the rows of each layer, by its name."""
    layers = prunable_layers(net)
    if groups is None:
        return {
            name: float(layer.weight.detach().flatten(1).norm(dim=1).mean()) for name, layer in layers.items()
        }
    squares = {
        f"{name}.weight": layer.weight.detach().cpu().double().square() for name, layer in layers.items()
    }
    return {group.name: float(gather(group, squares).sqrt().mean()) for group in groups}
