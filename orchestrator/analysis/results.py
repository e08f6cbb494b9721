"""Results of sweeps as a frame: a sweep's plan joined with its runs, one row per planned trial."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.pareto import ROUNDS, earlier_networks
from orchestrator.config import DenseConfig, TrialConfig, dense_from_json
from orchestrator.errors import StoreError, StoreUnavailableError, unknown_name
from orchestrator.planning.plan_file import PLAN, Record, load_planned_rows
from orchestrator.storage.locks import is_owner_alive
from orchestrator.storage.runs import RunRecord, Runs, newest_first
from orchestrator.storage.uri import default_uri
from orchestrator.system.console import print_line

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from orchestrator.tracking import Tracker

CONFIG = "config.json"
RUN_ID = re.compile("[0-9a-f]{32}")
EMPTY = ("key", "dense_key", "seed", "status", "run_id", "reason", "notes")
AT_CHANCE, NO_LIVING_WEIGHT = "at chance on validation", "no living weight"  # in the notes of a run


def find_sweep(tracker: Tracker, sweep: str, *, latest_of_any: bool = False) -> RunRecord:
    """Return the sweep of a run id, or the latest of a space; StoreError, with near names, if there is none.

    A latest sweep that failed to start is passed over, and stderr says so; `latest_of_any` takes the latest
    with a plan, whether or not it has results.
    """
    from orchestrator.tracking import Tracker

    experiments = tracker.experiments()
    if Path(sweep).suffix in (".yaml", ".yml") and Path(sweep).stem in experiments:
        sweep = Path(sweep).stem  # a space's file, as `plan` and `sweep` take it
    if sweep in experiments:
        experiment = Tracker(tracker.uri, sweep)
        rows = newest_first(experiment.search("tags.kind = 'sweep'"))
        if rows:
            return latest(experiment, rows, is_planned if latest_of_any else _has_results)
    elif RUN_ID.fullmatch(sweep):
        row = tracker.get_run(sweep)
        if row.tags.get("kind") == "sweep":
            return row
        raise StoreError(f"run {sweep} is a {row.tags.get('kind', 'foreign run')}, not a sweep")
    raise StoreError(
        f"{unknown_name('sweep', sweep, set(experiments) - {'Default'})}; `orchestrate sweep` runs one"
    )


def latest(
    tracker: Tracker, rows: Sequence[RunRecord], is_usable: Callable[[Tracker, RunRecord], bool]
) -> RunRecord:
    """Return the first usable sweep of `rows`, which start with the newest; the newest if none is usable."""
    row = next((row for row in rows if is_usable(tracker, row)), rows[0])
    if row is not rows[0]:
        newer = rows.index(row)
        print_line(
            f"{rows[0].name}: the latest sweep, {rows[0].run_id}, failed to start and has no results; "
            f"this is {row.run_id}, {newer} before it",
            error=True,
        )
    return row


def is_planned(tracker: Runs, sweep: RunRecord) -> bool:
    """Return whether a sweep got as far as its plan."""
    if sweep.status == "FINISHED":
        return True
    try:
        tracker.read_text(sweep, PLAN)
    except StoreUnavailableError:
        raise
    except StoreError:
        return False
    return True


def _has_results(tracker: Tracker, sweep: RunRecord) -> bool:
    """Whether any trial of its plan has ended, in this sweep or another, or may yet: the sweep is running."""
    if not is_planned(tracker, sweep):
        return False
    if sweep.status == "FINISHED":
        return True
    if sweep.status == "RUNNING" and is_owner_alive(sweep.tags.get("owner", "")):
        return True
    return bool((load_results(tracker, sweep).results["status"] != "missing").any())


def results(sweep: str, *, uri: str | None = None) -> DataFrame:
    """Return one row per planned trial of a sweep: its axes, `status`, `run_id`, and every metric.

    `sweep` is a space's name (its latest sweep) or a sweep's run id. `status` is finished, stopped, failed or
    missing; `reason` says why a trial was stopped or failed. Raises StoreError if there is no such sweep.
    """
    from orchestrator.tracking import open_store

    tracker = open_store(default_uri(Path.cwd(), uri), sweep)
    return results_frame(tracker, find_sweep(tracker, sweep))


@dataclass(frozen=True, eq=False)
class SweepResults:
    """A sweep's plan, its `results`, and by key its finished runs (dense ones too) and stopped runs."""

    plan: Record
    results: DataFrame
    runs: Mapping[str, RunRecord]
    stopped: Mapping[str, RunRecord] = field(default_factory=dict)


