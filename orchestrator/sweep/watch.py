"""Hears from Tune of trials that start, and of workers that die."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from orchestrator.launching.point import Point
from orchestrator.launching.progress import SweepProgress
from orchestrator.launching.resources import Resources
from orchestrator.search import DIED, AtOnce
from orchestrator.sweep.listeners import check_loopback
from orchestrator.sweep.liveness import death

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class Watch(tune.Callback):
    """`deaths` counts, by a point's key, the workers that died with it and were replaced."""

    def __init__(self, progress: SweepProgress, at_once: AtOnce, resources: Resources) -> None:
        self.progress, self.at_once, self.retries = progress, at_once, resources.retries
        self.checks_listeners = resources.address is None  # those of a cluster are its owner's
        self.deaths: Counter[str] = Counter()

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:  # ray's own
        self.progress.tick()

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if self.checks_listeners:  # once more: now there is a worker
            check_loopback()
            self.checks_listeners = False
        self.at_once.begin()
        self.progress.started(_point(trial))

    def on_trial_recover(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if death():
            return  # and all workers with it
        point = _point(trial)
        self.deaths[point.key] += 1
        count = f"{self.deaths[point.key]} of {self.retries}"
        self.progress.say(f"{point.name}: its worker died; it is tried again ({count})")

    def reason(self, point: Point) -> str:
        """Why a point has ended whose last worker has died, too."""
        died = self.deaths[point.key] + 1
        return f"{DIED} {died} times" if died > 1 else DIED

    def __getstate__(self) -> dict[str, object]:  # Tune pickles what it is given
        """Nothing, as the searcher."""
        return {}


def _point(trial: Trial) -> Point:
    return Point.from_text(trial.config["point"])
