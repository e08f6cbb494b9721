"""What follows a round of pruning.

A recovery takes the bench, the pruned state and the round, and gives a state with the same masks.
Lengths are whole epochs, or a part of the dense training: `"10%"`, or a fraction such as 0.1.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from orchestrator.config import Train
from orchestrator.stages import Bench, State, train_more
from orchestrator.training import Phase
from pruning.registry import Between, Registry

recoveries = Registry("recovery")
Length = int | float | str
Factor = Annotated[float, Between(0.0, 1000.0, above=True)]


def epochs_of(length: Length, train: Train) -> int:
    """Whole epochs for a length: at least 1 for a part of the training. ValueError for anything else."""
    if isinstance(length, str) and length.endswith("%"):
        with suppress(ValueError):
            length = float(length[:-1]) / 100
    if isinstance(length, int) and not isinstance(length, bool) and length >= 1:
        return length
    if isinstance(length, float) and 0 < length <= 1:
        return max(1, round(length * train.epochs))
    raise ValueError(
        f"epochs is {length!r}; give whole epochs, a fraction in (0, 1] or a percentage like '10%'"
    )


def _check_length(*, epochs: Length, **others: object) -> None:
    epochs_of(epochs, Train())


@recoveries.register(summary="nothing: the network as pruning left it")
def none(bench: Bench, state: State, *, round: int) -> State:
    """The state as it is."""
    return state


@recoveries.register(
    summary="train on at the last learning rate",
    paper="Renda et al., ICLR 2020, section 2",
    check=_check_length,
)
def finetune(bench: Bench, state: State, *, round: int, epochs: Length = "10%", lr: Factor = 1.0) -> State:
    """Train the survivors on at a constant rate: `lr` times the recipe's at the start of its last epoch."""
    recipe = bench.config.train
    phase = Phase(epochs_of(epochs, recipe), start=recipe.epochs - 1, hold=True, lr_factor=lr)
    return train_more(bench, state, phase, stage="finetune", round=round)
