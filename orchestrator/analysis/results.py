"""Results of a sweep: one row per planned trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.column_types import typed
from orchestrator.errors import StoreError, StoreUnavailableError, unknown_name
from orchestrator.planning.plan_file import PLAN, Record, load_planned_rows
from orchestrator.storage.locks import is_owner_alive
from orchestrator.storage.runs import RunRecord, Runs
from orchestrator.storage.uri import default_uri
from orchestrator.system.console import print_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.tracking import Tracker

EMPTY = ("key", "dense_key", "seed", "status", "run_id", "reason", "notes")
AT_CHANCE, NO_LIVING_WEIGHT = "at chance on validation", "no living weight"  # in the notes of a run


def find_sweep(tracker: Tracker, sweep: str, *, latest_of_any: bool = False) -> RunRecord:
    """The sweep of a run id, or the latest one of a space. StoreError, with near names, if there is none.

    A sweep that failed to start does not hide the one before it, and stderr says so; `latest_of_any`
    takes the latest that has a plan, whatever came of it.
    """
    from orchestrator.tracking import Tracker

    experiments = tracker.experiments()
    if sweep in experiments:
        own = Tracker(tracker.uri, sweep)
        rows = own.search("tags.kind = 'sweep'")
        if rows:
            return latest(own, rows, is_planned if latest_of_any else _has_results)
    elif len(sweep) == 32 and all(c in "0123456789abcdef" for c in sweep):
        row = tracker.get_run(sweep)
        if row.tags.get("kind") == "sweep":
            return row
        raise StoreError(f"run {sweep} is a {row.tags.get('kind', 'foreign run')}, not a sweep")
    raise StoreError(
        f"{unknown_name('sweep', sweep, set(experiments) - {'Default'})}; `orchestrate sweep` runs one"
    )


def latest(
    tracker: Tracker, rows: Sequence[RunRecord], is_fit: Callable[[Tracker, RunRecord], bool]
) -> RunRecord:
    """The first of these, the newest first, that is fit; the newest where none is."""
    row = next((row for row in rows if is_fit(tracker, row)), rows[0])
    if row is not rows[0]:
        newer = rows.index(row)
        print_line(
            f"{rows[0].name}: the latest sweep, {rows[0].run_id}, failed to start and has no results; "
            f"this is {row.run_id}, {newer} before it",
            error=True,
        )
    return row


def is_planned(tracker: Runs, sweep: RunRecord) -> bool:
    """Whether a sweep got as far as its plan."""
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
    """Whether any trial of its plan has ended, by whichever sweep; or may still, where it is at work."""
    if not is_planned(tracker, sweep):
        return False
    if sweep.status == "FINISHED":
        return True
    if sweep.status == "RUNNING" and is_owner_alive(sweep.tags.get("owner", "")):
        return True
    return bool((load_results(tracker, sweep).results["status"] != "missing").any())


def results(sweep: str, *, uri: str | None = None) -> DataFrame:
    """One row per planned trial of a sweep: its axes, `status`, `run_id`, and every metric by its name.

    `sweep` is a space's name (its latest sweep) or a sweep's run id. `status` is finished, stopped,
    failed or missing; `reason` says why a trial was stopped or failed. StoreError if there is no such sweep.
    """
    from orchestrator.tracking import open_store

    tracker = open_store(default_uri(Path.cwd(), uri), sweep)
    return results_frame(tracker, find_sweep(tracker, sweep))


@dataclass(frozen=True, eq=False)
class SweepResults:
    """A sweep's plan, `results` of it, and its runs by key: the finished, with the dense; the stopped."""

    plan: Record
    results: DataFrame
    runs: Mapping[str, RunRecord]
    stopped: Mapping[str, RunRecord] = field(default_factory=dict)


def results_frame(tracker: Runs, sweep: RunRecord) -> DataFrame:
    """`results` for a sweep that was found already."""
    return load_results(tracker, sweep).results


def load_results(
    tracker: Runs, sweep: RunRecord, *, known: Mapping[str, RunRecord] | None = None
) -> SweepResults:
    """The plan of a sweep with the runs that hold its keys; the store is asked once for each way to end.

    `known` are all its finished runs, where they have been asked for already.
    """
    import pandas

    plan = tracker.read_text(sweep, PLAN)
    rows = load_planned_rows(plan)
    keys = {row["key"] for row in rows} | {row["dense_key"] for row in rows}
    finished = tracker.find_all_finished(keys) if known is None else {k: known[k] for k in keys if k in known}
    stop = json.loads(plan).get("stop")
    stopped = {} if stop is None else tracker.find_all_stopped(keys - set(finished), stop)
    failed = tracker.find_all_failed(keys - set(finished) - set(stopped))
    table = []
    for row in rows:
        done = finished.get(row["key"])
        early = stopped.get(row["key"])
        run = done or early or failed.get(row["key"])
        parent = failed.get(row["dense_key"])
        facts = {
            "status": "finished"
            if done
            else "stopped"
            if early
            else "failed"
            if run or parent
            else "missing",
            "run_id": run.run_id if run else None,
            "reason": _reason(run, parent),
            "notes": run.tags.get("notes", "") if run else "",
            **at_end(run.tags if run else {}),
            "dense_at_chance": is_at_chance(finished.get(row["dense_key"])),
        }
        # Names without a group belong to rounds: their last values stand under final/, too.
        metrics = {name: value for name, value in done.metrics.items() if "/" in name} if done else {}
        table.append({**row, **facts, **metrics})
    # A search that was interrupted before its first point has no rows, and all the same columns.
    results = typed(pandas.DataFrame(table, columns=None if table else EMPTY))
    about = json.loads(plan)
    results.attrs["objectives"] = about.get("search", {}).get("objectives", {})
    results.attrs["excluded"] = about.get("excluded", [])
    return SweepResults(about, results, finished, stopped)


def at_end(tags: Mapping[str, str]) -> dict[str, bool]:
    """What is wrong with the network that a run ended with; of older runs, with that of any round."""
    notes = tags.get("notes_at_end", tags.get("notes", ""))
    return {"at_chance": AT_CHANCE in notes, "empty_layers": NO_LIVING_WEIGHT in notes}


def is_at_chance(dense: RunRecord | None) -> bool:
    """Whether a dense network, where it is known, does no better than chance."""
    return dense is not None and at_end(dense.tags)["at_chance"]


def _reason(run: RunRecord | None, parent: RunRecord | None) -> str | None:
    if run is None and parent is not None:
        return f"its dense network failed: {parent.tags.get('reason')}"
    return run.tags.get("stopped_because", run.tags.get("reason")) if run else None


def rounds(sweep: str, *, uri: str | None = None) -> DataFrame:
    """One row per round of every finished or stopped trial: its row of `results`, and what was measured.

    Its number is `round`; the measurements bear plain names, `accuracy`, `sparsity`, `pq_index`, ...
    """
    import pandas

    from orchestrator.tracking import open_store

    tracker = open_store(default_uri(Path.cwd(), uri), sweep)
    trials = results_frame(tracker, find_sweep(tracker, sweep))
    table = []
    for trial in trials[trials["status"].isin(("finished", "stopped"))].to_dict("records"):
        measured = json.loads(tracker.read_text(tracker.get_run(trial["run_id"]), "rounds.json"))
        axes = {name: value for name, value in trial.items() if "/" not in str(name)}
        for number, row in enumerate(measured["data"], start=1):
            table.append({**axes, "round": number, **dict(zip(measured["columns"], row, strict=True))})
    return pandas.DataFrame(table)
