"""Hand out tasks in the order of their dependencies."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.execution.options import WORKER_SECONDS
from orchestrator.trial.task import Task, TaskResult

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

STOPPED = "stopped_because"  # reported, with the reason, by a trial that ended early
DIED = "its worker died"
SUCCEEDED = "succeeded"  # reported as 1 or 0; `done` is Tune's own, and true at every end
METRICS = "metrics"  # reported as one text: Tune keeps a dozen statistics of every number that it is told


class TaskSource(Protocol):
    """Where points come from that nobody knows at the start."""

    reused: int  # trials that needed no run once they were asked for: the store had them

    @property
    def exhausted(self) -> bool:
        """Whether `more` will never give another one."""
        ...

    def next_tasks(self, room: int) -> Sequence[Task]:
        """Points to run next, with the dense ones that the store lacks; none where it waits for results.

        `room` is how many may be under way at once.
        """
        ...

    def ended(self, outcome: TaskResult) -> None:
        """Hears of every end, before the next `more`."""
        ...


@dataclass
class ConcurrencyRamp:
    """How many points may run at once: as many as there are workers, `first`; the `most` once that pays.

    Another worker takes WORKER_SECONDS to start. It is not asked for before the others have run for as
    long, nor where the rest, at their pace, takes less than twice that.
    """

    first: int
    most: int
    since: float | None = None

    def begin(self) -> None:
        """A point runs."""
        self.since = self.since or monotonic()

    def now(self, *, done: int, left: int) -> int:
        """After so many points are `done` of this sweep, with so many `left`."""
        if self.since is not None and self.first < self.most:
            seconds = monotonic() - self.since
            rest = left * seconds / done if done else math.inf
            if seconds > WORKER_SECONDS and rest > 2 * WORKER_SECONDS:
                self.first = self.most
        return self.first


class LiveTrialScheduler(FIFOScheduler):
    """Tune's scheduler: a point runs once it is handed out.

    Tune's own looks through all trials for it, those that have ended, too, whatever happens.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # ray's

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        living = tune_controller.get_live_trials()  # type: ignore[no-untyped-call]  # ray's
        return next((trial for trial in living if trial.status == Trial.PENDING), None)


class DagSearcher(Searcher):
    """Hands points to Tune: those without an unfinished parent first, children as parents finish.

    `listen` hears of every end. A failed dense network fails its trials, with its reason; a control goes
    alone where the trial that it was to walk along has no rounds for it. With a `source`,
    more are asked for where a worker would be idle. `died` words the end of one without a result.
    """

    def __init__(
        self,
        points: Sequence[Task],
        listen: Callable[[TaskResult], None],
        source: TaskSource | None = None,
        *,
        at_once: ConcurrencyRamp,
        died: Callable[[Task], str] = lambda point: DIED,
    ) -> None:
        super().__init__(metric=SUCCEEDED, mode="max")
        self._died = died
        self._at_once = at_once
        self._done = 0
        self._listen = listen
        self._source = source
        self._open: set[str] = set()  # keys of points that were added and have not ended
        self._lost: dict[str, str] = {}  # keys of points that failed, and why
        self._ready: deque[Task] = deque()
        self._waiting: dict[str, list[Task]] = {}
        self._running: dict[str, Task] = {}
        self._add(points)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:  # what Tune calls a config
        if not self._ready and self._source is not None:
            self._add(self._source.next_tasks(self._at_once.most))
        room = self._at_once.now(done=self._done, left=len(self._open))
        if self._ready and len(self._running) < room:
            point = self._running[trial_id] = self._ready.popleft()
            return {"point": point.to_text()}
        more = self._ready or self._waiting or (self._source is not None and not self._source.exhausted)
        return None if more else cast(dict[str, Any], Searcher.FINISHED)

    def _add(self, points: Sequence[Task]) -> None:
        """What is under way already, or has failed, is no new point: two may need one dense network."""
        fresh = [point for point in points if point.key not in self._open and point.key not in self._lost]
        self._open |= {point.key for point in fresh}
        for point in fresh:
            if (reason := self._lost.get(point.dense.key())) is not None:
                self._end(TaskResult(point, None, _dependency_failed(reason)))
            elif point.parent in self._open and point.parent is not None:
                self._waiting.setdefault(point.parent, []).append(point)
            else:
                self._ready.append(point)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        point = self._running.pop(trial_id, None)
        if point is None:
            return
        result = result or {}
        if STOPPED in result and not error:
            self._end(TaskResult(point, None, str(result[STOPPED]), stopped=True))
            return
        failed = error or not result.get(SUCCEEDED)
        reason = str(result.get("reason") or self._died(point)) if failed else ""
        self._end(TaskResult(point, None if failed else metrics_of(result), reason))

    def _end(self, outcome: TaskResult) -> None:
        # Before `listen`: Tune swallows what it raises, and would wait for the children for ever.
        key = outcome.task.key
        children = self._waiting.pop(key, [])
        self._open.discard(key)
        self._done += 1
        if outcome.metrics is not None:
            self._ready.extend(children)
        elif not outcome.stopped:
            self._lost[key] = outcome.reason
        if self._source is not None:
            self._source.ended(outcome)
        self._listen(outcome)
        for child in children if outcome.metrics is None else ():
            if outcome.task.dense.key() in self._lost:
                self._end(TaskResult(child, None, _dependency_failed(self._lost[child.dense.key()])))
            else:
                self._ready.append(child)

    def __getstate__(self) -> dict[str, Any]:  # Tune pickles its searcher
        """Nothing of the plan: a sweep is carried on from the store, never from Tune's own files."""
        return {"_metric": self._metric, "_mode": self._mode}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as for a pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for a pickle."""


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The final metrics that a trial has reported."""
    # One copy of each name: there are sixty, in thousands of trials.
    return {sys.intern(name): value for name, value in json.loads(result.get(METRICS, "{}")).items()}


def _dependency_failed(reason: str) -> str:
    return f"its dense network failed: {reason}"
