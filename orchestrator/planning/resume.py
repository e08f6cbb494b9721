"""Resume a plan: its record, the sweep it belongs to, and the runs that remain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from orchestrator.config import DenseConfig, EarlyStopping, TrialConfig
from orchestrator.errors import StoreError
from orchestrator.keys import STAGE_VERSIONS, non_default_numerics, non_default_recipe
from orchestrator.planning.expansion import Params, SampledPoint, expand
from orchestrator.planning.fingerprints import fingerprint_choices
from orchestrator.planning.plan import Exclusion, Plan, PlannedTrial, extended
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.planning.run_names import dense_name, trial_name, varied_axes
from orchestrator.space.space import select
from orchestrator.space.values import Choice, Range
from orchestrator.storage.manifest import sizes_match
from orchestrator.trial.params import amount_columns, params
from orchestrator.trial.recovery import mask_source_config
from orchestrator.trial.run import measured_rounds
from orchestrator.trial.task import PreviousTrial, Task, TaskResult

if TYPE_CHECKING:
    from orchestrator.tracking import RunRecord, Tracker


def plan_text(plan: Plan, *, stop: EarlyStopping | None = None) -> str:
    """Return plan.json: every trial's key and axes, exclusions with reasons, and how trials are stopped."""
    has_source_model = plan.space.source_model is not None
    rows = [
        {
            "key": trial.key,
            "dense_key": trial.config.dense.key(),
            **params(trial.config),
            **amount_columns(trial.config),
            **({"start": trial.config.dense.start} if has_source_model else {}),
            "requested_batch_size": trial.requested_batch_size,
        }
        for trial in plan.trials
    ]
    excluded = [
        {name: value for name, value in asdict(item).items() if value != ""} for item in plan.excluded
    ]
    stopping = {} if stop is None else {"stop": str(stop)}
    return dump_plan(rows, space=plan.space.name, excluded=excluded, **stopping, **_search_record(plan))


def _search_record(plan: Plan) -> dict[str, object]:
    """Return what plan.json records of a search; nothing for a grid."""
    search = plan.space.search
    if search.method == "grid":
        return {}
    return {
        "search": {
            "method": search.method,
            "objectives": dict(search.objectives),
            **({"constraints": dict(search.constraints)} if search.constraints else {}),
            "planned": len(plan.trials) if plan.exhausted else plan.space.points,
            "exhausted": plan.exhausted,
        },
        "asked": [{"params": dict(point.params), "keys": list(point.keys)} for point in plan.points],
    }


