"""What is left of a plan, given what the store holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from orchestrator.config import STAGE_VERSION, DenseConfig, EarlyStopping, TrialConfig, non_default_recipe
from orchestrator.errors import StoreError
from orchestrator.planning.choices import select
from orchestrator.planning.expansion import Params, SampledPoint, expand
from orchestrator.planning.fingerprints import fingerprint_choices
from orchestrator.planning.plan import Exclusion, Plan, PlannedTrial, extended
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.planning.run_names import dense_name, trial_name, varied_axes
from orchestrator.space.values import Choice, Range
from orchestrator.storage.manifest import sizes_match
from orchestrator.trial.params import amount_text, params
from orchestrator.trial.recovery import mask_source_config
from orchestrator.trial.run import measured_rounds
from orchestrator.trial.task import FinalState, PreviousTrial, Task

if TYPE_CHECKING:
    from orchestrator.tracking import RunRecord, Tracker


def plan_text(plan: Plan, *, stop: EarlyStopping | None = None) -> str:
    """The plan's record: every trial's key and axes, what was left out and why, how trials are stopped."""
    transferred = plan.space.ancestor is not None
    rows = [
        {
            "key": trial.key,
            "dense_key": trial.config.dense.key(),
            **params(trial.config),
            "amount_text": amount_text(trial.config),
            **({"start": trial.config.dense.start} if transferred else {}),
            "requested_batch_size": trial.requested_batch_size,
        }
        for trial in plan.trials
    ]
    excluded = [
        {name: value for name, value in asdict(item).items() if value != ""} for item in plan.excluded
    ]
    early = {} if stop is None else {"stop": str(stop)}
    return dump_plan(rows, space=plan.space.name, excluded=excluded, **early, **_search(plan))


def _search(plan: Plan) -> dict[str, object]:
    """What a record says of a search; nothing for a grid."""
    search = plan.space.search
    if search.method == "grid":
        return {}
    return {
        "search": {
            "method": search.method,
            "objectives": dict(search.objectives),
            "planned": len(plan.trials) if plan.exhausted else plan.space.points,
            "exhausted": plan.exhausted,
        },
        "asked": [{"params": dict(point.params), "keys": list(point.keys)} for point in plan.asked],
    }


def identity(plan: Plan, *, stop: EarlyStopping | None = None) -> str:
    """What a sweep is known by: its plan, or, where that grows while it runs, what it is drawn from.

    How many points are asked for is no part of that: a search that is to find more goes on with those it has.
    """
    space = plan.space
    if space.search.method != "tpe":
        return plan_text(plan, stop=stop)
    choices = {**space.choices(), **space.axes.options}
    said = {
        "version": STAGE_VERSION,
        "space": space.name,
        "search": {**space.search.model_dump(), "trials": None},
        "choices": _plain(choices),
        "train": non_default_recipe(space.train.model_dump()),
        "protect": space.protect,
        "exclude": [_plain(rule.non_empty()) for rule in space.exclude],
        "numerics": asdict(plan.numerics),
        "stop": str(stop),
        "ingredients": fingerprint_choices(space.choices()),
        **({} if space.ancestor is None else {"ancestor_sha256": space.ancestor.sha256}),
    }
    return json.dumps(said, sort_keys=True)


def digest(plan: Plan, stop: EarlyStopping | None) -> str:
    """SHA-256, in hex, of what a sweep is known by."""
    return hashlib.sha256(identity(plan, stop=stop).encode()).hexdigest()


def sweep_before(tracker: Tracker, plan: Plan, stop: EarlyStopping | None) -> RunRecord | None:
    """The run of the same sweep, if there was one."""
    query = f"tags.kind = 'sweep' and tags.plan_sha256 = '{digest(plan, stop)}'"
    return next(iter(tracker.search(query, everywhere=True)), None)


def _plain(choices: Mapping[str, Choice]) -> dict[str, object]:
    return {name: asdict(one) if isinstance(one, Range) else one for name, one in choices.items()}


def with_recorded_points(plan: Plan, tracker: Tracker, sweep: RunRecord | None) -> Plan:
    """The plan of a search with the points that its sweep has asked for already; any other plan as it is.

    StoreError where the sweep's record is of other code.
    """
    empty = replace(plan, trials=(), dense=(), excluded=(), asked=(), exhausted=False)
    if plan.space.search.method != "tpe" or sweep is None or not tracker.has(sweep, PLAN):
        return plan
    return _regrown(empty, json.loads(tracker.read_text(sweep, PLAN)))


def _regrown(plan: Plan, content: Mapping[str, Any]) -> Plan:  # JSON
    draws = [_draw(plan, asked["params"]) for asked in content["asked"]]
    keys = [[trial.key for trial in draw.expansion.trials] for draw in draws if draw.expansion]
    if keys != [asked["keys"] for asked in content["asked"]]:
        raise StoreError(f"the points of the sweep {content['space']} have other keys by today's code")
    excluded = tuple(Exclusion(**item) for item in content["excluded"])
    whole = extended(replace(plan, excluded=excluded), draws)
    return replace(whole, exhausted=bool(content["search"]["exhausted"]))


def _draw(plan: Plan, params: Params) -> SampledPoint:
    lists = select(plan.space, lambda name, choice: params[name])
    return SampledPoint(params, expand(plan.space, lists, plan.numerics))


def remaining_tasks(
    plan: Plan, tracker: Tracker, *, retry_failed: bool, stop: EarlyStopping | None = None
) -> tuple[list[Task], int]:
    """The points to run, dense ones first, and how many trials of the plan need no run.

    A training that diverged is a result; it and what waits for it run again only with `retry_failed`.
    A trial that was stopped needs no run where the same rule stops.
    """
    keys = {trial.key for trial in plan.trials} | {dense.key() for dense in plan.dense}
    done, diverged = set(_whole(tracker, tracker.find_all_finished(keys))), set[str]()
    if not retry_failed:
        diverged = {
            key for key, row in tracker.find_all_failed(keys - done).items() if row.tags.get("diverged")
        }
    done |= diverged | stopped_keys(tracker, keys - done, stop)
    todo = [t for t in plan.trials if t.key not in done and t.config.dense.key() not in diverged]
    parents = {trial.config.dense.key() for trial in todo} - done
    varied = varied_axes(plan.space)
    dense = [
        Task(config.key(), dense_name(config, varied), config, tags=_descent(plan, config))
        for config in plan.dense
        if config.key() in parents
    ]
    trials = (_trial_point(trial, varied, _descent(plan, trial.config.dense) or {}) for trial in todo)
    return [*dense, *order_by_mask_source(list(trials))], len(plan.trials) - len(todo)


def final_states(
    plan: Plan, tracker: Tracker, *, stop: EarlyStopping | None, open_keys: Collection[str]
) -> dict[str, FinalState]:
    """How the trials of the plan ended that need no run, by their keys; `open_keys` are those to run."""
    keys = {trial.key for trial in plan.trials} - set(open_keys)
    finished, stopped = tracker.find_all_finished(keys), stopped_keys(tracker, keys, stop)
    found = {key: FinalState("stopped" if key in stopped else "failed", {}) for key in keys}
    return found | {key: FinalState("complete", row.metrics) for key, row in finished.items()}


def stopped_keys(tracker: Tracker, keys: Collection[str], stop: EarlyStopping | None) -> set[str]:
    return set() if stop is None else set(tracker.find_all_stopped(keys, str(stop)))


def past_trials(plan: Plan, tracker: Tracker, stop: EarlyStopping) -> Iterator[PreviousTrial]:
    """The trials of the plan that are in the store, whole or stopped by the same rule, round by round."""
    keys = {trial.key for trial in plan.trials}
    rows = {**tracker.find_all_stopped(keys, str(stop)), **tracker.find_all_finished(keys)}
    for trial in plan.trials:
        if row := rows.get(trial.key):
            table = json.loads(tracker.read_text(row, "rounds.json"))
            dense = {f"dense_{name}": row.metrics[f"ipa/{name}"] for name in ("val_accuracy", "pq_index")}
            dense["rounds"] = measured_rounds(trial.config)
            measured = (dict(zip(table["columns"], line, strict=True)) for line in table["data"])
            rounds = tuple({**m, **dense, "round": n} for n, m in enumerate(measured, start=1))
            yield PreviousTrial(trial.config, rounds, row.metrics.get("final/val_accuracy"))


def _whole(tracker: Tracker, finished: Mapping[str, RunRecord]) -> Iterator[str]:
    """Keys of the runs whose files are there as they were written; others are tagged, to be done anew."""
    for key, row in finished.items():
        if sizes_match(tracker.local_folder(row, "model"), row.tags.get("manifest_sha256", "")):
            yield key
        else:
            tracker.set_tag(row.run_id, "invalid", "its files are not as they were written")


def order_by_mask_source(points: Sequence[Task]) -> Iterator[Task]:
    """The same points, the controls among them after those along whose rounds they go."""
    leader = {point.key: led.key() for point in points if (led := _leader_of(point)) is not None}
    leads = set(leader.values()) & {point.key for point in points}
    for point in points:
        first = leader.get(point.key)
        parent = first if first in leads else point.parent
        yield replace(point, parent=parent, saves_round_masks=point.key in leads)


def _leader_of(point: Task) -> TrialConfig | None:
    return mask_source_config(point.config) if isinstance(point.config, TrialConfig) else None


def _descent(plan: Plan, config: DenseConfig) -> dict[str, str] | None:
    """The tag of a run that starts from an ancestor: which one, by its name."""
    ancestor = plan.space.ancestor
    return None if ancestor is None or config.start == "scratch" else {"ancestor": ancestor.name}


def _trial_point(trial: PlannedTrial, varied: Sequence[str], descent: Mapping[str, str]) -> Task:
    config = trial.config
    parent = config.dense.key()
    tags = {"dense_key": parent, "requested_batch_size": str(trial.requested_batch_size), **descent}
    return Task(trial.key, trial_name(config, varied), config, parent=parent, tags=tags)
