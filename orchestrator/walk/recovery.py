"""What follows a round of pruning.

A recovery takes the bench, the pruned state and the round, and gives a state with the same masks.
Lengths are whole epochs, or a part of the dense training: `"10%"`, or a fraction such as 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Annotated

from torch import Tensor

from orchestrator.config import Train
from orchestrator.stages import initial, train_more, weights_at
from orchestrator.walk.bench import Bench, State, channel_groups, seed_for
from orchestrator.walk.draws import own_draws
from orchestrator.walk.recipe import Phase
from pruning import decomposition
from pruning.registry import Between, Registry

recoveries = Registry("recovery")
Length = int | float | str
Factor = Annotated[float, Between(0.0, 1000.0, above=True)]
Images = Annotated[int, Between(1, 1_000_000)]


def epochs_of(length: Length, train: Train) -> int:
    """Whole epochs for a length: at least 1 for a part of the training. ValueError for anything else."""
    given = length
    if isinstance(length, str) and length.endswith("%"):
        with suppress(ValueError):
            length = float(length[:-1]) / 100
    if isinstance(length, int) and not isinstance(length, bool) and length >= 1:
        return length
    if isinstance(length, float) and 0 < length <= 1:
        return max(1, round(length * train.epochs))
    raise ValueError(
        f"epochs is {given!r}; give whole epochs, a fraction in (0, 1] or a percentage like '10%'"
    )


def position_of(point: Length, train: Train) -> int:
    """Whole epochs for a point of the dense training: 0, or as `epochs_of`, but a part may round to 0.

    At least one epoch is left to train.
    """
    if point == 0 and not isinstance(point, bool):
        return 0
    epochs = epochs_of(point, train)
    if isinstance(point, (str, float)):
        epochs = round(
            (float(point.removesuffix("%")) / 100 if isinstance(point, str) else point) * train.epochs
        )
    return min(epochs, train.epochs - 1)


def check_length(*, epochs: Length, **others: object) -> None:
    epochs_of(epochs, Train())


def check_point(*, to: Length) -> None:
    position_of(to, Train())


def epochs_a_round(recover: str, train: Train) -> int:
    """Epochs that a recovery, in text form, trains after each round."""
    method = recoveries.get(recover)
    length = method.traits.get("length")
    return int(length(train, **method.options)) if length is not None else 0


def _of_finetune(train: Train, *, epochs: Length, lr: float) -> int:
    return epochs_of(epochs, train)


def _of_rewind(train: Train, *, to: Length) -> int:
    return train.epochs - position_of(to, train)


def _of_lr_rewind(train: Train, *, epochs: Length) -> int:
    return min(epochs_of(epochs, train), train.epochs)


def _of_reinit(train: Train) -> int:
    return train.epochs


@recoveries.register(summary="nothing: the network as pruning left it")
def none(bench: Bench, state: State, *, round: int) -> State:
    """The state as it is."""
    return state


@recoveries.register(
    summary="train on at the last learning rate",
    paper="Renda et al., ICLR 2020",
    check=check_length,
    length=_of_finetune,
)
def finetune(bench: Bench, state: State, *, round: int, epochs: Length = "10%", lr: Factor = 1.0) -> State:
    """Train the survivors on at a constant rate: `lr` times the recipe's at the start of its last epoch."""
    recipe = bench.config.train
    last = max(recipe.epochs - 1, recipe.warmup_epochs)
    phase = Phase(epochs_of(epochs, recipe), start=last, hold=True, lr_factor=lr)
    return train_more(bench, state, phase, stage="finetune", round=round)


@recoveries.register(
    summary="weights back to those of an earlier epoch, then the rest of the training again",
    paper="Frankle & Carbin, ICLR 2019; Renda et al., ICLR 2020",
    check=check_point,
    length=_of_rewind,
)
def rewind(bench: Bench, state: State, *, round: int, to: Length = 0) -> State:
    """The lottery ticket: survivors, biases and norms go back to epoch `to`, 0 being the initial draw.

    The training from there on is done again, learning rates included.
    """
    start = position_of(to, bench.config.train)
    earlier = rewound(state, weights_at(bench, start))
    return train_more(bench, earlier, _rest(bench, start), stage="rewind", round=round)


@recoveries.register(
    summary="the weights stay, the learning rate goes back",
    paper="Renda et al., ICLR 2020",
    check=check_length,
    length=_of_lr_rewind,
)
def lr_rewind(bench: Bench, state: State, *, round: int, epochs: Length = "100%") -> State:
    """Train the survivors through the last `epochs` of the learning-rate schedule once more."""
    start = bench.config.train.epochs - _of_lr_rewind(bench.config.train, epochs=epochs)
    return train_more(bench, state, _rest(bench, start), stage="lr_rewind", round=round)


@recoveries.register(
    summary="another initial draw under the same masks: the control",
    paper="Frankle & Carbin, ICLR 2019",
    length=_of_reinit,
    trunk="rewind",
)
def reinit(bench: Bench, state: State, *, round: int) -> State:
    """Fresh initial weights for the survivors, biases and norms, and the whole training.

    The masks are those of the lottery ticket: the next round prunes what `rewind` has trained.
    """
    fresh = rewound(state, initial(bench, draw="reinit", round=round).weights)
    return train_more(bench, fresh, _rest(bench, 0), stage="reinit", round=round)


@recoveries.register(
    summary="least squares on the next layer, from images without labels",
    paper="Chee et al., NeurIPS 2022",
)
def refit(bench: Bench, state: State, *, round: int, images: Images = 500) -> State:
    """Correct what reads the dead units so that it is given what the dense network gave it, front to back.

    For units and channels, however they were chosen; ValueError where several layers read one group.
    """
    net, dense = bench.restore(state).cpu(), bench.restore(bench.trained()).cpu()
    seen, groups = bench.data.train.images[:images].cpu(), channel_groups(bench)
    started = perf_counter()
    with own_draws(seed_for(bench.config.seed, "refit", round), seen.device):
        changed = decomposition.refit(net, state.masks, groups, seen, dense=dense)
    seconds = state.train_seconds + perf_counter() - started
    return replace(state, weights={**state.weights, **changed}, train_seconds=seconds, history=())


def rewound(state: State, weights: Mapping[str, Tensor]) -> State:
    """The state with other weights under its own masks; what it has cost stays."""
    masked = {
        name: value * state.masks[name] if name in state.masks else value for name, value in weights.items()
    }
    return replace(state, weights=masked)


def _rest(bench: Bench, start: int) -> Phase:
    return Phase(bench.config.train.epochs - start, start=start)
