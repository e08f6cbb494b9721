"""The task source of a running search, which samples a point whenever a worker is free."""

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
from orchestrator.space.schema import Search
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.trial.task import Task, TaskResult


class SearchSource:
    """Tasks of a search's points. `plan` has the points so far; `reused` counts trials that the store had."""

    def __init__(
        self,
        plan: Plan,
        tracker: Tracker,
        sweep: RunRecord,
        signals: SignalHandler,
        *,
        retry_failed: bool,
        stop: EarlyStopping | None,
    ) -> None:
        self.plan = plan
        self.reused = 0
        self._tracker = tracker
        self._sweep = sweep
        self._signals = signals
        self._retry_failed = retry_failed
        self._stop = stop
        self._ended: dict[str, TaskResult] = {}

    def load_finished(self, tasks: Collection[Task]) -> None:
        """Load how the trials of earlier points ended, all but the `tasks` that are to run."""
        open_keys = {task.key for task in tasks}
        self._ended.update(final_states(self.plan, self._tracker, stop=self._stop, open_keys=open_keys))

    @property
    def exhausted(self) -> bool:
        return self.plan.complete

    def next_tasks(self, room: int) -> Sequence[Task]:
        """Return the tasks of the next point; none while `room` points run, or while the sweep stops."""
        tasks: list[Task] = []
        while not tasks and not self.exhausted and self._running_points() < room:
            if self._signals.is_stopping:
                break
            try:
                tasks = self._sample_point()
            except StoreUnavailableError:
                break  # Tune calls again
            except DiskFullError as error:
                self._signals.request_stop(f"{type(error).__name__}: {error}")
        return tasks

    def on_result(self, result: TaskResult) -> None:
        """Record how a trial ended; one that was interrupted stays open."""
        is_interrupted = self._signals.is_stopping and result.state == "failed"
        if result.task.parent is not None and not is_interrupted:
            self._ended[result.task.key] = result

    def observed_points(self) -> list[ObservedPoint]:
        """Return every point in order, with its result over its seeds."""
        return [_observe(point, self._ended, self.plan.space.search) for point in self.plan.points]

    def _running_points(self) -> int:
        return sum(any(key not in self._ended for key in point.keys) for point in self.plan.points)

    def _sample_point(self) -> list[Task]:
        """Add a point to the plan; return its trials that have to run, with their dense networks."""
        plan, tracker, stop = self.plan, self._tracker, self._stop
        sample = next_point(
            plan.space,
            plan.numerics,
            number=len(plan.points),
            observed=self.observed_points(),
            planned_keys={plain_key(trial.config) for trial in plan.trials},
            gpu_bytes=plan.gpu_bytes,
        )
        longer, expansion = extended(plan, [sample]), sample.expansion
        trials, dense = (expansion.trials, expansion.dense) if expansion else ((), ())
        new = replace(longer, trials=trials, dense=dense)
        with tracker.translating_errors():
            tasks, reused = remaining_tasks(new, tracker, retry_failed=self._retry_failed, stop=stop)
            ended = final_states(new, tracker, stop=stop, open_keys={task.key for task in tasks})
            tracker.replace_text(self._sweep, PLAN, plan_text(longer, stop=stop))
        self.plan, self.reused = longer, self.reused + reused
        self._ended.update(ended)
        return tasks


def _observe(point: SearchPoint, ended: Mapping[str, TaskResult], search: Search) -> ObservedPoint:
    """Return a point with its means over its seeds, stopped or failed if a trial is."""
    results = [ended[key] for key in point.keys if key in ended]
    states = {result.state for result in results}
    if len(results) < len(point.keys):
        return ObservedPoint(point.params, "running")
    if states == {"stopped"} or states == {"complete", "stopped"}:
        return ObservedPoint(point.params, "stopped")
    # A run that was recorded before an objective existed has no value for it.
    metrics = [result.metrics or {} for result in results]
    names = {*search.objectives, *(name for limit in search.limits for name in limit.names)}
    if states != {"complete"} or any(name not in values for values in metrics for name in names):
        return ObservedPoint(point.params, "failed")
    means = {name: fsum(values[name] for values in metrics) / len(metrics) for name in names}
    objectives = tuple(means[name] for name in search.objectives)
    violations = tuple(limit.violation(means) for limit in search.limits)
    return ObservedPoint(point.params, "complete", objectives, violations)
