"""Rounds that several trials share: a control is given the masks of the walk that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.config import TrialConfig
from orchestrator.walk.bench import State
from orchestrator.walk.recovery import recoveries
from pruning.schedules import rounds_of, schedules


@dataclass(frozen=True, eq=False)
class Trunk:
    """The states of a walk right after each round's pruning, without their weights: masks, and their cost.

    `key` is that of the trial whose walk it was.
    """

    rounds: tuple[State, ...]
    key: str


def walked_along(config: TrialConfig) -> TrialConfig | None:
    """The trial along whose walk a control goes; None for a trial that goes its own way.

    A control of one round has the dense network's masks: there is nothing to share but those.
    """
    name = recoveries.get(config.recover).traits.get("trunk")
    rounds = rounds_of(schedules.get(config.prune.schedule))
    if name is None or config.when != "after" or rounds == 1:
        return None
    return replace(config, recover=str(name))


def bare(state: State) -> State:
    """What a control is given of a state: its masks, and what they have cost."""
    return replace(state, weights={}, history=())
