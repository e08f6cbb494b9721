"""Hand out tasks in the order of their dependencies."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.execution.resources import WORKER_SECONDS
from orchestrator.trial.task import Task, TaskResult, dump_tasks

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

TASKS = "tasks"  # the one entry of what Tune calls a trial's config
STOPPED = "stopped_because"  # reported, with the reason, by a trial that ended early
DIED = "its worker died"
SUCCEEDED = "succeeded"  # reported as 1 or 0; `done` is Tune's own, and true at every end
OUTCOMES = "outcomes"  # of all tasks, reported as one text: Tune keeps statistics of every number it is told
METRICS, REASON = "metrics", "reason"  # of one task: its final metrics, or why it failed
GroupOf = Callable[[Task], Hashable]  # what tasks share that may be run as a stack; None for none


class TaskSource(Protocol):
    """Gives tasks that are not known when a sweep starts: those of a search."""

    reused: int  # trials that needed no run once they were asked for: the store had them

    @property
    def exhausted(self) -> bool:
        """Whether `next_tasks` will never give another one."""
        ...

    def next_tasks(self, room: int) -> Sequence[Task]:
        """Return tasks to run next, with the dense ones they need; none while it waits for results.

        `room` is how many may run at once.
        """
        ...

    def on_result(self, result: TaskResult) -> None:
        """Take in the end of a task, before the next call of `next_tasks`."""
        ...


@dataclass
class ConcurrencyRamp:
    """How many tasks may run at once: `first`, as there are workers, then `most`, once that pays.

    Another worker takes WORKER_SECONDS to start. It is not asked for before the others have run for as
    long, nor if the remaining tasks, at their rate, take less than twice that.
    """

    first: int
    most: int
    since: float | None = None

    def on_start(self) -> None:
        """Start the clock with the first task."""
        self.since = self.since or monotonic()

    def limit(self, *, done: int, left: int) -> int:
        """Return how many may run now, after `done` tasks of this sweep and with `left` to run."""
        if self.since is not None and self.first < self.most:
            seconds = monotonic() - self.since
            seconds_left = left * seconds / done if done else math.inf
            if seconds > WORKER_SECONDS and seconds_left > 2 * WORKER_SECONDS:
                self.first = self.most
        return self.first


class LiveTrialScheduler(FIFOScheduler):
    """A Tune scheduler that runs a task as soon as it is handed out.

    Tune's own looks for it among all trials, the ended ones too, at every event.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # ray's

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        trials = tune_controller.get_live_trials()  # type: ignore[no-untyped-call]  # ray's
        return next((trial for trial in trials if trial.status == Trial.PENDING), None)


