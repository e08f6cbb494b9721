"""A search under way, on a real store and without a worker: what is asked for, recorded and carried on."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking
from orchestrator.config import EarlyStopping
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.planning.resume import identity, plan_text, remaining_tasks, with_recorded_points
from orchestrator.planning.sampling import make_study
from orchestrator.planning.search_source import SearchSource
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import MetricPoint, RunRecord, Tracker
from orchestrator.trial.task import Task, TaskResult

TEXT = """\
search: {method: tpe, trials: 8, startup: 3, objectives: {final/val_accuracy: max, final/macs_effective: min}}
axes:
  model: [slp, mlp]
  dataset: digits
  amount: {low: 0.5, high: 0.9}
  schedule: [one_shot, pq_index]
  pq_index.gamma: {low: 1, high: 9}
  seed: %s
"""
STOP = EarlyStopping("median(n_startup_trials=5, n_warmup_steps=0, interval_steps=1, n_min_trials=1)")


def plan_of(folder: Path, *sets: str, seeds: str = "[0]") -> Plan:
    file = folder / "mine.yaml"
    file.write_text(TEXT % seeds)
    return make_plan(load_space(str(file), sets))


class Search:
    """A store, a sweep's run in it, and a search; points are 'run' by writing what a worker would."""

    def __init__(self, folder: Path, plan: Plan, *, stop: EarlyStopping | None = None) -> None:
        self.uri = default_uri(folder)
        self.tracker = Tracker(self.uri, "mine")
        self.stop = stop
        self.signals = SignalHandler()
        self.sweep = self.row(self.tracker.start("sweep", "mine", tags={"space": "mine"}).run_id)
        self.take_up(plan)

    def take_up(self, plan: Plan) -> None:
        """As `launch` does: what the sweep's run says was asked for, and how that has ended."""
        self.asking = SearchSource(
            with_recorded_points(plan, self.tracker, self.sweep),
            self.tracker,
            self.sweep,
            self.signals,
            retry_failed=False,
            stop=self.stop,
        )
        self.left, self.reused = remaining_tasks(
            self.asking.plan, self.tracker, retry_failed=False, stop=self.stop
        )
        self.asking.load_finished(self.left)

    def row(self, run_id: str) -> RunRecord:
        return self.tracker.get_run(run_id)

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.tracker.read_text(self.sweep, PLAN))
        return found

    def run(self, point: Task, *, ended: str = "complete") -> None:
        """Record a point's run, then tell the search."""
        metrics = None if ended != "complete" else values(point)
        tags = {"point": point.key, "manifest_sha256": hashlib.sha256(b"{}").hexdigest()}
        with self.tracker.start("trial", point.name, parent=self.sweep.run_id, tags=tags) as run:
            self.tracker.upload(run.run_id, {"model/manifest.json": "{}"})
            found = (metrics or {}).items()
            key = {
                "complete": {"key": point.key},
                "stopped": {"stopped_key": point.key, "stop": str(self.stop)},
            }
            run.log(metrics=[MetricPoint(n, v) for n, v in found], tags=key.get(ended, {"diverged": "true"}))
            run.status = "FAILED" if ended == "failed" else "FINISHED"
        self.asking.on_result(TaskResult(point, metrics, stopped=ended == "stopped"))

    def finish(self) -> list[str]:
        """Run everything, one at a time, dense networks first; the keys of the trials in their order."""
        order = []
        queue = list(self.left)
        done: set[str] = set()
        while queue or not self.asking.exhausted:
            queue = queue or list(self.asking.next_tasks(1))
            if not queue:
                break
            point = queue.pop(0)
            if point.key not in done:
                done.add(point.key)
                order += [point.key] if point.parent else []
                self.run(point)
        return order


