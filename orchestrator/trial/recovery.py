"""Recoveries after a round of pruning: fine-tuning, rewinding, re-initialisation, refitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated

from torch import Tensor

from orchestrator.config import Train, TrialConfig
from orchestrator.training.lengths import Length, Position, epochs_of, position_of
from orchestrator.training.optimizers import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.stages import initial, train_more, weights_at
from orchestrator.trial.structure import channels_of
from pruning import interpolative
from pruning.channels import find_uncut_layers
from pruning.hyperparameters import Between
from pruning.masking import mask_weights
from pruning.registry import Registry
from pruning.schedules import rounds_of, schedules


@dataclass(frozen=True, eq=False)
class RoundMasks:
    """The states of a trial right after each round's pruning, without their weights: masks and their cost.

    `key` is that of the trial.
    """

    rounds: tuple[NetworkState, ...]
    key: str


def mask_source_config(config: TrialConfig) -> TrialConfig | None:
    """Return the trial whose masks a control prunes by; None for a trial that chooses its own.

    A control of one round has the dense network's masks: there is nothing to share but those.
    """
    name = recoveries.get(config.recover).traits.get("masks_from")
    rounds = rounds_of(schedules.get(config.prune.schedule))
    if name is None or config.when != "after" or rounds == 1:
        return None
    return replace(config, recover=str(name))


def masks_only(state: NetworkState) -> NetworkState:
    """Return the state without its weights: masks, and what they have cost."""
    return replace(state, weights={}, history=())


recoveries = Registry(
    "recovery",
    modules=("orchestrator.trial.sparse_training",),
    positional=("context", "state"),
    keywords=("round",),
)
Factor = Annotated[float, Between(0.0, 1000.0, open_low=True)]
Images = Annotated[int, Between(1, 1_000_000)]


def epochs_per_round(recover: str, train: Train) -> int:
    """Return the epochs that a recovery, in text form, trains after each round."""
    method = recoveries.get(recover)
    length = method.traits.get("length")
    return int(length(train, **method.options)) if length is not None else 0


def _finetune_epochs(train: Train, *, epochs: int | str, lr: float) -> int:
    return epochs_of(epochs, train)


def _rewind_epochs(train: Train, *, to: int | str) -> int:
    return train.epochs - position_of(to, train)


def _lr_rewind_epochs(train: Train, *, epochs: int | str) -> int:
    return min(epochs_of(epochs, train), train.epochs)


def _reinit_epochs(train: Train) -> int:
    return train.epochs


@recoveries.register(summary="nothing: the network as pruning left it", trains=False)
def none(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """Return the state as it is."""
    return state


@recoveries.register(
    summary="train on at the last learning rate",
    paper="Renda et al., ICLR 2020",
    length=_finetune_epochs,
)
def finetune(
    context: TrialContext, state: NetworkState, *, round: int, epochs: Length = "10%", lr: Factor = 1.0
) -> NetworkState:
    """Train the survivors on at a constant rate, `lr` times the recipe's at the start of its last epoch."""
    recipe = context.config.train
    last = max(recipe.epochs - 1, recipe.warmup_epochs)
    phase = TrainingPhase(epochs_of(epochs, recipe), start=last, constant_lr=True, lr_factor=lr)
    return train_more(context, state, phase, stage="finetune", round=round)


@recoveries.register(
    summary="weights back to those of an earlier epoch, then the rest of the training again",
    paper="Frankle & Carbin, ICLR 2019; Renda et al., ICLR 2020",
    length=_rewind_epochs,
    retrains=True,
)
def rewind(context: TrialContext, state: NetworkState, *, round: int, to: Position = 0) -> NetworkState:
    """Set survivors, biases and norms back to epoch `to` and train from there again: the lottery ticket.

    Epoch 0 is the initial draw. The learning rates are those of the dense training from there on.
    """
    start = position_of(to, context.config.train)
    earlier = _with_weights(state, weights_at(context, start))
    return train_more(context, earlier, _phase_from(context, start), stage="rewind", round=round)


@recoveries.register(
    summary="the weights stay, the learning rate goes back",
    paper="Renda et al., ICLR 2020",
    length=_lr_rewind_epochs,
)
def lr_rewind(
    context: TrialContext, state: NetworkState, *, round: int, epochs: Length = "100%"
) -> NetworkState:
    """Train the survivors through the last `epochs` of the learning-rate schedule once more."""
    start = context.config.train.epochs - _lr_rewind_epochs(context.config.train, epochs=epochs)
    return train_more(context, state, _phase_from(context, start), stage="lr_rewind", round=round)


@recoveries.register(
    summary="another initial draw under the same masks: the control",
    paper="Frankle & Carbin, ICLR 2019",
    length=_reinit_epochs,
    retrains=True,
    masks_from="rewind",
)
def reinit(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """Draw fresh initial weights for survivors, biases and norms, and train them as the dense network.

    The masks are those of the lottery ticket: the next round prunes what `rewind` has trained.
    """
    fresh = _with_weights(state, initial(context, draw="reinit", round=round).weights)
    return train_more(context, fresh, _phase_from(context, 0), stage="reinit", round=round)


@recoveries.register(
    summary="least squares on the next layer, from images without labels",
    paper="Chee et al., NeurIPS 2022",
    channels=True,
    trains=False,
)
def refit(context: TrialContext, state: NetworkState, *, round: int, images: Images = 500) -> NetworkState:
    """Correct the layers that read dead units, front to back, to give out what they did in the dense network.

    For units and channels, by whatever criterion; ValueError where several layers read one group.
    """
    net, dense = context.build_module(state).cpu(), context.build_module(context.trained_dense()).cpu()
    sample = context.data.train.images[:images].cpu()
    groups = channels_of(context.architecture, find_uncut_layers(context.meta_module(), state.masks))
    started = perf_counter()
    corrected = interpolative.refit(net, state.masks, groups, sample, dense=dense)
    seconds = state.train_seconds + perf_counter() - started
    return replace(state, weights={**state.weights, **corrected}, train_seconds=seconds, history=())


def _with_weights(state: NetworkState, weights: Mapping[str, Tensor]) -> NetworkState:
    """Return the state with other weights under its own masks; what it has cost stays."""
    return replace(state, weights=mask_weights(weights, state.masks))


def _phase_from(context: TrialContext, start: int) -> TrainingPhase:
    """Return the phase from epoch `start` to the end of the dense training."""
    return TrainingPhase(context.config.train.epochs - start, start=start)


def reuses_dense_weights(config: TrialConfig) -> bool:
    """Return whether a trial's weights are the dense network's, but for the dead ones."""
    return (config.recover, config.when, config.prepare) == ("none", "after", "none")