class DagSearcher(Searcher):
    """Hand tasks to Tune: those without an unfinished parent first, children as parents finish.

    `on_result` is called at every end. A failed dense network fails its trials, with its reason; a control
    runs by itself if the trial whose masks it was to use has none for it. With a `source`, more tasks are
    asked for when a worker would be idle. `death_reason` words the end of a task without a result.

    Up to `most_stacked` ready tasks of one `group_of` go to a worker together, spread evenly over the free
    workers. Tasks of a stack whose worker died every time are run again, each by itself.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        on_result: Callable[[TaskResult], None],
        source: TaskSource | None = None,
        *,
        ramp: ConcurrencyRamp,
        death_reason: Callable[[Task], str] = lambda task: DIED,
        most_stacked: int = 1,
        group_of: GroupOf = lambda task: None,
    ) -> None:
        super().__init__(metric=SUCCEEDED, mode="max")
        self._death_reason = death_reason
        self._most_stacked, self._group_of = most_stacked, group_of
        self._ramp = ramp
        self._done = 0
        self._on_result = on_result
        self._source = source
        self._open: set[str] = set()  # keys of tasks that were added and have not ended
        self._failed: dict[str, str] = {}  # keys of tasks that failed -> why
        self._ready: deque[Task] = deque()
        self._waiting: dict[str, list[Task]] = {}  # key of a parent -> tasks that wait for it
        self._running: dict[str, tuple[Task, ...]] = {}  # Tune's id of a trial -> its tasks
        self._alone: set[str] = set()  # keys of tasks that are not to be stacked again
        self._groups: dict[str, Hashable] = {}  # by key of a task
        self._add(tasks)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:  # what Tune calls a config
        """Return the next task, None to be asked again, or FINISHED."""
        if not self._ready and self._source is not None:
            self._add(self._source.next_tasks(self._ramp.most))
        limit = self._ramp.limit(done=self._done, left=len(self._open))
        if self._ready and len(self._running) < limit:
            tasks = self._running[trial_id] = self._next_stack(limit - len(self._running))
            return {TASKS: dump_tasks(tasks)}
        is_exhausted = self._source is None or self._source.exhausted
        # A stack that dies comes back, task by task, and Tune asks no more once it was told of the end.
        may_return = any(len(tasks) > 1 for tasks in self._running.values())
        is_over = not self._ready and not self._waiting and is_exhausted and not may_return
        return cast(dict[str, Any], Searcher.FINISHED) if is_over else None

    def _next_stack(self, workers: int) -> tuple[Task, ...]:
        """Take the first ready task, with the share of its group that one of the free workers is to run."""
        first = self._ready.popleft()
        group = self._group(first)
        if group is None:
            return (first,)
        alike = [task for task in self._ready if self._group(task) == group]
        size = min(self._most_stacked, math.ceil((1 + len(alike)) / workers))
        stack = (first, *alike[: size - 1])
        keys = {task.key for task in stack}
        self._ready = deque(task for task in self._ready if task.key not in keys)
        return stack

    def _group(self, task: Task) -> Hashable:
        """Return what a task shares with those that it may be stacked with; None for none."""
        if self._most_stacked == 1 or task.key in self._alone:
            return None
        if task.key not in self._groups:  # every task is asked for with each stack that is made
            self._groups[task.key] = self._group_of(task)
        return self._groups[task.key]

    def _add(self, tasks: Sequence[Task]) -> None:
        """Add the tasks that are neither open nor failed: two trials may need one dense network."""
        new = [task for task in tasks if task.key not in self._open and task.key not in self._failed]
        self._open |= {task.key for task in new}
        for task in new:
            if (reason := self._failed.get(task.dense.key())) is not None:
                self._end(TaskResult(task, None, _dependency_failed(reason)))
            elif task.parent in self._open and task.parent is not None:
                self._waiting.setdefault(task.parent, []).append(task)
            else:
                self._ready.append(task)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Turn what Tune says of a trial's end into the results of its tasks."""
        tasks, outcomes = self._running.pop(trial_id, ()), {} if error else outcomes_of(result or {})
        if len(tasks) > 1 and not outcomes:
            self._alone |= {task.key for task in tasks}
            self._ready.extendleft(reversed(tasks))
            return
        for task in tasks:
            outcome = outcomes.get(task.key, {})
            if STOPPED in outcome:
                self._end(TaskResult(task, None, str(outcome[STOPPED]), stopped=True))
            elif METRICS in outcome:
                self._end(TaskResult(task, outcome[METRICS]))
            else:
                self._end(TaskResult(task, None, str(outcome.get(REASON) or self._death_reason(task))))

    def _end(self, result: TaskResult) -> None:
        # Children go first: Tune swallows what a callback raises, and would wait for them for ever.
        key = result.task.key
        children = self._waiting.pop(key, [])
        self._open.discard(key)
        self._groups.pop(key, None)
        self._done += 1
        if result.state == "complete":
            self._ready.extend(children)
        elif result.state == "failed":
            self._failed[key] = result.reason
        if self._source is not None:
            self._source.on_result(result)
        self._on_result(result)
        for child in children if result.state != "complete" else ():
            if result.task.dense.key() in self._failed:
                self._end(TaskResult(child, None, _dependency_failed(self._failed[child.dense.key()])))
            else:
                self._ready.append(child)

    def __getstate__(self) -> dict[str, Any]:  # Tune pickles its searcher
        """Leave the plan out: a sweep is resumed from the store, never from Tune's own files."""
        return {"_metric": self._metric, "_mode": self._mode}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, as for a pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, as for a pickle."""


def outcomes_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return key -> how a task ended, of the tasks of a trial that has reported it."""
    outcomes: dict[str, dict[str, Any]] = json.loads(result.get(OUTCOMES, "{}"))
    for outcome in outcomes.values():
        if METRICS in outcome:  # one copy of each name: there are sixty, in thousands of trials
            outcome[METRICS] = {sys.intern(name): value for name, value in outcome[METRICS].items()}
    return outcomes


def _dependency_failed(reason: str) -> str:
    return f"its dense network failed: {reason}"
