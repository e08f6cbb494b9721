"""What follows a round of pruning: fine-tuning, rewinding, re-initialisation, refitting."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated

from torch import Tensor

from orchestrator.config import Train, TrialConfig
from orchestrator.training.optimizers import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext, channel_groups
from orchestrator.trial.stages import initial, train_more, weights_at
from pruning import decomposition
from pruning.masking import masked
from pruning.registry import Between, Form, Registry
from pruning.schedules import rounds_of, schedules
from pruning.structure import whole_layers


@dataclass(frozen=True, eq=False)
class RoundMasks:
    """The states of a walk right after each round's pruning, without their weights: masks, and their cost.

    `key` is that of the trial whose walk it was.
    """

    rounds: tuple[NetworkState, ...]
    key: str


def mask_source_config(config: TrialConfig) -> TrialConfig | None:
    """The trial along whose walk a control goes; None for a trial that goes its own way.

    A control of one round has the dense network's masks: there is nothing to share but those.
    """
    name = recoveries.get(config.recover).traits.get("trunk")
    rounds = rounds_of(schedules.get(config.prune.schedule))
    if name is None or config.when != "after" or rounds == 1:
        return None
    return replace(config, recover=str(name))


def masks_only(state: NetworkState) -> NetworkState:
    """What a control is given of a state: its masks, and what they have cost."""
    return replace(state, weights={}, history=())


recoveries = Registry("recovery")
Factor = Annotated[float, Between(0.0, 1000.0, above=True)]
Images = Annotated[int, Between(1, 1_000_000)]


def read_length(value: object) -> int | str:
    """Whole epochs, `1` or `1.0`, as an integer; a part of the dense training as `50%`. ValueError else."""
    if isinstance(value, str) and _percent(value) is not None:
        return f"{_percent(value):.10g}%"
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value >= 1
        and float(value).is_integer()
    ):
        return int(value)
    if (fraction := _fraction(value)) is not None:
        part = f"'{100 * fraction:.10g}%'"
        raise ValueError(f"{value!r:.80} is no length; write that part of the dense training as {part}")
    raise ValueError(
        f"{value!r:.80} is no length; give whole epochs, such as 1, or a part of the dense training, such as "
        "'10%'"
    )


def _fraction(value: object) -> float | None:
    """What was written as a number between 0 and 1, quoted or not."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:
        return None
    return number if 0 < number < 1 else None


def read_point(value: object) -> int | str:
    """A point of the dense training: 0, its start, or as `read_length`."""
    return 0 if value in (0, "0%") and not isinstance(value, bool) else read_length(value)


def _percent(text: str) -> float | None:
    """The number of a per cent in (0, 100]; None for another text."""
    with suppress(ValueError):
        number = float(text.strip().removesuffix("%"))
        return number if text.strip().endswith("%") and 0 < number <= 100 else None
    return None


Length = Annotated[int | str, Form(read_length, "whole epochs, or a part of the training such as '10%'")]
Position = Annotated[int | str, Form(read_point, "0, whole epochs, or a part of the training such as '10%'")]


def epochs_of(length: int | str, train: Train) -> int:
    """Whole epochs for a length: at least 1 for a part of the training. ValueError for anything else."""
    known = read_length(length)
    return known if isinstance(known, int) else max(1, round(float(known[:-1]) / 100 * train.epochs))


def position_of(point: int | str, train: Train) -> int:
    """Whole epochs for a point of the dense training: 0, or as `epochs_of`, but a part may round to 0.

    At least one epoch is left to train.
    """
    known = read_point(point)
    epochs = known if isinstance(known, int) else round(float(known[:-1]) / 100 * train.epochs)
    return min(epochs, train.epochs - 1)


def epochs_a_round(recover: str, train: Train) -> int:
    """Epochs that a recovery, in text form, trains after each round."""
    method = recoveries.get(recover)
    length = method.traits.get("length")
    return int(length(train, **method.options)) if length is not None else 0


def _of_finetune(train: Train, *, epochs: int | str, lr: float) -> int:
    return epochs_of(epochs, train)


def _of_rewind(train: Train, *, to: int | str) -> int:
    return train.epochs - position_of(to, train)


