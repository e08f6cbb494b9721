"""Recoveries after a round of pruning: fine-tuning, rewinding, re-initialisation, refitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated

from torch import Tensor

from orchestrator.config import Train, TrialConfig, method_name, method_text
from orchestrator.training.lengths import Length, Position, epochs_of, position_of
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.stages import initial, train_more, weights_at
from orchestrator.trial.structure import channels_of
from orchestrator.trial.trained_network import single_weights_conflict
from pruning import interpolative_decomposition
from pruning.channels import find_uncut_layers
from pruning.hyperparameters import Between, Converter
from pruning.masking import mask_weights
from pruning.registry import Method, Registry
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
    source = mask_source(recoveries.get(config.recover))
    rounds = rounds_of(schedules.get(config.prune.schedule))
    if source is None or config.when != "after" or rounds == 1:
        return None
    return replace(config, recover=method_text(source.name, source.text_options(source.options)))


def mask_source(recovery: Method) -> Method | None:
    """Return the recovery whose trained network a control's next round prunes; None for one of its own.

    It trains on the network that the control does: masked, or cut.
    """
    name = recovery.traits.get("masks_from")
    if name is None:
        return None
    shared = {key: value for key, value in recovery.options.items() if key == "on"}
    return recoveries.get({"method": name, **shared})


def masks_only(state: NetworkState) -> NetworkState:
    """Return the state without its weights: masks, and what they have cost."""
    return replace(state, weights={}, history=())


recoveries = Registry(
    "recovery",
    modules=("orchestrator.trial.sparse_training",),
    positional=("context", "state"),
    keywords=("round",),
)
MASKED, CUT = "masked", "cut"


def parse_network(value: object) -> str:
    """Return which network a recovery trains: masked or cut. ValueError for anything else."""
    if value in (MASKED, CUT):
        return str(value)
    raise ValueError(f"{value!r:.80} is no network to train on; give {MASKED} or {CUT}")


On = Annotated[str, Converter(parse_network, f"{MASKED!r} or {CUT!r}")]
Factor = Annotated[float, Between(0.0, 1000.0, open_low=True)]
Images = Annotated[int, Between(1, 1_000_000)]


def epochs_per_round(recover: str, train: Train) -> int:
    """Return the epochs that a recovery, in text form, trains after each round."""
    method = recoveries.get(recover)
    length = method.traits.get("length")
    return int(length(train, **method.options)) if length is not None else 0


def trains_cut(recover: str) -> bool:
    """Whether a recovery, in text form, trains the network without its removed units."""
    return recoveries.get(recover).options.get("on") == CUT


def network_conflict(recover: str, granularity: str) -> str | None:
    """Return why a recovery cannot train the network that it is to train; None where it can."""
    if not trains_cut(recover) or method_name(granularity) in ("unit", "channel", "head"):
        return None
    return single_weights_conflict(recover, granularity)


def _finetune_epochs(train: Train, *, epochs: int | str, lr: float, on: str) -> int:
    return epochs_of(epochs, train)


def _rewind_epochs(train: Train, *, to: int | str, on: str) -> int:
    return train.epochs - position_of(to, train)


def _lr_rewind_epochs(train: Train, *, epochs: int | str, on: str = MASKED) -> int:
    return min(epochs_of(epochs, train), train.epochs)


def _reinit_epochs(train: Train, *, on: str) -> int:
    return train.epochs


@recoveries.register(summary="nothing: the network as pruning left it", trains=False)
def none(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """Return the state as it is."""
    return state


@recoveries.register(
    summary="train on at the last learning rate",
    paper="Renda et al., ICLR 2020",
    length=_finetune_epochs,
    added_later=("on",),
)
def finetune(
    context: TrialContext,
    state: NetworkState,
    *,
    round: int,
    epochs: Length = "10%",
    lr: Factor = 1.0,
    on: On = MASKED,
) -> NetworkState:
    """Train the survivors on at a constant rate, `lr` times the recipe's at the start of its last epoch.

    With `on='cut'` removed units, channels or heads are cut out while it trains, which is faster; weights of
    other bits come out.
    """
    recipe = context.config.train
    last = max(recipe.epochs - 1, recipe.warmup_epochs)
    phase = TrainingPhase(epochs_of(epochs, recipe), start=last, constant_lr=True, lr_factor=lr)
    return train_more(context, state, phase, stage="finetune", round=round, is_cut=on == CUT)


@recoveries.register(
    summary="weights back to those of an earlier epoch, then the rest of the training again",
    paper="Frankle & Carbin, ICLR 2019; Renda et al., ICLR 2020",
    length=_rewind_epochs,
    added_later=("on",),
    retrains=True,
)
def rewind(
    context: TrialContext, state: NetworkState, *, round: int, to: Position = 0, on: On = MASKED
) -> NetworkState:
    """Set survivors, biases and norms back to epoch `to` and train from there again: the lottery ticket.

    Epoch 0 is the initial draw. The learning rates are those of the dense training from there on; the
    optimizer starts anew. `on` as in `finetune`: the earlier weights are cut by the same groups.
    """
    start = position_of(to, context.config.train)
    earlier = _with_weights(state, weights_at(context, start))
    phase = _phase_from(context, start)
    return train_more(context, earlier, phase, stage="rewind", round=round, is_cut=on == CUT)


@recoveries.register(
    summary="the weights stay, the learning rate goes back",
    paper="Renda et al., ICLR 2020",
    length=_lr_rewind_epochs,
    added_later=("on",),
)
def lr_rewind(
    context: TrialContext, state: NetworkState, *, round: int, epochs: Length = "100%", on: On = MASKED
) -> NetworkState:
    """Train the survivors through the last `epochs` of the learning-rate schedule once more.

    `on` as in `finetune`.
    """
    start = context.config.train.epochs - _lr_rewind_epochs(context.config.train, epochs=epochs)
    phase = _phase_from(context, start)
    return train_more(context, state, phase, stage="lr_rewind", round=round, is_cut=on == CUT)


@recoveries.register(
    summary="another initial draw under the same masks: the control",
    paper="Frankle & Carbin, ICLR 2019",
    length=_reinit_epochs,
    added_later=("on",),
    retrains=True,
    masks_from="rewind",
)
def reinit(context: TrialContext, state: NetworkState, *, round: int, on: On = MASKED) -> NetworkState:
    """Draw fresh initial weights for survivors, biases and norms, and train them as the dense network.

    The masks are those of the lottery ticket: the next round prunes what `rewind`, with the same `on`, has
    trained. `on` as in `finetune`.
    """
    fresh = _with_weights(state, initial(context, draw="reinit", round=round).weights)
    phase = _phase_from(context, 0)
    return train_more(context, fresh, phase, stage="reinit", round=round, is_cut=on == CUT)


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
    corrected = interpolative_decomposition.refit(net, state.masks, groups, sample, dense=dense)
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
