"""Pareto fronts of accuracy against a cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.intervals import Interval, IntervalMethod, interval
from orchestrator.analysis.notes import marks
from orchestrator.analysis.settings import (
    NETWORK,
    amount_label,
    distinguishing_columns,
    method_label,
    settings,
)
from orchestrator.errors import StoreError

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.storage.runs import RunRecord, Runs


ROUNDS = "rounds.json"
ONE_ROUND = "one_shot"


def earlier_networks(trials: DataFrame, runs: Iterable[RunRecord], tracker: Runs) -> DataFrame:
    """The networks of finished trials after every round but the last, as rows of `results`.

    What was measured of a round stands under `final/`, in place of the trial's own. `runs` hold the
    files; trials of one round are not looked at.
    """
    import pandas

    several = trials[trials["status"] == "finished"]
    if "schedule" in several:
        several = several[~several["schedule"].astype(str).str.startswith(ONE_ROUND)]
    by_id = {run.run_id: run for run in runs}
    table: list[dict[str, Any]] = []  # what pandas makes of JSON
    for trial in several.to_dict("records"):
        run = by_id.get(trial["run_id"])
        if run is not None:
            table += _earlier({str(name): value for name, value in trial.items()}, run, tracker)
    return pandas.DataFrame(table)


def _earlier(trial: dict[str, Any], run: RunRecord, tracker: Runs) -> Iterable[dict[str, Any]]:
    try:
        measured = json.loads(tracker.read_text(run, ROUNDS))
    except StoreError:  # an artifact that is gone: the end of the trial still counts
        return
    for row in measured["data"][:-1]:
        names = dict(zip(measured["columns"], row, strict=True))
        yield {**trial, **{f"final/{name}": value for name, value in names.items()}}


@dataclass(frozen=True)
class Cost:
    """The columns that tell what a network costs, pruned and dense, and what that is."""

    pruned: str
    dense: str
    about: str


COSTS = {  # by what --pareto says
    "macs": Cost(
        "final/macs_effective", "ipa/macs_effective", "MACs that a machine which skips dead weights would do"
    ),
    "bytes": Cost(
        "final/bytes_sparse",
        "ipa/bytes_sparse",
        "bytes of the living weights and one bit per entry of a masked tensor",
    ),
    "latency": Cost(
        "final/latency_ms_p50", "latency/dense_ms_p50", "measured milliseconds of one image, the median"
    ),
    "parameters": Cost("final/parameters_nonzero", "ipa/parameters_nonzero", "living parameters"),
}


@dataclass(frozen=True)
class Candidate:
    """A setting, or a dense network: means over seeds, and whether it is on the front of its data set."""

    setting: Mapping[str, object]
    network: str
    method: str
    amount: float | None  # None for a dense network
    cost: float
    val_accuracy: float
    accuracy: Interval
    on_front: bool = False
    amount_text: str = ""
    marks: str = ""


def members(found: Sequence[Candidate]) -> list[Candidate]:
    """The front of each data set, cheapest first; what is equal to a dense network on it is left out."""
    order = list(dict.fromkeys(one.setting["dataset"] for one in found))
    chosen = [one for one in found if one.on_front]
    dense = {_result(one) for one in chosen if one.amount is None}
    own = [one for one in chosen if one.amount is None or _result(one) not in dense]
    return sorted(own, key=lambda one: (order.index(one.setting["dataset"]), one.cost))


def _result(one: Candidate) -> tuple[object, ...]:
    return one.setting["dataset"], one.cost, one.val_accuracy, one.accuracy.mean


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Whether each point is on the front: low cost, high gain. Equal points are on it together."""
    order = sorted(range(len(costs)), key=lambda n: (costs[n], -gains[n]))
    member, best = [False] * len(costs), float("-inf")
    for _, tied in groupby(order, key=lambda n: costs[n]):
        same_cost = list(tied)
        top = gains[same_cost[0]]
        if top > best:
            best = top
            for number in same_cost:
                member[number] = gains[number] == top
    return member


def candidates(results: DataFrame, cost: str, *, how: IntervalMethod = "t") -> list[Candidate]:
    """Every setting and dense network whose cost was measured, data set by data set, in the plan's order.

    `cost` is a key of COSTS. Costs of a dense network are those of the unpruned model.
    """
    columns = COSTS[cost]
    if columns.pruned not in results:
        return []
    found = [*_dense(results, columns.dense, how), *_pruned(results, columns.pruned, how)]
    ranked = []
    for dataset in dict.fromkeys(one.setting["dataset"] for one in found):
        mine = [one for one in found if one.setting["dataset"] == dataset]
        chosen = front([one.cost for one in mine], [one.val_accuracy for one in mine])
        ranked += [replace(one, on_front=is_on) for one, is_on in zip(mine, chosen, strict=True)]
    return ranked


def _pruned(results: DataFrame, column: str, how: IntervalMethod) -> list[Candidate]:
    return [
        Candidate(
            setting,
            _network(setting),
            method_label(setting),
            float(str(setting["amount"])),
            float(rows[column].mean()),
            float(rows["final/val_accuracy"].mean()),
            interval(rows["final/accuracy"].tolist(), how=how),
            amount_text=amount_label(rows),
            marks=marks(rows),
        )
        for setting, rows in settings(results)
        if rows[column].notna().all()
    ]


def _dense(results: DataFrame, column: str, how: IntervalMethod) -> list[Candidate]:
    """The dense networks behind the trials, each training once, over seeds."""
    finished = results[results["status"] == "finished"]
    if column not in finished or finished.empty:
        return []
    recipe = [c for c in finished.columns if c.startswith(("model.", "train.", "numerics."))]
    columns = distinguishing_columns(finished, NETWORK, recipe)
    known = finished[finished[column].notna()].drop_duplicates("dense_key")
    found = []
    for values, rows in known.groupby(columns, sort=False, dropna=False):
        setting = dict(zip(columns, values, strict=True))
        found.append(
            Candidate(
                setting,
                _network(setting),
                "dense" if len(columns) == len(NETWORK) else f"dense, {method_label(setting)}",
                None,
                float(rows[column].mean()),
                float(rows["ipa/val_accuracy"].mean()),
                interval(rows["ipa/accuracy"].tolist(), how=how),
            )
        )
    return found


def _network(setting: Mapping[str, object]) -> str:
    return f"{setting['model']}, batch {setting['batch_size']}"


def cost_text(cost: str, value: float) -> str:
    return f"{value:.3g}" if cost == "latency" else f"{value:,.0f}"