def results_frame(tracker: Runs, sweep: RunRecord) -> DataFrame:
    """Return the `results` of a sweep given as its run."""
    return load_results(tracker, sweep).results


def load_results(
    tracker: Runs, sweep: RunRecord, *, all_finished: Mapping[str, RunRecord] | None = None
) -> SweepResults:
    """Return the plan of a sweep joined with the runs of its keys; one query of the store for each status.

    `all_finished` are the finished runs of the whole store by key, if the caller has them.
    """
    import pandas

    plan = tracker.read_text(sweep, PLAN)
    content, rows = json.loads(plan), load_planned_rows(plan)
    keys = {row["key"] for row in rows} | {row["dense_key"] for row in rows}
    if all_finished is None:
        finished = tracker.find_all_finished(keys)
    else:
        finished = {key: all_finished[key] for key in keys if key in all_finished}
    stop = content.get("stop")
    stopped = {} if stop is None else tracker.find_all_stopped(keys - set(finished), stop)
    failed = tracker.find_all_failed(keys - set(finished) - set(stopped))
    table = []
    for row in rows:
        key, dense_key = row["key"], row["dense_key"]
        statuses = {"finished": finished, "stopped": stopped, "failed": failed}
        status = next((status for status, runs in statuses.items() if key in runs), None)
        run, failed_dense = statuses[status][key] if status else None, failed.get(dense_key)
        reason = run.tags.get("stopped_because", run.tags.get("reason")) if run else None
        if run is None and failed_dense is not None:
            status, reason = "failed", f"its dense network failed: {failed_dense.tags.get('reason')}"
        facts = {
            "status": status or "missing",
            "run_id": run.run_id if run else None,
            "reason": reason,
            "notes": run.tags.get("notes", "") if run else "",
            **_defects(run.tags if run else {}),
            "dense_at_chance": _is_at_chance(finished.get(dense_key)),
        }
        # Names without a group belong to rounds: their last values are under final/, too.
        metrics = run.metrics.items() if run and status == "finished" else ()
        table.append({**row, **facts, **{name: value for name, value in metrics if "/" in name}})
    # A search that was interrupted before its first point has no rows, and all the same columns.
    results = with_typed_columns(pandas.DataFrame(table, columns=None if table else EMPTY))
    results.attrs["objectives"] = content.get("search", {}).get("objectives", {})
    results.attrs["excluded"] = content.get("excluded", [])
    return SweepResults(content, results, finished, stopped)


def _defects(tags: Mapping[str, str]) -> dict[str, bool]:
    """What is wrong with the network that a run ended with; of older runs, with that of any round."""
    notes = tags.get("notes_at_end", tags.get("notes", ""))
    return {"at_chance": AT_CHANCE in notes, "empty_layers": NO_LIVING_WEIGHT in notes}


def _is_at_chance(dense: RunRecord | None) -> bool:
    return dense is not None and _defects(dense.tags)["at_chance"]


def rounds(sweep: str, *, uri: str | None = None) -> DataFrame:
    """Return one row per round of every finished or stopped trial: its row of `results` and measurements.

    Rounds are numbered from 1 in `round`; measurements have plain names: `accuracy`, `sparsity`, `pq_index`.
    """
    import pandas

    from orchestrator.tracking import open_store

    tracker = open_store(default_uri(Path.cwd(), uri), sweep)
    trials = results_frame(tracker, find_sweep(tracker, sweep))
    table = []
    for trial in trials[trials["status"].isin(("finished", "stopped"))].to_dict("records"):
        measured = json.loads(tracker.read_text(tracker.get_run(trial["run_id"]), ROUNDS))
        axes = {name: value for name, value in trial.items() if "/" not in str(name)}
        for number, row in enumerate(measured["data"], start=1):
            table.append({**axes, "round": number, **dict(zip(measured["columns"], row, strict=True))})
    return pandas.DataFrame(table)


