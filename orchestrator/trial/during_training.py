"""Pruning at the ends of epochs, while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from orchestrator.training.checkpoint_packing import Checkpoint
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.metrics import train_flops_effective
from orchestrator.trial.stages import choose_masks, initial, train_more
from orchestrator.trial.structure import layers_protected
from pruning.accumulation import Accumulator, is_accumulated
from pruning.criteria import criteria
from pruning.masking import Group, Masks, apply_masks, full_masks, prunable_layers, sum_by_unit
from pruning.schedules import rounds_of, schedules

LAST_ROUND_AT = 0.75  # of the training; the epochs after it repair what pruning broke
SUMS = "accumulated/"  # before the names of sums in a checkpoint; no parameter's name begins so
SMALLEST_NORM = 1e-12  # in place of 0, which relative changes are divided by


def prune_during_training(context: TrialContext) -> NetworkState:
    """Train from the initial weights and prune on the way, by the trial's schedule."""
    start = initial(context)
    pruner = EpochPruner(context, start.masks)
    phase = TrainingPhase(context.config.train.epochs)
    make_hooks = partial(_make_hooks, pruner)
    state = train_more(context, start, phase, stage="during", round=0, make_hooks=make_hooks)
    flops = start.train_flops_effective + pruner.train_flops
    return replace(state, masks=pruner.masks, train_flops_effective=flops)


def _make_hooks(pruner: EpochPruner, net: nn.Module) -> TrainingHooks:
    pruner.start(net)  # again, where memory ran out and the training starts anew
    return TrainingHooks(
        loss=pruner.context.loss,
        after_epoch=partial(pruner.after_epoch, net),
        stateful=pruner,
        after_backward=None if pruner.accumulator is None else pruner.accumulator.add,
    )


class EpochPruner:
    """Prune at the end of an epoch; holds the masks so far and each layer's mean norm of the last epoch.

    For a criterion that sums over training steps it also holds the sums. `train_flops` are those of the
    epochs so far, each without what was dead in it.
    """

    def __init__(self, context: TrialContext, inherited: Masks) -> None:
        self.context, self.options = context, context.pruned_trial.prune
        self.schedule = schedules.get(self.options.schedule)
        # Of all layers from the start: one that never settles has a full mask, and counts in the sparsity.
        protect = layers_protected(context.architecture, self.options.protect)
        fresh = full_masks(context.build().cpu(), context.groups, protect=protect)
        self.initial_masks = fresh | inherited
        self.masks: Masks = self.initial_masks
        self.norms: dict[str, float] = {}
        self.round = 0
        self.train_flops = 0
        self.accumulator: Accumulator | None = None

    def start(self, net: nn.Module) -> None:
        """Set the state before the first epoch of `net`: nothing is pruned but what was inherited so."""
        self.masks, self.norms, self.round = self.initial_masks, {}, 0
        self.train_flops = 0
        criterion = criteria.get(self.options.criterion)
        if is_accumulated(criterion):
            weights = [name for name, mask in self.initial_masks.items() if mask.dim() > 1]
            self.accumulator = Accumulator(net, criterion, names=weights)

    def state_dict(self) -> Checkpoint:
        """Return what the next epochs depend on: masks, and sums under names of their own."""
        sums = {} if self.accumulator is None else self.accumulator.state_dict()
        tensors = dict(self.masks) | {SUMS + name: total for name, total in sums.items()}
        numbers = {"round": self.round, "norms": dict(self.norms), "train_flops": self.train_flops}
        return Checkpoint(tensors, numbers)

    def load_state_dict(self, saved: Checkpoint) -> Masks:
        """Load what `state_dict` returned, and return the masks so far."""
        sums = {name.removeprefix(SUMS): t for name, t in saved.tensors.items() if name.startswith(SUMS)}
        self.masks = {name: t for name, t in saved.tensors.items() if not name.startswith(SUMS)}
        self.norms, self.round = dict(saved.metadata["norms"]), saved.metadata["round"]
        self.train_flops = saved.metadata["train_flops"]
        if self.accumulator is not None:
            self.accumulator.load_state_dict(sums)
        return self.masks

    def after_epoch(self, net: nn.Module, epoch: int) -> Mapping[str, Tensor] | None:
        """Prune in place for every round that is due at this epoch's end; return the masks if any was."""
        self.train_flops += self._epoch_flops()
        norms = self._prunable(_mean_norms(net, self.context.groups))
        unsettled = self._unsettled(norms)
        due = self._rounds_due(epoch)
        # Where all layers wait the round of this epoch is left out, not made up for later.
        done, self.round = self.round, due
        if len(unsettled) == len(norms):
            return None
        for round in range(done + 1, due + 1):
            sums = None if self.accumulator is None else self.accumulator.sums
            self.masks = choose_masks(
                self.context, net, self.masks, round=round, protect=unsettled, accumulated=sums
            )
            apply_masks(net, self.masks)
        return self.masks if due else None

    def _epoch_flops(self) -> int:
        """Return the training FLOPs of one epoch under the masks so far, without their dead weights."""
        images, has_teacher = len(self.context.data.train), self.context.has_teacher
        return train_flops_effective(self.context.cost, self.masks, images, has_teacher=has_teacher)

    def _prunable(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Leave out the protected layers; groups hold none."""
        protect = self.options.protect if self.context.groups is None else ()
        protected = layers_protected(self.context.architecture, protect)
        return {name: norm for name, norm in norms.items() if name not in protected}

    def _rounds_due(self, epoch: int) -> int:
        """Return the rounds due by `epoch`: one each for a schedule that waits for layers, else spread."""
        if "tolerance" in self.schedule.options:
            return epoch
        rounds, epochs = rounds_of(self.schedule), self.context.config.train.epochs
        # The small number makes up for quotients that come out just below a whole number.
        return min(rounds, int(rounds * epoch / max(1.0, LAST_ROUND_AT * epochs) + 1e-9))

    def _unsettled(self, norms: Mapping[str, float]) -> tuple[str, ...]:
        """Return layers whose mean unit norm still changes by `tolerance` or more, relative, per epoch."""
        if "tolerance" not in self.schedule.options:
            return ()
        unsettled = []
        for name, norm in norms.items():
            before = self.norms.get(name)
            change = abs(norm - before) / max(before, SMALLEST_NORM) if before is not None else float("inf")
            if change >= self.schedule.options["tolerance"]:
                unsettled.append(name)
            self.norms[name] = norm
        return tuple(unsettled)


def _mean_norms(net: nn.Module, groups: Sequence[Group] | None) -> dict[str, float]:
    """Return the mean 2-norm of the units of each group, or of the rows of each layer, by its name."""
    layers = prunable_layers(net)
    if groups is None:
        return {
            name: float(layer.weight.detach().flatten(1).norm(dim=1).mean()) for name, layer in layers.items()
        }
    squares = {
        f"{name}.weight": layer.weight.detach().cpu().double().square() for name, layer in layers.items()
    }
    return {group.name: float(sum_by_unit(group, squares).sqrt().mean()) for group in groups}
