"""Pareto fronts of accuracy against a cost."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
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
from orchestrator.errors import StoreError, UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.storage.runs import RunRecord, Runs


ROUNDS = "rounds.json"
ONE_ROUND = "one_shot"


def earlier_networks(trials: DataFrame, runs: Iterable[RunRecord], tracker: Runs) -> DataFrame:
    """Return the networks of finished trials after every round but the last, as rows of `results`.

    A round's measurements replace the trial's own under `final/`. `runs` hold the files; trials of a single
    round are skipped.
    """
    import pandas

    several = trials[trials["status"] == "finished"]
    if "schedule" in several:
        several = several[~several["schedule"].astype(str).str.startswith(ONE_ROUND)]
    by_id = {run.run_id: run for run in runs}
    networks: list[dict[Hashable, Any]] = []  # JSON values
    for trial in several.to_dict("records"):
        if (run := by_id.get(trial["run_id"])) is None:
            continue
        try:
            measured = json.loads(tracker.read_text(run, ROUNDS))
        except StoreError:  # the artifact is missing: the end of the trial still counts
            continue
        columns = [f"final/{name}" for name in measured["columns"]]
        for row in measured["data"][:-1]:
            networks.append({**trial, **dict(zip(columns, row, strict=True))})
    return pandas.DataFrame(networks)


@dataclass(frozen=True)
class Cost:
    """The columns with the cost of pruned and of dense networks, and what the cost is."""

    pruned: str
    dense: str
    about: str


COSTS = {  # by the values of --pareto
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
    """A setting or a dense network: means over seeds, and whether it is on the front of its data set."""

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


def members(networks: Sequence[Candidate]) -> list[Candidate]:
    """Return the front of each data set, cheapest first, without what equals a dense network on it."""
    order = list(dict.fromkeys(network.setting["dataset"] for network in networks))
    front = [network for network in networks if network.on_front]
    dense = {_result(network) for network in front if network.amount is None}
    distinct = [network for network in front if network.amount is None or _result(network) not in dense]
    return sorted(distinct, key=lambda network: (order.index(network.setting["dataset"]), network.cost))


def _result(network: Candidate) -> tuple[object, ...]:
    return network.setting["dataset"], network.cost, network.val_accuracy, network.accuracy.mean


def front(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the rows that no other row dominates; higher scores are better.

    A row dominates another where it is nowhere lower and somewhere higher: equal rows are on the front
    together. A row with NaN is never on it.
    """
    on_front: list[int] = []
    numbers = [n for n, row in enumerate(scores) if not any(map(isnan, row))]
    # Sorted: a row that dominates another comes before it.
    for number in sorted(numbers, key=lambda n: list(scores[n]), reverse=True):
        if not any(_dominates(scores[member], scores[number]) for member in on_front):
            on_front.append(number)
    return on_front


def _dominates(row: Sequence[float], other: Sequence[float]) -> bool:
    return list(row) != list(other) and all(a >= b for a, b in zip(row, other, strict=True))


def check_measured(results: DataFrame, cost: str) -> None:
    """Raise UsageError where no network of finished trials has this cost."""
    column = COSTS[cost].pruned
    if column not in results or results[column].isna().all():
        hint = "; `orchestrate latency SWEEP` measures it" if cost == "latency" else ""
        raise UsageError(f"--pareto {cost}: no finished trial has it{hint}")


def candidates(results: DataFrame, cost: str, *, method: IntervalMethod = "t") -> list[Candidate]:
    """Return every setting and dense network whose cost was measured, by data set, in the plan's order.

    `cost` is a key of COSTS. Costs of a dense network are those of the unpruned model.
    """
    columns = COSTS[cost]
    if columns.pruned not in results:
        return []
    by_dataset: dict[object, list[Candidate]] = {}
    for network in (*_dense(results, columns.dense, method), *_pruned(results, columns.pruned, method)):
        by_dataset.setdefault(network.setting["dataset"], []).append(network)
    ranked = []
    for networks in by_dataset.values():
        on_front = set(front([(-network.cost, network.val_accuracy) for network in networks]))
        ranked += [replace(network, on_front=n in on_front) for n, network in enumerate(networks)]
    return ranked


def _pruned(results: DataFrame, column: str, method: IntervalMethod) -> list[Candidate]:
    return [
        Candidate(
            setting,
            _network(setting),
            method_label(setting),
            float(str(setting["amount"])),
            float(rows[column].mean()),
            float(rows["final/val_accuracy"].mean()),
            interval(rows["final/accuracy"].tolist(), method=method),
            amount_text=amount_label(rows),
            marks=marks(rows),
        )
        for setting, rows in settings(results)
        if rows[column].notna().all()
    ]


def _dense(results: DataFrame, column: str, method: IntervalMethod) -> list[Candidate]:
    """The dense networks behind the trials, each training once, over seeds."""
    finished = results[results["status"] == "finished"]
    if column not in finished or finished.empty:
        return []
    recipe = [c for c in finished.columns if c.startswith(("model.", "train.", "numerics."))]
    columns = distinguishing_columns(finished, NETWORK, recipe)
    trainings = finished[finished[column].notna()].drop_duplicates("dense_key")
    networks = []
    for values, rows in trainings.groupby(columns, sort=False, dropna=False):
        setting = dict(zip(columns, values, strict=True))
        networks.append(
            Candidate(
                setting,
                _network(setting),
                "dense" if len(columns) == len(NETWORK) else f"dense, {method_label(setting)}",
                None,
                float(rows[column].mean()),
                float(rows["ipa/val_accuracy"].mean()),
                interval(rows["ipa/accuracy"].tolist(), method=method),
            )
        )
    return networks


def _network(setting: Mapping[str, object]) -> str:
    return f"{setting['model']}, batch {setting['batch_size']}"


def cost_text(cost: str, value: float) -> str:
    """Format a cost: milliseconds with three digits, counts as whole numbers."""
    return f"{value:.3g}" if cost == "latency" else f"{value:,.0f}"
