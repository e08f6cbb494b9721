"""Ask a running search for its next points."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import fsum

from orchestrator.config import EarlyStopping
from orchestrator.errors import DiskFullError, StoreUnavailableError
from orchestrator.planning.equality import plain_key
from orchestrator.planning.plan import Plan, SearchPoint, extended
from orchestrator.planning.plan_file import PLAN
from orchestrator.planning.resume import final_states, plan_text, remaining_tasks
from orchestrator.planning.sampling import ObservedPoint, next_point
from orchestrator.system.signals import disk_full_reason, received_signal, request_stop_disk_full
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.trial.task import Task, TaskResult


class SearchSource:
    """The source of a search's points; `plan` is what was asked for so far.

    `found` counts the trials that needed no run once they were asked for: the store had them.
    """

    def __init__(
        self,
        plan: Plan,
        tracker: Tracker,
        sweep: RunRecord,
        *,
        retry_failed: bool,
        stop: EarlyStopping | None,
    ) -> None:
        self.plan = plan
        self.reused = 0
        self._tracker = tracker
        self._sweep = sweep
        self._retry_failed = retry_failed
        self._stop = stop
        self._ended: dict[str, TaskResult] = {}

    def load_finished(self, points: Collection[Task]) -> None:
        """Take up how the trials asked for before have ended, all but the `points` that are to run."""
        left = {point.key for point in points}
        self._ended.update(final_states(self.plan, self._tracker, stop=self._stop, open_keys=left))

    @property
    def exhausted(self) -> bool:
        return self.plan.complete

    def next_tasks(self, room: int) -> Sequence[Task]:
        points: list[Task] = []
        while not points and not self.exhausted and self._under_way() < room and not _ending():
            try:
                points = self._ask()
            except StoreUnavailableError:
                break  # Tune asks again
            except DiskFullError as error:
                request_stop_disk_full(f"{type(error).__name__}: {error}")
        return points

    def on_result(self, result: TaskResult) -> None:
        was_cut_off = _ending() and result.state == "failed"
        if result.task.parent is not None and not was_cut_off:
            self._ended[result.task.key] = result

    def seen(self) -> list[ObservedPoint]:
        """Every point in its order, with what came of it over its seeds."""
        objectives = self.plan.space.search.objectives
        return [_seen(point, self._ended, list(objectives)) for point in self.plan.asked]

    def _under_way(self) -> int:
        return sum(any(key not in self._ended for key in point.keys) for point in self.plan.asked)

    def _ask(self) -> list[Task]:
        """One more point: its trials that are to be run, with their dense networks."""
        space, asked = self.plan.space, self.plan.asked
        taken = {plain_key(trial.config) for trial in self.plan.trials}
        draw = next_point(space, self.plan.numerics, number=len(asked), seen=self.seen(), taken=taken)
        longer = extended(self.plan, [draw])
        found = draw.expansion
        new = replace(longer, trials=found.trials if found else (), dense=found.dense if found else ())
        tracker, stop = self._tracker, self._stop
        with tracker.translating_errors():
            points, reused = remaining_tasks(new, tracker, retry_failed=self._retry_failed, stop=stop)
            ended = final_states(new, tracker, stop=stop, open_keys={point.key for point in points})
            tracker.replace_text(self._sweep, PLAN, plan_text(longer, stop=stop))
        self.plan, self.reused = longer, self.reused + reused
        self._ended.update(ended)
        return points


def _ending() -> bool:
    """Whether the sweep is to end before it is through: what fails now was cut off."""
    return bool(received_signal() or disk_full_reason())


def _seen(point: SearchPoint, ended: Mapping[str, TaskResult], objectives: Sequence[str]) -> ObservedPoint:
    """A point over its seeds: the mean of each objective; stopped or failed if one of its trials is."""
    found = [ended[key] for key in point.keys if key in ended]
    states = {ending.state for ending in found}
    if len(found) < len(point.keys):
        return ObservedPoint(point.params, "running")
    if states == {"stopped"} or states == {"complete", "stopped"}:
        return ObservedPoint(point.params, "stopped")
    # A run of before an objective was measured has no value for it.
    metrics = [ending.metrics or {} for ending in found]
    if states != {"complete"} or any(name not in values for values in metrics for name in objectives):
        return ObservedPoint(point.params, "failed")
    means = (fsum(values[name] for values in metrics) / len(metrics) for name in objectives)
    return ObservedPoint(point.params, "complete", tuple(means))