def _of_lr_rewind(train: Train, *, epochs: int | str) -> int:
    return min(epochs_of(epochs, train), train.epochs)


def _of_reinit(train: Train) -> int:
    return train.epochs


@recoveries.register(summary="nothing: the network as pruning left it", trains=False)
def none(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """The state as it is."""
    return state


@recoveries.register(
    summary="train on at the last learning rate",
    paper="Renda et al., ICLR 2020",
    length=_of_finetune,
)
def finetune(
    context: TrialContext, state: NetworkState, *, round: int, epochs: Length = "10%", lr: Factor = 1.0
) -> NetworkState:
    """Train the survivors on at a constant rate: `lr` times the recipe's at the start of its last epoch."""
    recipe = context.config.train
    last = max(recipe.epochs - 1, recipe.warmup_epochs)
    phase = TrainingPhase(epochs_of(epochs, recipe), start=last, constant_lr=True, lr_factor=lr)
    return train_more(context, state, phase, stage="finetune", round=round)


@recoveries.register(
    summary="weights back to those of an earlier epoch, then the rest of the training again",
    paper="Frankle & Carbin, ICLR 2019; Renda et al., ICLR 2020",
    length=_of_rewind,
    again=True,
)
def rewind(context: TrialContext, state: NetworkState, *, round: int, to: Position = 0) -> NetworkState:
    """The lottery ticket: survivors, biases and norms go back to epoch `to`, 0 being the initial draw.

    The training from there on is done again, learning rates included.
    """
    start = position_of(to, context.config.train)
    earlier = rewound(state, weights_at(context, start))
    return train_more(context, earlier, _rest(context, start), stage="rewind", round=round)


@recoveries.register(
    summary="the weights stay, the learning rate goes back",
    paper="Renda et al., ICLR 2020",
    length=_of_lr_rewind,
)
def lr_rewind(
    context: TrialContext, state: NetworkState, *, round: int, epochs: Length = "100%"
) -> NetworkState:
    """Train the survivors through the last `epochs` of the learning-rate schedule once more."""
    start = context.config.train.epochs - _of_lr_rewind(context.config.train, epochs=epochs)
    return train_more(context, state, _rest(context, start), stage="lr_rewind", round=round)


@recoveries.register(
    summary="another initial draw under the same masks: the control",
    paper="Frankle & Carbin, ICLR 2019",
    length=_of_reinit,
    again=True,
    trunk="rewind",
)
def reinit(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """Fresh initial weights for the survivors, biases and norms, and the whole training.

    The masks are those of the lottery ticket: the next round prunes what `rewind` has trained.
    """
    fresh = rewound(state, initial(context, draw="reinit", round=round).weights)
    return train_more(context, fresh, _rest(context, 0), stage="reinit", round=round)


@recoveries.register(
    summary="least squares on the next layer, from images without labels",
    paper="Chee et al., NeurIPS 2022",
    channels=True,
    trains=False,
)
def refit(context: TrialContext, state: NetworkState, *, round: int, images: Images = 500) -> NetworkState:
    """Correct what reads the dead units so that it is given what the dense network gave it, front to back.

    For units and channels, however they were chosen; ValueError where several layers read one group.
    """
    net, dense = context.build_module(state).cpu(), context.build_module(context.trained()).cpu()
    seen = context.data.train.images[:images].cpu()
    groups = channel_groups(context, whole_layers(context.meta_module(), state.masks))
    started = perf_counter()
    changed = decomposition.refit(net, state.masks, groups, seen, dense=dense)
    seconds = state.train_seconds + perf_counter() - started
    return replace(state, weights={**state.weights, **changed}, train_seconds=seconds, history=())


def rewound(state: NetworkState, weights: Mapping[str, Tensor]) -> NetworkState:
    """The state with other weights under its own masks; what it has cost stays."""
    return replace(state, weights=masked(weights, state.masks))


def _rest(context: TrialContext, start: int) -> TrainingPhase:
    return TrainingPhase(context.config.train.epochs - start, start=start)


def reuses_dense_weights(config: TrialConfig) -> bool:
    """Whether a trial's weights are its parent's, but for the dead ones."""
    return (config.recover, config.when, config.prepare) == ("none", "after", "none")