def _without_empty_constraints(search: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a search as they were before there were constraints, if it has none."""
    return {name: value for name, value in search.items() if name != "constraints" or value}


def identity(plan: Plan, *, stop: EarlyStopping | None = None) -> str:
    """Return the text that identifies a sweep: its plan or, for tpe, whose plan grows, what it samples from.

    The number of points is no part of it: a search with a larger number continues with the points it has.
    """
    space = plan.space
    if space.search.method != "tpe":
        return plan_text(plan, stop=stop)
    choices = {**space.choices(), **space.axes.options}
    content = {
        "version": STAGE_VERSIONS["trial"],
        "space": space.name,
        "search": {**_without_empty_constraints(space.search.model_dump()), "trials": None},
        "choices": _choices_record(choices),
        "train": non_default_recipe(space.train.model_dump()),
        "protect": space.protect,
        **({"only": space.only} if space.only else {}),
        **({"round_to": space.round_to} if space.round_to > 1 else {}),
        "exclude": [_choices_record(rule.non_empty()) for rule in space.exclude],
        "numerics": non_default_numerics(asdict(plan.numerics)),
        **({} if plan.gpu_bytes is None else {"gpu_bytes": plan.gpu_bytes}),
        "stop": str(stop),
        "ingredients": fingerprint_choices(
            {
                "train.augment": (space.train.augment,),
                "train.schedule": (space.train.schedule,),
                **space.choices(),
            }
        ),
        **({} if space.source_model is None else {"ancestor_sha256": space.source_model.sha256}),
    }
    return json.dumps(content, sort_keys=True)


def digest(plan: Plan, stop: EarlyStopping | None) -> str:
    """Return the SHA-256, in hex, of `identity`."""
    return hashlib.sha256(identity(plan, stop=stop).encode()).hexdigest()


def find_previous_sweep(tracker: Tracker, plan: Plan, stop: EarlyStopping | None) -> RunRecord | None:
    """Return the latest run of the same sweep; None where there is none."""
    query = f"tags.kind = 'sweep' and tags.plan_sha256 = '{digest(plan, stop)}'"
    return next(iter(tracker.search(query, everywhere=True)), None)


def _choices_record(choices: Mapping[str, Choice]) -> dict[str, object]:
    return {name: asdict(choice) if isinstance(choice, Range) else choice for name, choice in choices.items()}


def with_recorded_points(plan: Plan, tracker: Tracker, sweep: RunRecord | None) -> Plan:
    """Return the plan of a tpe search with the points that its sweep recorded; any other plan as it is.

    Raises StoreError where today's code gives the recorded points other keys.
    """
    if plan.space.search.method != "tpe" or sweep is None or not tracker.has_artifact(sweep, PLAN):
        return plan
    content = json.loads(tracker.read_text(sweep, PLAN))
    recorded = with_points_of(plan, content)
    if [list(point.keys) for point in recorded.points] != [point["keys"] for point in content["asked"]]:
        raise StoreError(f"the points of the sweep {content['space']} have other keys by today's code")
    return recorded


def with_points_of(plan: Plan, content: Mapping[str, Any]) -> Plan:
    """Return the plan of a search with the points of a plan.json, as today's code expands them."""
    samples = [_expand_point(plan, point["params"]) for point in content["asked"]]
    excluded = tuple(Exclusion(**item) for item in content["excluded"])
    empty = replace(plan, trials=(), dense=(), excluded=excluded, points=(), exhausted=False)
    return replace(extended(empty, samples), exhausted=bool(content["search"]["exhausted"]))


def _expand_point(plan: Plan, params: Params) -> SampledPoint:
    lists = select(plan.space, lambda name, choice: params[name])
    return SampledPoint(params, expand(plan.space, lists, plan.numerics, gpu_bytes=plan.gpu_bytes))


def remaining_tasks(
    plan: Plan, tracker: Tracker, *, retry_failed: bool, stop: EarlyStopping | None = None
) -> tuple[list[Task], int]:
    """Return the tasks to run, dense ones first, and how many trials of the plan need no run.

    A training that diverged is a result; it and the trials that depend on it run again only with
    `retry_failed`. A trial that was stopped needs no run where the same rule stops.
    """
    keys = {trial.key for trial in plan.trials} | {dense.key() for dense in plan.dense}
    done, diverged = set(_intact(tracker, tracker.find_all_finished(keys))), set[str]()
    if not retry_failed:
        diverged = {
            key for key, row in tracker.find_all_failed(keys - done).items() if row.tags.get("diverged")
        }
    done |= diverged | stopped_keys(tracker, keys - done, stop)
    todo = [t for t in plan.trials if t.key not in done and t.config.dense.key() not in diverged]
    dense_keys = {trial.config.dense.key() for trial in todo} - done
    varied = varied_axes(plan.space)
    dense = [
        Task(config.key(), dense_name(config, varied), config, tags=_source_tags(plan, config))
        for config in plan.dense
        if config.key() in dense_keys
    ]
    trials = [_trial_task(trial, varied, _source_tags(plan, trial.config.dense) or {}) for trial in todo]
    return [*dense, *order_by_mask_source(trials)], len(plan.trials) - len(todo)


def final_states(
    plan: Plan, tracker: Tracker, *, stop: EarlyStopping | None, open_keys: Collection[str]
) -> dict[str, TaskResult]:
    """Return key -> how a trial ended, for the trials that need no run; `open_keys` are those to run."""
    tasks = {trial.key: _trial_task(trial, (), {}) for trial in plan.trials if trial.key not in open_keys}
    finished, stopped = tracker.find_all_finished(tasks), stopped_keys(tracker, tasks, stop)
    return {
        key: TaskResult(task, finished[key].metrics)
        if key in finished
        else TaskResult(task, None, stopped=key in stopped)
        for key, task in tasks.items()
    }


def stopped_keys(tracker: Tracker, keys: Collection[str], stop: EarlyStopping | None) -> set[str]:
    """Return those of the keys whose trials the same rule stopped."""
    return set() if stop is None else set(tracker.find_all_stopped(keys, str(stop)))


def previous_trials(plan: Plan, tracker: Tracker, stop: EarlyStopping) -> Iterator[PreviousTrial]:
    """Yield the plan's trials in the store, finished or stopped by the same rule, with their rounds."""
    keys = {trial.key for trial in plan.trials}
    rows = {**tracker.find_all_stopped(keys, str(stop)), **tracker.find_all_finished(keys)}
    for trial in plan.trials:
        if row := rows.get(trial.key):
            table = json.loads(tracker.read_text(row, "rounds.json"))
            dense = {f"dense_{name}": row.metrics[f"ipa/{name}"] for name in ("val_accuracy", "pq_index")}
            dense["rounds"] = measured_rounds(trial.config)
            columns = (dict(zip(table["columns"], values, strict=True)) for values in table["data"])
            rounds = tuple({**c, **dense, "round": n} for n, c in enumerate(columns, start=1))
            yield PreviousTrial(trial.config, rounds, row.metrics.get("final/val_accuracy"))


def _intact(tracker: Tracker, finished: Mapping[str, RunRecord]) -> Iterator[str]:
    """Yield the keys of the runs whose files are as they were written; tag the others, which run again."""
    for key, row in finished.items():
        if sizes_match(tracker.local_folder(row, "model"), row.tags.get("manifest_sha256", "")):
            yield key
        else:
            tracker.set_tag(row.run_id, "invalid", "its files are not as they were written")


def order_by_mask_source(tasks: Sequence[Task]) -> Iterator[Task]:
    """Yield the tasks, each control as a child of the trial whose round masks it uses, if that runs too."""
    sources = {
        task.key: source.key()
        for task in tasks
        if isinstance(task.config, TrialConfig) and (source := mask_source_config(task.config)) is not None
    }
    source_keys = set(sources.values()) & {task.key for task in tasks}
    for task in tasks:
        source_key = sources.get(task.key)
        parent = source_key if source_key in source_keys else task.parent
        yield replace(task, parent=parent, saves_round_masks=task.key in source_keys)


def _source_tags(plan: Plan, config: DenseConfig) -> dict[str, str] | None:
    """Return the tag with the name of the source model that a run starts from; None without one."""
    source_model = plan.space.source_model
    return None if source_model is None or config.start == "scratch" else {"ancestor": source_model.name}


def _trial_task(trial: PlannedTrial, varied: Sequence[str], source_tags: Mapping[str, str]) -> Task:
    config = trial.config
    parent = config.dense.key()
    tags = {"dense_key": parent, "requested_batch_size": str(trial.requested_batch_size), **source_tags}
    return Task(trial.key, trial_name(config, varied), config, parent=parent, tags=tags)
