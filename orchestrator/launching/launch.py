"""From a space to its results: plan, reuse what is in the store, run the rest, record the comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.comparing.figures import accuracy_against_sparsity
from orchestrator.comparing.records import PLAN, frame, joined
from orchestrator.comparing.summary import PICTURE, REPORT, TABLES, Preview, Summary
from orchestrator.comparing.tables import markdown, tables
from orchestrator.config import DenseConfig, Device, Precision
from orchestrator.errors import SpaceError, UsageError
from orchestrator.images.dataset_files import check
from orchestrator.language.stops import Stop, stops
from orchestrator.language.values import method
from orchestrator.launching import running
from orchestrator.launching.outcome import Ended
from orchestrator.launching.point import Point
from orchestrator.launching.repeating import COMMAND, command
from orchestrator.launching.resources import of_machine
from orchestrator.launching.running import Options
from orchestrator.pages.sweep_page import links, tell
from orchestrator.planning.plan import Plan, expected, make_plan
from orchestrator.planning.remainder import (
    _stopped,
    identity,
    missing_points,
    past_trials,
    plan_text,
    so_far,
)
from orchestrator.report import html_report
from orchestrator.space import Space
from orchestrator.store.address import exists, store_folder
from orchestrator.store.claim import beating, claim
from orchestrator.store.environment import environment
from orchestrator.store.room import check_room, give_up_if_full
from orchestrator.store.settling import check_none_elsewhere, deliver_left, settle
from orchestrator.tracking import RunRow, Tracker
from pruning.registry import parse

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.planning.asking import Asking


def stop_rule(space: Space, wanted: str | None = None) -> Stop | None:
    """How a sweep stops trials: as `wanted` says, else as its space does; `none` is not at all.

    UsageError, with the nearest names, for what is no way of stopping.
    """
    if wanted is None:
        return None if space.stop is None else Stop(space.stop, space.stop_within)
    try:
        return None if wanted.strip() == "none" else Stop(method(wanted, stops), space.stop_within)
    except ValueError as error:
        raise UsageError(f"--stop {wanted[:80]}: {error}") from error


def preview(space: Space, *, device: Device, precision: Precision, uri: str) -> Preview:
    """The plan, what the store has of it, and an estimate for the rest. Writes nothing."""
    from orchestrator.planning.estimate import estimate

    plan, stop = make_plan(space, device=device, precision=precision), stop_rule(space)
    tracker = Tracker(uri, space.name) if exists(uri) else None
    if tracker is not None:
        plan = so_far(plan, tracker, _sweep_before(tracker, plan, stop))
    asked, plan, done = len(plan.asked), expected(plan), set[str]()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.finished()) | _stopped(tracker, keys, stop)
    cost = estimate(plan, finished=done, concurrency=of_machine(device).concurrent)
    return Preview(plan, cost, asked)


def launch(space: Space, options: Options, *, uri: str) -> Summary:
    """Run what the store does not hold yet. DataError and StoreError come before any training."""
    plan = make_plan(space, device=options.device, precision=options.precision)
    _check_something_to_run(plan)
    searched = space.search.method == "tpe"
    stop = stop_rule(space, options.stop)
    if not exists(uri) and options.address is None:  # nothing is written where the data are missing
        _check_data(_datasets(plan, plan.dense))
    tracking.initialise(uri)
    tracker = Tracker(uri, space.name)
    deliver_left(uri)
    with tracker.reaching():
        digest, before = _digest(plan, stop), _sweep_before(tracker, plan, stop)
        plan = so_far(plan, tracker, before)
        points, reused = missing_points(plan, tracker, retry_failed=options.retry_failed, stop=stop)
        to_come = points
        if searched:  # of which more will be asked for
            to_come, _ = missing_points(expected(plan), tracker, retry_failed=False, stop=stop)
    check_room(to_come, store_folder(uri))
    datasets = _datasets(plan, [point.dense for point in points])
    if options.address is None:  # the nodes of a cluster are asked for theirs
        _check_data(datasets)
    if before is not None and not points and plan.complete and before.status == "FINISHED":
        return Summary(plan, before, frame(tracker, before), Ended(()), reused)
    with (
        running.cluster(options, tracker, datasets),
        claim(tracker, digest, name=space.name) as run,
        beating(tracker, run),
    ):
        with tracker.reaching():
            tracker.set_tag(run.run_id, COMMAND, command(space, options))
            sweep = tracker.row(run.run_id)
            plan = so_far(plan, tracker, sweep)
            points, reused = missing_points(plan, tracker, retry_failed=options.retry_failed, stop=stop)
            facts = json.dumps(environment(), indent=1, sort_keys=True)
            tracker.upload(run.run_id, {"space.yaml": space.text, "environment.json": facts})
            tracker.rewrite(sweep, PLAN, plan_text(plan, stop=stop))
            source = _source(plan, points, tracker, sweep, retry_failed=options.retry_failed, stop=stop)
        ended = Ended(())
        if points or (source is not None and not source.over):
            past = () if stop is None else tuple(past_trials(plan, tracker, stop))
            ended = running.run(
                points,
                tracker,
                run.run_id,
                options,
                reused=reused,
                reused_dense=len(plan.dense) - sum(point.parent is None for point in points),
                stop=stop,
                past=past,
                source=source,
                planned=space.points if searched else 0,
            )
        if source is not None:
            plan, reused = source.plan, reused + source.found
        run.status = "KILLED" if ended.signal else "FINISHED"
        give_up_if_full(tracker, run.run_id, ended, to_come)
        results = settle(uri, run.run_id, ended, partial(_conclude, tracker, sweep, space, ended))
        if options.address is not None:
            check_none_elsewhere(results, ended)
    return Summary(plan, sweep, results, ended, reused)


def _source(
    plan: Plan,
    points: Collection[Point],
    tracker: Tracker,
    sweep: RunRow,
    *,
    retry_failed: bool,
    stop: Stop | None,
) -> Asking | None:
    """What asks for the points of a search as results come in; `points` of it are yet to run."""
    if plan.space.search.method != "tpe":
        return None
    from orchestrator.planning.asking import Asking  # optuna is for searches alone

    source = Asking(plan, tracker, sweep, retry_failed=retry_failed, stop=stop)
    source.recall(points)
    return source


def _conclude(tracker: Tracker, sweep: RunRow, space: Space, ended: Ended) -> DataFrame:
    """What the sweep's run shows in the end; done twice, it shows the same."""
    if ended.signal:
        tracker.close_children(sweep.run_id, "interrupted")
    known = joined(tracker, sweep)
    results = known.results
    tell(tracker, sweep, space=space, results=results)
    if (results["status"] == "finished").any() and not ended.signal:  # who stops a sweep does not wait
        table = markdown(tables(results))
        picture = accuracy_against_sparsity(results, title=space.name)
        report = html_report(tracker, sweep, known=known)
        tracker.upload(sweep.run_id, {PICTURE: picture, TABLES: table, REPORT: report})
        about = f"{links(tracker, sweep)}\n\n{space.about}"
        tracker.set_tag(sweep.run_id, tracking.NOTE, note(sweep.run_id, about, table))
    return results


