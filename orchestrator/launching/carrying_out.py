"""A plan, carried out: what the store has of it is reused, the rest is run, and the comparison recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.comparing.records import PLAN, frame
from orchestrator.comparing.summary import Summary
from orchestrator.console import print_line
from orchestrator.language.stops import Stop
from orchestrator.launching import running
from orchestrator.launching.ahead import check_data, needed_data
from orchestrator.launching.concluding import conclude, prepare
from orchestrator.launching.options import Options
from orchestrator.launching.outcome import Ended
from orchestrator.launching.point import Point
from orchestrator.launching.repeating import COMMAND, command
from orchestrator.launching.request import ASKED, request_of
from orchestrator.planning.changes import changes
from orchestrator.planning.plan import Plan, expected
from orchestrator.planning.remainder import (
    digest,
    missing_points,
    past_trials,
    plan_text,
    so_far,
    sweep_before,
)
from orchestrator.space import Space
from orchestrator.store.address import store_folder
from orchestrator.store.claim import beating, claim
from orchestrator.store.environment import environment
from orchestrator.store.room import check_room, give_up_if_full
from orchestrator.store.settling import check_none_elsewhere, deliver_left, settle
from orchestrator.tracking import OpenRun, RunRow, Tracker
from orchestrator.transfer.kept import keep

if TYPE_CHECKING:
    from orchestrator.planning.asking import Asking


def carry_out(plan: Plan, options: Options, stop: Stop | None, *, uri: str) -> Summary:
    """Run what the store does not hold of a plan yet, and record what came of it."""
    tracking.initialise(uri)
    deliver_left(uri)
    tracker = Tracker(uri, plan.space.name)
    wanted = _Wanted(tracker, options, stop)
    with tracker.reaching():
        before = sweep_before(tracker, plan, stop)
        left = wanted.left(plan, before)
        wanted.say_changes(left)
    check_room(left.to_come, store_folder(uri))
    datasets = needed_data(left.plan, [point.dense for point in left.points])
    if options.address is None:  # the nodes of a cluster are asked for theirs
        check_data(datasets)
    if before is not None and not left.points and left.plan.complete and before.status == "FINISHED":
        wanted.remember(plan.space, before)
        return Summary.of_plan(left.plan, before, frame(tracker, before), Ended(()), left.reused)
    with running.cluster(options, tracker, datasets):
        check_data(datasets)  # the digests in the keys are of the data here
        with claim(tracker, digest(plan, stop), name=plan.space.name) as run, beating(tracker, run):
            return _owned(plan, wanted, run)


@dataclass(frozen=True)
class _Left:
    """A plan as far as it is known, its points that are to be run, and all that may still come."""

    plan: Plan
    points: Sequence[Point]
    reused: int
    to_come: Sequence[Point]


@dataclass(frozen=True)
class _Wanted:
    """How a plan's points are to be run, and where they are recorded."""

    tracker: Tracker
    options: Options
    stop: Stop | None

    def left(self, plan: Plan, sweep: RunRow | None) -> _Left:
        """What is left of a plan of which `sweep` may have recorded more."""
        plan, retry = so_far(plan, self.tracker, sweep), self.options.retry_failed
        points, reused = missing_points(plan, self.tracker, retry_failed=retry, stop=self.stop)
        to_come = points
        if plan.space.search.method == "tpe":  # of which more will be asked for
            to_come, _ = missing_points(expected(plan), self.tracker, retry_failed=False, stop=self.stop)
        return _Left(plan, points, reused, to_come)

    def say_changes(self, left: _Left) -> None:
        """Why trials whose configuration is in the store are run all the same."""
        open_keys = {point.key for point in left.points}
        done = {trial.key for trial in left.plan.trials} - open_keys
        if line := changes(left.plan, self.tracker, done=done).line():
            print_line(f"{left.plan.space.name}: {line}", error=True)

    def source(self, left: _Left, sweep: RunRow) -> Asking | None:
        """What asks for the points of a search as results come in."""
        if left.plan.space.search.method != "tpe":
            return None
        from orchestrator.planning.asking import Asking  # optuna is for searches alone

        retry = self.options.retry_failed
        source = Asking(left.plan, self.tracker, sweep, retry_failed=retry, stop=self.stop)
        source.recall(left.points)
        return source

    def remember(self, space: Space, sweep: RunRow) -> None:
        """Whose plan it is, so that the same request is answered at once when all of it is done."""
        request = request_of(space, self.options)
        asked = None if request is None else request.sha256()
        if asked is not None and sweep.tags.get(ASKED) != asked:
            self.tracker.try_tag(sweep.run_id, ASKED, asked)

    def write_down(self, plan: Plan, sweep: RunRow) -> None:
        """What is going to be run, where and by which command."""
        self.tracker.set_tag(sweep.run_id, COMMAND, command(plan.space, self.options))
        facts = json.dumps(environment(), indent=1, sort_keys=True)
        self.tracker.upload(sweep.run_id, {"space.yaml": plan.space.text, "environment.json": facts})
        self.tracker.rewrite(sweep, PLAN, plan_text(plan, stop=self.stop))
        self.remember(plan.space, sweep)
        if plan.space.ancestor is not None:
            keep(self.tracker, sweep, plan.space.ancestor)

    def run(self, left: _Left, sweep: RunRow, source: Asking | None) -> Ended:
        """Run what is left, if anything is, and what the source asks for."""
        if not left.points and (source is None or source.over):
            return Ended(())
        prepare()
        return running.run(
            left.points,
            self.tracker,
            sweep.run_id,
            self.options,
            reused=left.reused,
            reused_dense=len(left.plan.dense) - sum(point.parent is None for point in left.points),
            stop=self.stop,
            past=() if self.stop is None else tuple(past_trials(left.plan, self.tracker, self.stop)),
            source=source,
            planned=0 if source is None else left.plan.space.points,
        )


def _owned(plan: Plan, wanted: _Wanted, run: OpenRun) -> Summary:
    """Run what is left, as the one owner of the sweep's run, and record what came of it."""
    tracker = wanted.tracker
    with tracker.reaching():
        sweep = tracker.row(run.run_id)
        left = wanted.left(plan, sweep)
        wanted.write_down(left.plan, sweep)
        sweep = tracker.row(run.run_id)  # with what it says now
        source = wanted.source(left, sweep)
    ended = wanted.run(left, sweep, source)
    run.status = "KILLED" if ended.signal else "FINISHED"
    give_up_if_full(tracker, run.run_id, ended, left.to_come)
    shown = partial(conclude, tracker, sweep, plan.space, ended)
    results = settle(tracker.uri, run.run_id, ended, shown)
    if wanted.options.address is not None:
        check_none_elsewhere(results, ended)
    if source is None:
        return Summary.of_plan(left.plan, sweep, results, ended, left.reused)
    return Summary.of_plan(source.plan, sweep, results, ended, left.reused + source.found)
