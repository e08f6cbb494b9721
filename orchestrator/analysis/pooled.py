"""Several sweeps and single runs in one table, each trial once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.column_types import typed
from orchestrator.analysis.pareto import earlier_networks
from orchestrator.analysis.results import at_end, find_sweep, is_at_chance, load_results
from orchestrator.config import DenseConfig, TrialConfig, dense_from_json
from orchestrator.errors import StoreError
from orchestrator.tracking import RunRecord, Tracker, open_store

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIG = "config.json"


def combine_sweeps(names: Sequence[str], *, uri: str) -> DataFrame:
    """`results` of sweeps (a space's name or a run id), dense runs and trials (a run id), one after another.

    StoreError, with near names, for what is none of them, and for a run without a result.
    """
    import pandas

    open_store(uri)
    known: dict[str, RunRecord] = {}  # asked for once, however many sweeps there are
    found = pandas.concat([_rows(Tracker(uri, name), name, known) for name in names], ignore_index=True)
    # A trial of two sweeps is one: counted twice, it would narrow the intervals.
    # One that a sweep stopped early may be whole in another.
    found = found.sort_values("status", key=lambda status: status != "finished", kind="stable")
    return typed(found.drop_duplicates("key", ignore_index=True))


def combine_earlier_networks(results: DataFrame, *, uri: str) -> DataFrame:
    """The networks of earlier rounds of these trials, as rows of `results`."""
    tracker = Tracker(uri, "")
    ids = set(results.loc[results["status"] == "finished", "run_id"])
    runs = [run for run in tracker.find_all_finished().values() if run.run_id in ids]
    return earlier_networks(results, runs, tracker)


def _rows(tracker: Tracker, name: str, known: dict[str, RunRecord]) -> DataFrame:
    """The table of one name; fills `known` with the store's finished runs once a sweep asks for them."""
    import pandas

    if len(name) == 32 and all(sign in "0123456789abcdef" for sign in name):
        run = tracker.get_run(name)
        if run.tags.get("kind") in ("dense", "trial"):
            return pandas.DataFrame([_one(tracker, run)])
    sweep = find_sweep(tracker, name)
    known.update({} if known else tracker.find_all_finished())
    return load_results(tracker, sweep, known=known).results


def _one(tracker: Tracker, run: RunRecord) -> dict[str, Any]:  # JSON, and what pandas makes of it
    """A single run as a row of `results`; a dense one is of the technique `dense`, amount 0."""
    from orchestrator.trial.params import amount_text, params

    if run.status != "FINISHED" or "key" not in run.tags:
        why = run.tags.get("stopped_because", run.tags.get("reason", "it has no key"))
        raise StoreError(f"run {run.run_id} is {run.status} and has no result to compare: {why}")
    content = json.loads(tracker.read_text(run, CONFIG))
    config: DenseConfig | TrialConfig
    own: dict[str, Any]
    if run.tags["kind"] == "trial":
        config = TrialConfig.from_json(content)
        dense, own = config.dense, {"amount_text": amount_text(config)}
    else:
        config = dense = dense_from_json(content)
        own = {"technique": "dense", "amount": 0.0, "amount_text": "0%"}
    asked = int(run.tags.get("requested_batch_size", dense.batch_size))
    facts: dict[str, Any] = {"status": "finished", "run_id": run.run_id, "reason": None}
    facts |= {"notes": run.tags.get("notes", ""), **at_end(run.tags)}
    facts["dense_at_chance"] = is_at_chance(tracker.find_all_finished([dense.key()]).get(dense.key()))
    keys = {"key": run.tags["key"], "dense_key": dense.key()}
    metrics = {name: value for name, value in run.metrics.items() if "/" in name}
    return {**keys, **params(config), "requested_batch_size": asked, **own, **facts, **metrics}