def note(run_id: str, about: str, table: str) -> str:
    """The description of a sweep's page: what it is, its picture, and as much of the tables as fits."""
    picture = f"![accuracy against sparsity](/get-artifact?path={PICTURE}&run_uuid={run_id})"
    head = f"{about}\n\n{picture}\n\nThe whole report is the artifact {REPORT}.\n\n"
    if len(head) + len(table) <= tracking.NOTE_LENGTH:
        return head + table
    rest = f"\n\nThe rest is in the artifact {TABLES}."
    whole_lines = table[: tracking.NOTE_LENGTH - len(head) - len(rest)].rpartition("\n")[0]
    return head + whole_lines + rest


def _digest(plan: Plan, stop: Stop | None) -> str:
    return hashlib.sha256(identity(plan, stop=stop).encode()).hexdigest()


def _sweep_before(tracker: Tracker, plan: Plan, stop: Stop | None) -> RunRow | None:
    """The run of the same sweep, if there was one."""
    query = f"tags.kind = 'sweep' and tags.plan_sha256 = '{_digest(plan, stop)}'"
    return next(iter(tracker.search(query, everywhere=True)), None)


def _check_something_to_run(plan: Plan) -> None:
    """SpaceError for a space without a trial; for a search that asks as it goes, without a first point."""
    plan = expected(plan, points=1)
    if not plan.trials:
        reason = plan.excluded[0].reason
        raise SpaceError(f"{plan.space.name}: no trial is left: {reason}; see `orchestrate plan`")


def _datasets(plan: Plan, trainings: Iterable[DenseConfig]) -> list[str]:
    """The names of the data sets that are needed; of a search that asks as it goes, all that it may."""
    searched = plan.space.search.method == "tpe"
    texts = plan.space.axes.dataset if searched else [training.dataset for training in trainings]
    return sorted({parse(text)[0] for text in texts})


def _check_data(datasets: Iterable[str]) -> None:
    for name in datasets:
        check(name)
