"""The order of a sweep: a pruned trial is handed out only once its dense network is finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from ray.tune.search import Searcher

from orchestrator.outcome import Outcome
from orchestrator.point import Point

STOPPED = "stopped_because"  # reported, with the reason, by a trial that ended early
SUCCEEDED = "succeeded"  # reported as 1 or 0; `done` is Tune's own, and true at every end


class DagSearcher(Searcher):
    """Hands points to Tune: those without an unfinished parent first, children as parents finish.

    `listen` hears of every end. A failed parent fails its children, with its reason.
    """

    def __init__(self, points: Sequence[Point], listen: Callable[[Outcome], None]) -> None:
        super().__init__(metric=SUCCEEDED, mode="max")
        keys = {point.key for point in points}
        self._listen = listen
        self._ready = deque(point for point in points if point.parent not in keys)
        self._waiting: dict[str, list[Point]] = {}
        for point in points:
            if point.parent in keys and point.parent is not None:
                self._waiting.setdefault(point.parent, []).append(point)
        self._running: dict[str, Point] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:  # what Tune calls a config
        if self._ready:
            point = self._running[trial_id] = self._ready.popleft()
            return {"point": point.to_text()}
        return None if self._waiting else cast(dict[str, Any], Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        point = self._running.pop(trial_id, None)
        if point is None:
            return
        result = result or {}
        if STOPPED in result and not error:
            self._end(Outcome(point, None, str(result[STOPPED]), stopped=True))
            return
        failed = error or not result.get(SUCCEEDED)
        reason = str(result.get("reason") or "its worker died") if failed else ""
        self._end(Outcome(point, None if failed else result, reason))

    def _end(self, outcome: Outcome) -> None:
        # Before `listen`: Tune swallows what it raises, and would wait for the children for ever.
        children = self._waiting.pop(outcome.point.key, [])
        if outcome.metrics is not None:
            self._ready.extend(children)
        self._listen(outcome)
        for child in children if outcome.metrics is None else ():
            self._end(Outcome(child, None, f"its dense network failed: {outcome.reason}"))

    def __getstate__(self) -> dict[str, Any]:  # Tune pickles its searcher
        """Nothing of the plan: a sweep is carried on from the store, never from Tune's own files."""
        return {"_metric": self._metric, "_mode": self._mode}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as for a pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for a pickle."""
