"""The order in which points are handed out; no cluster is needed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.execution.dag_searcher import (
    METRICS,
    OUTCOMES,
    REASON,
    STOPPED,
    SUCCEEDED,
    TASKS,
    ConcurrencyRamp,
    DagSearcher,
    LiveTrialScheduler,
)
from orchestrator.trial.task import Task, TaskResult, load_tasks

DENSE = DenseConfig("slp", "digits", 64, 0, Train(), Numerics())


def dense(seed: int) -> Task:
    config = replace(DENSE, seed=seed)
    return Task(config.key(), f"dense {seed}", config)


def trial(seed: int, amount: float) -> Task:
    prune = Prune("magnitude", "weight", "layer", "one_shot", amount)
    config = TrialConfig(replace(DENSE, seed=seed), prune, "none", "weight")
    return Task(config.key(), f"trial {seed} {amount}", config, parent=config.dense.key())


def finished(*tasks: Task, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What a worker reports of tasks that succeeded."""
    return {SUCCEEDED: 1, OUTCOMES: json.dumps({task.key: {METRICS: metrics or {}} for task in tasks})}


def failed(reason: str, *tasks: Task) -> dict[str, Any]:
    """What a worker reports of tasks that failed."""
    return {SUCCEEDED: 0, OUTCOMES: json.dumps({task.key: {REASON: reason} for task in tasks})}


class Sweep:
    """A searcher and what was heard of it."""

    def __init__(self, *points: Task) -> None:
        self.outcomes: list[TaskResult] = []
        self.searcher = DagSearcher(points, self.outcomes.append, ramp=ConcurrencyRamp(9, 9))
        self.handed = 0

    def next(self) -> str:
        """The next point's name, `wait`, or `end`; it runs under the id of its turn."""
        given = self.searcher.suggest(str(self.handed))
        if given == Searcher.FINISHED:
            return "end"
        if given is None:
            return "wait"
        self.handed += 1
        return " + ".join(task.name for task in load_tasks(given[TASKS]))

    def complete(
        self, trial_id: str, *, reason: str = "", metrics: Mapping[str, float] | None = None
    ) -> None:
        """End a trial, all of whose tasks have these metrics, or failed for a reason."""
        tasks = self.searcher._running[trial_id]
        report = failed(reason, *tasks) if reason else finished(*tasks, metrics=metrics or {})
        self.searcher.on_trial_complete(trial_id, report)

    def ended(self) -> list[tuple[str, bool, str]]:
        return [(outcome.task.name, outcome.metrics is not None, outcome.reason) for outcome in self.outcomes]


def test_children_come_after_their_parent() -> None:
    sweep = Sweep(trial(0, 0.5), dense(0), trial(1, 0.5), dense(1), trial(0, 0.9))
    assert [sweep.next() for _ in range(3)] == ["dense 0", "dense 1", "wait"]
    sweep.complete("1", metrics={"final/accuracy": 0.5})
    assert [sweep.next() for _ in range(2)] == ["trial 1 0.5", "wait"]
    sweep.complete("0")
    assert [sweep.next() for _ in range(3)] == ["trial 0 0.5", "trial 0 0.9", "end"]
    for running in ("2", "3", "4"):
        sweep.complete(running)
    assert [good for _, good, _ in sweep.ended()] == [True] * 5
    assert sweep.outcomes[0].metrics == {"final/accuracy": 0.5}
    assert sweep.next() == "end"


def test_a_trial_whose_parent_is_in_the_store_waits_for_nothing() -> None:
    assert [Sweep(trial(0, 0.5)).next(), Sweep().next()] == ["trial 0 0.5", "end"]


