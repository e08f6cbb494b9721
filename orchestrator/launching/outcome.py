"""How the points of a sweep ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.config import TrialConfig
from orchestrator.launching.point import Point


@dataclass(frozen=True)
class Outcome:
    """How one point ended: its final metrics, or None and why it failed or was stopped."""

    point: Point
    metrics: Mapping[str, float] | None
    reason: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class Ending:
    """How a trial ended, now or before this sweep began; `metrics` are those of a complete one."""

    state: Literal["complete", "stopped", "failed"]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Past:
    """A trial that ended before this sweep began: what its rounds reported, and None if it was stopped."""

    config: TrialConfig
    rounds: tuple[Mapping[str, float], ...]
    val_accuracy: float | None


@dataclass(frozen=True)
class Ended:
    """How all points ended.

    `signal` is the one that interrupted the sweep, or 0; `no_room` what a worker said whose disk was full.
    """

    outcomes: tuple[Outcome, ...]
    signal: int = 0
    no_room: str = ""

    @property
    def failures(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.metrics is None and not o.stopped]

    @property
    def stopped(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.stopped]
