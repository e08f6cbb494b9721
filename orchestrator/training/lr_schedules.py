"""The learning rate at every position of a training: a warm-up, then a schedule that scales the peak rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from orchestrator.config import Train
from orchestrator.errors import SpaceError
from orchestrator.training.lengths import parse_length
from pruning.hyperparameters import Between, Converter
from pruning.registry import Method, Registry

lr_schedules = Registry("lr_schedule")
Factor = Annotated[float, Between(0.0, 1.0, open_low=True)]
Part = Annotated[float, Between(0.0, 1.0, open_low=True, open_high=True)]
Divisor = Annotated[float, Between(1.0, 1e12)]


@dataclass(frozen=True)
class TrainingPosition:
    """A position in a training of `epochs`, in epochs from its start; `step` is the length of a step."""

    epoch: float
    epochs: int
    step: float = 0.0

    @property
    def progress(self) -> float:
        """The part of the training that is done, in [0, 1]."""
        return min(self.epoch / self.epochs, 1.0)


@dataclass(frozen=True)
class TrainingPhase:
    """`epochs` to train, starting at position `start` (in epochs) of the recipe's learning-rate schedule.

    With `constant_lr` the position, and so the rate, stays where it starts. `lr_factor` scales the rate.
    """

    epochs: int
    start: float = 0.0
    constant_lr: bool = False
    lr_factor: float = 1.0


def parse_milestones(value: object) -> list[int | str]:
    """Return lengths in a list; one alone is a list of one. ValueError for an empty list, or what is none."""
    milestones = [parse_length(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if not milestones:
        raise ValueError("no milestone is given; schedule constant has none")
    return milestones


Milestones = Annotated[
    Sequence[int | str],
    Converter(parse_milestones, "a list of whole epochs, or of parts of the training such as '50%'"),
]


def get_lr_schedule(text: str) -> Method:
    """Return a learning-rate schedule by its text. SpaceError for an unknown one."""
    try:
        return _parsed(text)
    except ValueError as error:
        raise SpaceError(str(error)) from error


@lru_cache(maxsize=256)  # it is asked for at every step
def _parsed(text: str) -> Method:
    return lr_schedules.get(text)


def learning_rate(train: Train, position: float, *, step: float = 0.0) -> float:
    """Return the recipe's rate at `position` epochs: a linear warm-up, then its schedule.

    `step` is the length of a step in epochs: the warm-up counts it, so that the first step learns.
    SpaceError for an unknown schedule.
    """
    schedule = get_lr_schedule(train.schedule)
    warm = min(1.0, (position + step) / train.warmup_epochs) if train.warmup_epochs else 1.0
    return train.lr * warm * float(schedule(TrainingPosition(position, train.epochs, step)))


def schedule_conflict(train: Train) -> str | None:
    """Return why a recipe's schedule does not fit its other fields; None where it does."""
    method = get_lr_schedule(train.schedule)
    late = [m for m in method.options.get("milestones", ()) if isinstance(m, int) and m >= train.epochs]
    if late:
        return (
            f"the milestone {late[0]} of schedule {method.name} is not before the end at epoch {train.epochs}"
        )
    if method.traits.get("warms_up") and train.warmup_epochs:
        return f"schedule {method.name} warms up by itself: warmup_epochs must be 0"
    return None


@lr_schedules.register(summary="the peak rate at every step")
def constant(position: TrainingPosition) -> float:
    """Return 1."""
    return 1.0


@lr_schedules.register(summary="half a cosine down to 0", paper="Loshchilov & Hutter, ICLR 2017")
def cosine(position: TrainingPosition) -> float:
    """Return (1 + cos(pi progress)) / 2."""
    return 0.5 * (1.0 + math.cos(math.pi * position.progress))


@lr_schedules.register(summary="a straight line down to 0")
def linear(position: TrainingPosition) -> float:
    """Return 1 - progress."""
    return 1.0 - position.progress


@lr_schedules.register(summary="times a factor at every milestone", paper="He et al., CVPR 2016")
def step(
    position: TrainingPosition, *, milestones: Milestones = ("50%", "75%"), factor: Factor = 0.1
) -> float:
    """Return `factor` to the power of the milestones that are passed.

    Milestones are whole epochs, or parts of the training; with the defaults the rate is a tenth after half
    of the training, and a hundredth after three quarters.
    """
    passed = sum(
        position.progress >= float(milestone[:-1]) / 100
        if isinstance(milestone, str)
        else position.epoch >= milestone
        for milestone in milestones
    )
    return float(factor**passed)


@lr_schedules.register(
    summary="up to the peak and down to almost 0",
    paper="Smith & Topin, Super-Convergence, 2018",
    warms_up=True,
)
def one_cycle(
    position: TrainingPosition, *, warmup: Part = 0.3, start: Divisor = 25.0, end: Divisor = 1e4
) -> float:
    """Return the factor of torch's OneCycleLR: half a cosine up, half a cosine down.

    It begins at 1 / `start`, is 1 at the part `warmup` of the training, and ends with its last step at
    1 / (`start` `end`). The momentum stays as it is.
    """
    length = position.step / position.epochs  # of a step, as a part of the training
    peak, last = max(0.0, warmup - length), max(0.0, 1.0 - length)
    if position.progress <= peak and peak > 0:
        return _between(1 / start, 1.0, position.progress / peak)
    down = (position.progress - peak) / (last - peak) if last > peak else 0.0
    return _between(1.0, 1 / (start * end), min(down, 1.0))


def _between(first: float, last: float, part: float) -> float:
    """Return the value at a part of half a cosine from `first` to `last`."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * part))