def combine_sweeps(names: Sequence[str], *, uri: str) -> DataFrame:
    """Return the `results` of sweeps (a space's name or a run id), dense runs and trials (a run id) together.

    Every trial is there once. Raises StoreError, with near names, for an unknown name, and for a run without
    a result.
    """
    import pandas

    from orchestrator.tracking import Tracker, open_store

    open_store(uri)
    finished: dict[str, RunRecord] = {}  # of the whole store, filled once a sweep needs them
    frames = []
    for name in names:
        tracker = Tracker(uri, name)
        run = tracker.get_run(name) if RUN_ID.fullmatch(name) else None
        if run is not None and run.tags.get("kind") in ("dense", "trial"):
            frames.append(pandas.DataFrame([_row_of_run(tracker, run)]))
            continue
        sweep = find_sweep(tracker, name)
        finished = finished or dict(tracker.find_all_finished())
        frames.append(load_results(tracker, sweep, all_finished=finished).results)
    # A trial of two sweeps counts once: twice, it would narrow the intervals. One that a sweep stopped early
    # may be finished in another.
    rows = pandas.concat(frames, ignore_index=True)
    rows = rows.sort_values("status", key=lambda status: status != "finished", kind="stable")
    return with_typed_columns(rows.drop_duplicates("key", ignore_index=True))


def combine_earlier_networks(results: DataFrame, *, uri: str) -> DataFrame:
    """Return the networks of earlier rounds of these trials, as rows of `results`."""
    from orchestrator.tracking import Tracker

    tracker = Tracker(uri, "")
    ids = set(results.loc[results["status"] == "finished", "run_id"])
    runs = [run for run in tracker.find_all_finished().values() if run.run_id in ids]
    return earlier_networks(results, runs, tracker)


def _row_of_run(tracker: Tracker, run: RunRecord) -> dict[str, Any]:  # JSON values
    """A single run as a row of `results`; a dense one has the technique `dense` and amount 0."""
    from orchestrator.trial.params import amount_columns, params

    if run.status != "FINISHED" or "key" not in run.tags:
        reason = run.tags.get("stopped_because", run.tags.get("reason", "it has no key"))
        raise StoreError(f"run {run.run_id} is {run.status} and has no result to compare: {reason}")
    content = json.loads(tracker.read_text(run, CONFIG))
    config: DenseConfig | TrialConfig
    amount: dict[str, Any]
    if run.tags["kind"] == "trial":
        config = TrialConfig.from_json(content)
        dense, amount = config.dense, amount_columns(config)
    else:
        config = dense = dense_from_json(content)
        amount = {"technique": "dense", "amount": 0.0, "amount_text": "0%"}
    batch_size = int(run.tags.get("requested_batch_size", dense.batch_size))
    facts: dict[str, Any] = {"status": "finished", "run_id": run.run_id, "reason": None}
    facts |= {"notes": run.tags.get("notes", ""), **_defects(run.tags)}
    facts["dense_at_chance"] = _is_at_chance(tracker.find_all_finished([dense.key()]).get(dense.key()))
    keys = {"key": run.tags["key"], "dense_key": dense.key()}
    metrics = {name: value for name, value in run.metrics.items() if "/" in name}
    return {**keys, **params(config), "requested_batch_size": batch_size, **amount, **facts, **metrics}


def with_typed_columns(results: DataFrame) -> DataFrame:
    """Convert the texts in the columns of options, as `schedule.p`, to numbers and booleans, in place.

    A missing value is NaN. Only a column without texts gets a number's dtype.
    """
    for name in [str(column) for column in results.columns if "." in str(column) and "/" not in str(column)]:
        if results[name].dtype == object or str(results[name].dtype) in ("str", "string"):
            results[name] = _typed(results[name])
    return results


def _typed(column: Series[Any]) -> Series[Any]:  # texts, numbers and booleans
    import pandas

    values = [_value(value) for value in column]
    return pandas.Series(values, index=column.index, dtype=object).infer_objects()


def _value(text: object) -> object:
    if text is None or text == "None":
        return nan
    if not isinstance(text, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float)) else text
