"""The smaller questions: causes of spread, the course of the PQ index, SAP's rounding, and latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pairs import Record, interval_record
from pandas import DataFrame

from orchestrator.analysis.importance import variance_components
from orchestrator.analysis.intervals import DIFFERENCE, FEWEST_FOR_INTERVAL, interval
from pruning.pq_index import COLLAPSING, UNDERFITTING, find_phases
from pruning.registry import parse_method

FACTORS = ("test", "train", "seed")
DELTAS = (0.01, 0.001)  # the project's own threshold of a turn, and a tenth of it


def spread_causes(rows: DataFrame) -> dict[str, Record]:
    """Return for each setting of `splits` the standard deviations that each cause adds, in fractions.

    `dense` is the dense network; a pair of settings, `A minus B`, is their difference on equal networks.
    """
    rows = rows.copy()
    for factor in FACTORS[:2]:
        rows[factor] = [parse_method(text)[1].get(factor, 0) for text in rows["dataset"]]
    rows["setting"] = [f"{r.technique} {100 * r.requested:g}%" for r in rows.itertuples()]
    values = {"dense": cube(rows, "ipa/accuracy")}
    values |= {str(name): cube(group, "final/accuracy") for name, group in rows.groupby("setting")}
    names = [name for name in values if name != "dense"]
    weights, units = ([name for name in names if name.startswith(kind)] for kind in ("weights", "units"))
    pairs = dict(zip(weights, units, strict=True))
    values |= {f"{first} minus {second}": values[first] - values[second] for first, second in pairs.items()}
    return {name: _causes(array) for name, array in values.items()}


def cube(rows: DataFrame, metric: str) -> np.ndarray:
    """Return [test, train, seed] of a metric; ValueError where a combination is missing."""
    means = rows.groupby(list(FACTORS))[metric].mean()
    shape = [len(level) for level in means.index.levels]
    if len(means) != np.prod(shape):
        raise ValueError(f"{len(means)} of {np.prod(shape)} combinations of splits and seeds have finished")
    return means.to_numpy().reshape(shape)


def _causes(values: np.ndarray) -> Record:
    variances = variance_components(values, FACTORS)
    return {
        "mean": round(float(values.mean()), 6),
        "shape": list(values.shape),
        **{name: round(float(np.sqrt(variance)), 6) for name, variance in variances.items()},
    }


def courses(rows: DataFrame) -> list[Record]:
    """Return the course of the PQ index of each method: means per round, and how many seeds see a turn."""
    records = []
    for (panel, label), of_method in rows.groupby(["panel", "technique"], sort=False):
        by_seed = [
            list(trial.sort_values("round")["final/pq_index"]) for _, trial in of_method.groupby("seed")
        ]
        phases = {delta: [find_phases(indices, delta=delta) for indices in by_seed] for delta in DELTAS}
        means = of_method.groupby("round")[["final/pq_index", "final/sparsity", "final/accuracy"]].mean()
        records.append(
            {
                "panel": panel,
                "method": label,
                "seeds": len(by_seed),
                "turns": {str(d): sum(UNDERFITTING in phase for phase in p) for d, p in phases.items()},
                "collapses": {str(d): sum(COLLAPSING in phase for phase in p) for d, p in phases.items()},
                "index": [round(value, 4) for value in means["final/pq_index"]],
                "density": [round(1 - value, 4) for value in means["final/sparsity"]],
                "accuracy": [round(value, 4) for value in means["final/accuracy"]],
            }
        )
    return records


def rounding(rows: DataFrame) -> list[Record]:
    """Return by panel and scope what the formula removes after each round, and the program less than it.

    `first` and `last` are the differences, formula minus program, of the removed fraction after the first and
    the last round, paired by seed; `accuracy` is that of the accuracy after the last.
    """
    records = []
    for panel, of_panel in rows.groupby("panel", sort=False):
        for scope in ("unit", "layer", "global"):
            formula, program = (
                of_panel[of_panel["technique"] == name].set_index(["seed", "round"]).sort_index()
                for name in (f"SAP, {scope}", f"SAP, {scope}, published")
            )
            seeds = sorted({seed for seed, _ in formula.index} & {seed for seed, _ in program.index})
            if len(seeds) < FEWEST_FOR_INTERVAL:
                continue
            formula, program = formula.loc[seeds], program.loc[seeds]
            gap = (formula["final/amount"] - program["final/amount"]).unstack("round")
            loss = (formula["final/accuracy"] - program["final/accuracy"]).unstack("round")
            removed = formula["final/amount"].unstack("round")
            records.append(
                {
                    "panel": panel,
                    "scope": scope,
                    "removed": [round(float(v), 6) for v in removed.mean()],
                    "less": [float(f"{v:.4g}") for v in gap.mean()],
                    "first": precise(gap.iloc[:, 0]),
                    "last": precise(gap.iloc[:, -1]),
                    "accuracy": interval_record(interval(list(loss.iloc[:, -1]), bounds=DIFFERENCE)),
                }
            )
    return records


def precise(values: Sequence[float]) -> Record:
    """Return the interval of differences that may be a millionth."""
    mean = interval(list(values), bounds=DIFFERENCE)
    return {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.count, "p": mean.p}


def latencies(rows: DataFrame, timed: Sequence[Record]) -> Record:
    """Return each setting's time as a share of the dense network's, and whether it was measured well.

    `timed` are the records of `latency_records`. A masked network without CSR does the dense network's work:
    its share is 1, as what was measured beside it is noise.
    """
    by_run = {record["run_id"]: record for record in timed}
    rows = rows[rows["run_id"].isin(by_run)]
    shares = []
    for (panel, label, amount), group in rows.groupby(["panel", "technique", "requested"], sort=False):
        records = [by_run[run_id] for run_id in group["run_id"]]
        times = [1.0 if record["form"] == "masked" else 1 / record["speedup"] for record in records]
        forms = sorted({record["form"] for record in records})
        share = round(sum(times) / len(times), 4)
        shares.append({"panel": panel, "method": label, "amount": amount, "share": share, "forms": forms})
    networks = list({record["measured_on"]: record for record in timed}.values())
    ratios = [record["aa"] for record in networks]
    return {
        "shares": shares,
        "networks": len(networks),
        "reliable": sum(bool(record["reliable"]) for record in networks),
        "aa_low": round(min(ratios), 3),
        "aa_high": round(max(ratios), 3),
        "busiest": round(max(record["busy_cores_of_others"] for record in networks), 2),
    }
