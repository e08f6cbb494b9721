"""Ask a running search for its next points."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import fsum

from orchestrator.config import EarlyStopping
from orchestrator.errors import AwayError, DiskFullError
from orchestrator.planning.equality import plain_key
from orchestrator.planning.plan import Plan, SearchPoint, grown
from orchestrator.planning.plan_file import PLAN
from orchestrator.planning.resume import endings, missing_points, plan_text
from orchestrator.planning.sampling import Seen, next_point
from orchestrator.system.signals import no_room, received, tell_no_room
from orchestrator.tracking import RunRow, Tracker
from orchestrator.trial.task import Ending, Outcome, Point


class Asking:
    """The source of a search's points; `plan` is what was asked for so far.

    `found` counts the trials that needed no run once they were asked for: the store had them.
    """

    def __init__(
        self,
        plan: Plan,
        tracker: Tracker,
        sweep: RunRow,
        *,
        retry_failed: bool,
        stop: EarlyStopping | None,
    ) -> None:
        self.plan = plan
        self.found = 0
        self._tracker = tracker
        self._sweep = sweep
        self._retry_failed = retry_failed
        self._stop = stop
        self._ended: dict[str, Ending] = {}

    def recall(self, points: Collection[Point]) -> None:
        """Take up how the trials asked for before have ended, all but the `points` that are to run."""
        left = {point.key for point in points}
        self._ended.update(endings(self.plan, self._tracker, stop=self._stop, open_keys=left))

    @property
    def over(self) -> bool:
        return self.plan.complete

    def more(self, room: int) -> Sequence[Point]:
        points: list[Point] = []
        while not points and not self.over and self._under_way() < room and not _ending():
            try:
                points = self._ask()
            except AwayError:
                break  # Tune asks again
            except DiskFullError as error:
                tell_no_room(f"{type(error).__name__}: {error}")
        return points

    def ended(self, outcome: Outcome) -> None:
        cut_off = _ending() and not outcome.metrics and not outcome.stopped
        if outcome.point.parent is not None and not cut_off:
            ending = Ending("stopped" if outcome.stopped else "failed", {})
            found = Ending("complete", outcome.metrics) if outcome.metrics else ending
            self._ended[outcome.point.key] = found

    def seen(self) -> list[Seen]:
        """Every point in its order, with what came of it over its seeds."""
        objectives = self.plan.space.search.objectives
        return [_seen(point, self._ended, list(objectives)) for point in self.plan.asked]

    def _under_way(self) -> int:
        return sum(any(key not in self._ended for key in point.keys) for point in self.plan.asked)

    def _ask(self) -> list[Point]:
        """One more point: its trials that are to be run, with their dense networks."""
        space, asked = self.plan.space, self.plan.asked
        taken = {plain_key(trial.config) for trial in self.plan.trials}
        draw = next_point(space, self.plan.numerics, number=len(asked), seen=self.seen(), taken=taken)
        longer = grown(self.plan, [draw])
        found = draw.expansion
        new = replace(longer, trials=found.trials if found else (), dense=found.dense if found else ())
        tracker, stop = self._tracker, self._stop
        with tracker.reaching():
            points, reused = missing_points(new, tracker, retry_failed=self._retry_failed, stop=stop)
            ended = endings(new, tracker, stop=stop, open_keys={point.key for point in points})
            tracker.rewrite(self._sweep, PLAN, plan_text(longer, stop=stop))
        self.plan, self.found = longer, self.found + reused
        self._ended.update(ended)
        return points


def _ending() -> bool:
    """Whether the sweep is to end before it is through: what fails now was cut off."""
    return bool(received() or no_room())


def _seen(point: SearchPoint, ended: Mapping[str, Ending], objectives: Sequence[str]) -> Seen:
    """A point over its seeds: the mean of each objective; stopped or failed if one of its trials is."""
    found = [ended[key] for key in point.keys if key in ended]
    states = {ending.state for ending in found}
    if len(found) < len(point.keys):
        return Seen(point.params, "running")
    if states == {"stopped"} or states == {"complete", "stopped"}:
        return Seen(point.params, "stopped")
    # A run of before an objective was measured has no value for it.
    if states != {"complete"} or any(name not in ending.metrics for ending in found for name in objectives):
        return Seen(point.params, "failed")
    means = (fsum(ending.metrics[name] for ending in found) / len(found) for name in objectives)
    return Seen(point.params, "complete", tuple(means))