def test_a_failed_parent_fails_its_children_with_its_reason() -> None:
    sweep = Sweep(dense(0), dense(1), trial(0, 0.5), trial(0, 0.9), trial(1, 0.5))
    assert [sweep.next() for _ in range(3)] == ["dense 0", "dense 1", "wait"]
    sweep.complete("0", reason="DivergedError: no longer finite")
    why = "DivergedError: no longer finite"
    assert sweep.ended() == [
        ("dense 0", False, why),
        ("trial 0 0.5", False, f"its dense network failed: {why}"),
        ("trial 0 0.9", False, f"its dense network failed: {why}"),
    ]
    assert sweep.next() == "wait"
    sweep.complete("1")
    assert [sweep.next(), sweep.next()] == ["trial 1 0.5", "end"]


def test_a_dead_worker_is_a_failure() -> None:
    sweep = Sweep(dense(0), trial(0, 0.5))
    sweep.next()
    sweep.searcher.on_trial_complete("0", None, error=True)
    assert sweep.ended()[0] == ("dense 0", False, "its worker died")
    assert len(sweep.outcomes) == 2
    assert sweep.next() == "end"


def test_a_point_that_stopped_half_way_is_no_result() -> None:
    sweep = Sweep(dense(0))
    sweep.next()
    sweep.searcher.on_trial_complete("0", {"done": True, SUCCEEDED: 0, "epoch": 3.0})
    assert not sweep.ended()[0][1]


def test_children_are_released_even_if_nobody_can_listen() -> None:
    def deaf(outcome: TaskResult) -> None:
        raise OSError("the terminal is gone")

    searcher = DagSearcher([dense(0), trial(0, 0.5)], deaf, ramp=ConcurrencyRamp(1, 1))
    searcher.suggest("0")
    with pytest.raises(OSError, match="terminal"):
        searcher.on_trial_complete("0", finished(dense(0)))
    assert isinstance(searcher.suggest("1"), dict)


def test_ends_of_unknown_trials_are_nothing() -> None:
    sweep = Sweep(dense(0))
    sweep.searcher.on_trial_complete("never handed out", finished(dense(0)))
    assert sweep.outcomes == []


def test_it_is_pickled_without_its_plan() -> None:
    searcher = Sweep(dense(0)).searcher
    assert searcher.__getstate__() == {"_metric": SUCCEEDED, "_mode": "max"}
    assert b"dense" not in pickle.dumps(searcher)


# Points that come as results do


class Tap:
    """A source of ready-made points, a few at each call, that notes what it hears."""

    found = 0

    def __init__(self, *calls: list[Task]) -> None:
        self.calls = list(calls)
        self.rooms: list[int] = []
        self.heard: list[str] = []

    @property
    def exhausted(self) -> bool:
        return not self.calls

    def next_tasks(self, room: int) -> list[Task]:
        self.rooms.append(room)
        return self.calls.pop(0) if self.calls else []

    def on_result(self, outcome: TaskResult) -> None:
        self.heard.append(outcome.task.name)


def tapped(tap: Tap, *points: Task) -> Sweep:
    sweep = Sweep()
    sweep.searcher = DagSearcher(points, sweep.outcomes.append, tap, ramp=ConcurrencyRamp(3, 3))
    return sweep


def test_no_more_run_at_once_than_may() -> None:
    sweep, at_once = Sweep(), ConcurrencyRamp(1, 3)
    sweep.searcher = DagSearcher([dense(n) for n in range(4)], sweep.outcomes.append, ramp=at_once)
    assert [sweep.next() for _ in range(2)] == ["dense 0", "wait"]
    at_once.first = 3
    assert [sweep.next() for _ in range(3)] == ["dense 1", "dense 2", "wait"]
    sweep.complete("0")
    assert [sweep.next() for _ in range(2)] == ["dense 3", "end"]