def values(point: Task) -> dict[str, float]:
    """What comes of a point: a trade-off with a little of its key in it."""
    amount = getattr(getattr(point.config, "prune", None), "amount", 0.0)
    noise = int(point.key[:4], 16) / 2**20
    return {"final/val_accuracy": 1 - amount**4 + noise, "final/macs_effective": 1000 * (1 - amount)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store: making one takes longer than all that is done in it here."""
    folder = tmp_path_factory.mktemp("store")
    tracking.initialise(default_uri(folder))
    return folder / "mlruns"


@pytest.fixture
def tmp_path(tmp_path: Path, store: Path) -> Path:
    """A folder with a store of its own."""
    shutil.copytree(store, tmp_path / "mlruns")
    return tmp_path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def trials(points: object) -> list[Task]:
    return [point for point in points if point.parent]  # type: ignore[attr-defined]


def test_a_point_is_in_the_plan_before_it_is_handed_out(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    dense, trial = search.asking.next_tasks(1)
    assert (dense.parent, trial.parent) == (None, dense.key)
    record = search.record()
    assert [row["key"] for row in load_planned_rows(json.dumps(record))] == [trial.key]
    (asked,) = record["asked"]
    assert asked["keys"] == [trial.key]
    assert asked["params"] == dict(search.asking.plan.points[0].params)
    assert record["search"] == {
        "method": "tpe",
        "objectives": {"final/val_accuracy": "max", "final/macs_effective": "min"},
        "planned": 8,
        "exhausted": False,
    }
    assert not list(Path(search.tracker.local_folder(search.sweep, ".") or "").glob(".*"))


def test_no_more_points_are_under_way_than_there_is_room_for(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    first = trials(search.asking.next_tasks(2))
    second = trials(search.asking.next_tasks(2))
    assert len(first) == len(second) == 1
    assert search.asking.next_tasks(2) == []
    search.run(first[0])
    assert len(trials(search.asking.next_tasks(2))) == 1
    assert search.asking.next_tasks(2) == []
    assert len(search.record()["asked"]) == 3


def test_it_ends_with_all_its_points_and_the_study_has_them(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    order = search.finish()
    assert len(set(order)) == len(order) == 8
    assert search.asking.exhausted
    assert search.asking.next_tasks(9) == []
    found = make_study(plan.space, search.asking.observed_points())
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 8
    first = search.tracker.find_all_finished([order[0]])[order[0]]
    assert found.trials[0].values == [first.metrics[name] for name in plan.space.search.objectives]
    search.take_up(plan)
    assert (search.left, search.reused, search.asking.exhausted) == ([], 8, True)


def test_carried_on_it_asks_for_what_it_would_have_asked_for(tmp_path: Path, plan: Plan) -> None:
    shutil.copytree(tmp_path / "mlruns", tmp_path / "other" / "mlruns")
    whole = Search(tmp_path / "other", plan).finish()
    search = Search(tmp_path, plan)
    for _ in range(5):
        for point in search.asking.next_tasks(1):
            search.run(point)
    lost = search.asking.next_tasks(1)[-1]  # handed out, and then the power failed
    search.take_up(plan)
    assert [point.key for point in trials(search.left)] == [lost.key] == [whole[5]]
    assert search.reused == 5
    assert search.asking.plan == with_recorded_points(plan, search.tracker, search.sweep)
    assert search.finish() == whole[5:]
    assert [point.keys[0] for point in search.asking.plan.points] == whole


def test_more_points_are_asked_for_after_those_that_are_there(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    before = search.finish()
    longer = plan_of(tmp_path, "search.trials=10")
    search.take_up(longer)
    assert not search.asking.exhausted
    assert len(search.finish()) == 2
    assert [point.keys[0] for point in search.asking.plan.points][:8] == before


def test_what_the_store_has_is_told_at_once(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    first = search.finish()[:3]  # drawn at random, so that any search of this seed begins with them
    again = Search(tmp_path, plan)
    points = trials(again.asking.next_tasks(1))
    assert again.sweep.run_id != search.sweep.run_id
    assert points == []  # all eight follow from each other, and each is there
    assert again.asking.reused == 8
    assert [point.keys[0] for point in again.asking.plan.points][:3] == first
    assert [seen.state for seen in again.asking.observed_points()] == ["complete"] * 8


def test_over_several_seeds_a_point_is_the_mean(tmp_path: Path) -> None:
    search = Search(tmp_path, plan_of(tmp_path, seeds="[0, 1]"))
    points = search.asking.next_tasks(1)
    one, two = trials(points)
    assert [seen.state for seen in search.asking.observed_points()] == ["running"]
    search.run(one)
    assert [seen.state for seen in search.asking.observed_points()] == ["running"]
    assert search.asking.next_tasks(1) == []
    search.run(two)
    (seen,) = search.asking.observed_points()
    means = tuple((a + b) / 2 for a, b in zip(values(one).values(), values(two).values(), strict=True))
    assert (seen.state, seen.objectives) == ("complete", pytest.approx(means))


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        (("complete", "stopped"), "stopped"),
        (("stopped", "failed"), "failed"),
        (("complete", "failed"), "failed"),
    ],
)
def test_a_point_with_a_trial_that_did_not_end_well_has_no_values(
    tmp_path: Path, ends: tuple[str, str], state: str
) -> None:
    search = Search(tmp_path, plan_of(tmp_path, seeds="[0, 1]"), stop=STOP)
    for point, ended in zip(trials(search.asking.next_tasks(1)), ends, strict=True):
        search.run(point, ended=ended)
    (seen,) = search.asking.observed_points()
    assert (seen.state, seen.objectives) == (state, None)
    search.take_up(plan_of(tmp_path, seeds="[0, 1]"))
    assert search.left == []
    assert search.asking.observed_points() == [seen]


def test_a_full_disk_hands_nothing_out(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path, plan)
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert search.asking.next_tasks(1) == []
    assert search.asking.plan.points == ()
    assert not search.asking.exhausted
    reason = search.signals.disk_full_reason  # which ends the sweep
    assert reason.startswith("DiskFullError: no room is left in ")
    monkeypatch.setattr(Path, "write_bytes", whole)
    assert search.asking.next_tasks(1) == []
    search.signals.disk_full_reason = ""
    assert len(trials(search.asking.next_tasks(1))) == 1


def test_nothing_is_asked_for_once_a_signal_came(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    points = trials(search.asking.next_tasks(2))
    search.signals.received = 2
    assert search.asking.next_tasks(2) == []
    search.asking.on_result(TaskResult(points[0], None, "cut off"))  # no failure: it is run again
    assert [seen.state for seen in search.asking.observed_points()] == ["running"]


def test_a_search_is_known_by_what_it_is_drawn_from(tmp_path: Path, plan: Plan) -> None:
    search = Search(tmp_path, plan)
    search.asking.next_tasks(2)
    assert identity(search.asking.plan) == identity(plan)
    assert plan_text(search.asking.plan) != plan_text(plan)
    assert identity(plan_of(tmp_path, "search.trials=99")) == identity(plan)
    others = [
        plan_of(tmp_path, "search.seed=1"),
        plan_of(tmp_path, "amount={low: 0.5, high: 0.8}"),
        plan_of(tmp_path, "pq_index.gamma=1,3"),
        plan_of(tmp_path, "train.epochs=3"),
        plan_of(tmp_path, "search.objectives={final/val_accuracy: max}"),
        replace(plan, numerics=replace(plan.numerics, precision="bf16")),
    ]
    found = {identity(other) for other in others} | {identity(plan), identity(plan, stop=STOP)}
    assert len(found) == len(others) + 2


def test_a_finite_space_ends_the_search_and_says_so(tmp_path: Path) -> None:
    found = plan_of(tmp_path, "amount=0.5", "schedule=one_shot", "search.trials=5")
    search = Search(tmp_path, found)
    assert len(search.finish()) == 2
    assert search.asking.exhausted
    assert search.asking.plan.exhausted
    assert search.record()["search"]["planned"] == 2
    search.take_up(found)
    assert (search.left, search.asking.exhausted) == ([], True)
    assert [item.count for item in search.asking.plan.excluded] == [3]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.planning.sampling.MAX_DRAWS", 60)