@pytest.mark.parametrize(
    ("seconds", "done", "left", "expected"),
    [
        (4.9, 0, 50, 1),  # a worker would not have started yet
        (5.1, 0, 1, 3),  # nobody knows how long the rest will take
        (5.1, 24, 3, 1),  # 0.6 s more
        (6.0, 10, 20, 3),  # 12 s more
        (60.0, 10, 1, 1),  # 6 s more
    ],
)
def test_another_worker_comes_once_it_pays(
    seconds: float, done: int, left: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("orchestrator.execution.dag_searcher.monotonic", lambda: clock[0])
    at_once = ConcurrencyRamp(1, 3)
    assert at_once.limit(done=0, left=9) == 1  # no worker is there yet
    clock[0] += 50
    at_once.on_start()
    clock[0] += seconds
    at_once.on_start()
    assert at_once.limit(done=done, left=left) == expected
    if expected == 3:
        assert at_once.limit(done=100, left=1) == 3  # it stays


def test_more_is_asked_for_only_where_nothing_is_ready() -> None:
    tap = Tap([dense(0), trial(0, 0.5)], [], [trial(0, 0.9)])
    sweep = tapped(tap, dense(1))
    assert sweep.next() == "dense 1"
    assert tap.rooms == []
    assert [sweep.next() for _ in range(3)] == ["dense 0", "wait", "wait"]
    assert tap.rooms == [3, 3, 3]
    assert tap.exhausted
    sweep.complete("1")
    assert [sweep.next() for _ in range(3)] == ["trial 0 0.5", "trial 0 0.9", "end"]
    for running in ("0", "2", "3"):
        sweep.complete(running)
    assert tap.heard == ["dense 0", "dense 1", "trial 0 0.5", "trial 0 0.9"]


def test_a_dense_network_that_two_points_need_is_handed_out_once() -> None:
    tap = Tap([dense(0), trial(0, 0.5)], [dense(0), trial(0, 0.9)], [trial(0, 0.7)])
    sweep = tapped(tap)
    assert [sweep.next() for _ in range(4)] == ["dense 0", "wait", "wait", "wait"]
    sweep.complete("0")
    assert [sweep.next() for _ in range(4)] == ["trial 0 0.5", "trial 0 0.9", "trial 0 0.7", "end"]


def test_a_dense_network_that_failed_is_not_tried_for_the_next_point() -> None:
    tap = Tap([dense(0), trial(0, 0.5)], [dense(0), trial(0, 0.9)], [dense(1), trial(1, 0.5)])
    sweep = tapped(tap)
    assert sweep.next() == "dense 0"
    sweep.complete("0", reason="no memory")
    assert sweep.next() == "wait"  # its second child has failed at once
    assert sweep.next() == "dense 1"
    assert tap.heard == ["dense 0", "trial 0 0.5", "trial 0 0.9"]
    assert [reason for _, _, reason in sweep.ended()][1:] == ["its dense network failed: no memory"] * 2


def test_a_source_hears_before_anybody_listens() -> None:
    def deaf(outcome: TaskResult) -> None:
        raise OSError("the terminal is gone")

    tap = Tap()
    searcher = DagSearcher([dense(0)], deaf, tap, ramp=ConcurrencyRamp(1, 1))
    searcher.suggest("0")
    with pytest.raises(OSError, match="terminal"):
        searcher.on_trial_complete("0", finished(dense(0)))
    assert tap.heard == ["dense 0"]


class Living(TuneController):
    """Tune's own, that has two trials which have not ended, and lets nobody look at those that have."""

    def __init__(self, *statuses: str) -> None:
        self._live_trials = {Trial("work", stub=True) for _ in statuses}  # type: ignore[no-untyped-call]
        for trial, status in zip(self._live_trials, statuses, strict=True):
            trial.status = status

    def get_trials(self) -> list[Trial]:
        raise AssertionError


def test_what_was_handed_out_is_run_without_a_look_at_what_has_ended() -> None:
    chosen = LiveTrialScheduler().choose_trial_to_run(Living(Trial.RUNNING, Trial.PENDING))
    assert chosen is not None
    assert chosen.status == Trial.PENDING
    assert LiveTrialScheduler().choose_trial_to_run(Living(Trial.RUNNING)) is None


# Tasks that run as a stack


def stacking(*points: Task, most: int = 3, workers: int = 1) -> Sweep:
    """A sweep whose tasks are alike in their kind."""
    sweep = Sweep()
    sweep.searcher = DagSearcher(
        points,
        sweep.outcomes.append,
        ramp=ConcurrencyRamp(workers, workers),
        most_stacked=most,
        group_of=lambda task: task.parent is None,
    )
    return sweep


def test_tasks_of_one_group_go_to_a_worker_together() -> None:
    sweep = stacking(dense(0), trial(7, 0.5), dense(1), trial(0, 0.5), dense(2), dense(3))
    assert [sweep.next(), sweep.next()] == ["dense 0 + dense 1 + dense 2", "wait"]
    sweep.complete("0", metrics={"final/accuracy": 0.5})
    assert [row.metrics for row in sweep.outcomes] == [{"final/accuracy": 0.5}] * 3
    assert sweep.next() == "trial 7 0.5 + trial 0 0.5"
    sweep.complete("1")
    assert [sweep.next(), sweep.next()] == ["dense 3", "end"]


def test_free_workers_share_a_group_evenly() -> None:
    sweep = stacking(*(dense(seed) for seed in range(5)), most=16, workers=2)
    assert [sweep.next(), sweep.next()] == ["dense 0 + dense 1 + dense 2", "dense 3 + dense 4"]


def test_a_stack_of_one_is_none() -> None:
    sweep = stacking(dense(0), dense(1), most=1)
    assert sweep.next() == "dense 0"


def test_tasks_of_a_stack_end_each_in_its_own_way() -> None:
    sweep = stacking(dense(0), dense(1), dense(2), trial(1, 0.5), trial(2, 0.5))
    assert sweep.next() == "dense 0 + dense 1 + dense 2"
    outcomes = {
        dense(0).key: {STOPPED: "enough"},
        dense(1).key: {REASON: "DivergedError: no longer finite"},
        dense(2).key: {METRICS: {"final/accuracy": 0.5}},
    }
    sweep.searcher.on_trial_complete("0", {SUCCEEDED: 0, OUTCOMES: json.dumps(outcomes)})
    states = [(row.task.name, row.state) for row in sweep.outcomes]
    assert states == [
        ("dense 0", "stopped"),
        ("dense 1", "failed"),
        ("trial 1 0.5", "failed"),
        ("dense 2", "complete"),
    ]
    assert [sweep.next(), sweep.next()] == ["trial 2 0.5", "end"]


def test_the_end_is_not_said_before_a_stack_has_ended() -> None:
    """Tune asks no more after the end, and the stack may come back, task by task."""
    sweep = stacking(dense(0), dense(1))
    assert [sweep.next(), sweep.next()] == ["dense 0 + dense 1", "wait"]
    sweep.searcher.on_trial_complete("0", None, error=True)
    assert [sweep.next(), sweep.next()] == ["dense 0", "wait"]
    sweep.complete("1")
    assert [sweep.next(), sweep.next()] == ["dense 1", "end"]


def test_tasks_whose_worker_died_run_again_by_themselves() -> None:
    """Of a stack that kills its worker one member may be to blame."""
    sweep = stacking(dense(0), dense(1), trial(1, 0.5))
    assert sweep.next() == "dense 0 + dense 1"
    sweep.searcher.on_trial_complete("0", None, error=True)
    assert sweep.outcomes == []
    assert [sweep.next(), sweep.next()] == ["dense 0", "wait"]
    sweep.searcher.on_trial_complete("1", None, error=True)
    assert sweep.ended() == [("dense 0", False, "its worker died")]
    assert sweep.next() == "dense 1"
    sweep.complete("2")
    assert [sweep.next(), sweep.next()] == ["trial 1 0.5", "end"]
