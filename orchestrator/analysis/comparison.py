"""Means over seeds per setting, and the highest sparsity within a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import (
    AMOUNT,
    DIFFERENCE,
    FRACTION,
    Bounds,
    Interval,
    IntervalMethod,
    dense_interval,
    interval,
)
from orchestrator.analysis.notes import count
from orchestrator.analysis.paired import Baseline, differences
from orchestrator.analysis.pareto import candidates
from orchestrator.analysis.settings import (
    STOPPED,
    amount_label,
    is_by_criterion,
    methods,
    setting_columns,
    settings,
)

if TYPE_CHECKING:
    from pandas import DataFrame, Index


METRICS = (
    "accuracy",
    "loss",
    "top5",
    "sparsity",
    "sparsity_chosen",
    "compression",
    "macs_dense",
    "macs_effective",
    "macs_effective_chosen",
    "macs_physical",
    "parameters_physical",
    "bytes_sparse",
    "epochs",
    "train_flops",
    "train_seconds",
    "val_accuracy",
    "parameters_nonzero",
    "latency_ms_p50",
    "latency_ms_p50_batch256",
    "bytes_compressed",
    "peak_memory_bytes",
    "worst_class_accuracy",
    "worst_class_drop",
)
FRACTIONS = ("accuracy", "top5", "sparsity", "sparsity_chosen", "val_accuracy", "worst_class_accuracy")
METHOD = ("criterion", "granularity", "scope", "schedule", "recover")  # a column each, whatever was swept
Record = dict[str, object]
Key = tuple[tuple[str, str], ...]  # of a setting, or of a method


@dataclass(frozen=True)
class ComparisonOptions:
    """What a comparison is to say beside the means; `tolerance` is a fraction, `cost` a key of COSTS."""

    method: IntervalMethod = "t"
    baseline: Baseline | None = None
    tolerance: float | None = None
    cost: str | None = None
    earlier: DataFrame | None = None  # networks of earlier rounds, as rows of `results`


DEFAULT_OPTIONS = ComparisonOptions()


def comparison_records(results: DataFrame, asked: ComparisonOptions = DEFAULT_OPTIONS) -> list[Record]:
    """One record per setting: its axes, the seeds, the mean and interval of each metric, and what was asked.

    Every interval is told by its ends, `_low` and `_high`, and a t interval that is not cut at a bound by
    half its width, `_ci95`, as well; `interval` says what the ends of the accuracy's are.
    """
    more = [_of_methods(results, asked), _of_baseline(results, asked), _of_front(results, asked)]
    records: list[Record] = []
    renamed = is_by_criterion(results)  # and not by a technique
    for setting, rows in settings(results):
        parts = {name: rows[name].iloc[0] for name in METHOD if name in rows and name not in setting}
        named = {"criterion" if c == "technique" and renamed else c: value for c, value in setting.items()}
        record: Record = {**named, **parts, "amount_text": amount_label(rows), "seeds": len(rows)}
        record |= {"seeds_stopped": rows.attrs.get(STOPPED, 0)}
        record |= {f"seeds_{name}": count(rows, name) for name in ("at_chance", "empty_layers")}
        for name in METRICS:
            if f"final/{name}" in rows:
                whole = _interval(rows, name, asked.method)
                record |= _interval_fields(name, whole, asked)
                record |= {"interval": whole.kind} if whole and name == "accuracy" else {}
        if (dense := dense_interval(rows, how=asked.method)) is not None:
            record |= _interval_fields("dense_accuracy", dense, asked)
        record["speedup_theoretical"] = _ratio(rows)
        for found in more:
            record |= found.get(_key(setting), found.get(_key(setting, method=True), {}))
        records.append(record)
    return records


def _interval(rows: DataFrame, name: str, how: IntervalMethod) -> Interval | None:
    """None where the metric was not measured for all seeds."""
    values = rows[f"final/{name}"]
    return interval(values.tolist(), how=how, bounds=_bounds(name)) if values.notna().all() else None


def _bounds(name: str) -> Bounds:
    if name in FRACTIONS:
        return FRACTION
    return DIFFERENCE if name == "worst_class_drop" else AMOUNT


def _interval_fields(name: str, found: Interval | None, asked: ComparisonOptions) -> Record:
    if found is None:
        return _unknown(name, asked)
    half = {f"{name}_ci95": found.half_width} if asked.method == "t" else {}
    return {name: found.mean, **half, f"{name}_low": found.low, f"{name}_high": found.high}


def _unknown(name: str, asked: ComparisonOptions) -> Record:
    columns = ("", "_ci95", "_low", "_high") if asked.method == "t" else ("", "_low", "_high")
    return {f"{name}{column}": None for column in columns}


def _ratio(rows: DataFrame) -> float | None:
    """Dense over effective MACs; None where nothing is left to multiply."""
    effective = float(rows["final/macs_effective"].mean())
    return float(rows["final/macs_dense"].mean()) / effective if effective else None


def _key(setting: Mapping[str, object], *, method: bool = False) -> Key:
    return tuple((name, str(value)) for name, value in setting.items() if not method or name != "amount")


def _of_methods(results: DataFrame, asked: ComparisonOptions) -> dict[Key, Record]:
    if asked.tolerance is None:
        return {}
    told: dict[Key, Record] = {}
    for found in sparsest(results, tolerance=asked.tolerance, how=asked.method, earlier=asked.earlier):
        told[_key(found.method)] = {
            "tolerance": asked.tolerance,
            **_interval_fields("sparsity_within", found.sparsity, asked),
            **_interval_fields("accuracy_within", found.accuracy, asked),
            **_interval_fields("loss_within", found.loss, asked),
            "seeds_within": found.found,
        }
    return told


def _of_baseline(results: DataFrame, asked: ComparisonOptions) -> dict[Key, Record]:
    if asked.baseline is None:
        return {}
    untested: Record = {"difference_p": None, "difference_p_holm": None, "comparisons": None}
    none: Record = {
        "baseline": asked.baseline.text,
        **_interval_fields("difference", None, asked),
        "pairs": 0,
    }
    none |= untested
    told = {_key(setting): none for setting, _ in settings(results)}
    every = differences(results, asked.baseline, how=asked.method)
    for found in every:
        told[_key(found.setting)] = {
            "baseline": asked.baseline.text,
            **_interval_fields("difference", found.difference, asked),
            "pairs": found.difference.count,
            "difference_p": found.difference.p,
            "difference_p_holm": found.p_holm,
            "comparisons": len(every),
        }
    return told


def _of_front(results: DataFrame, asked: ComparisonOptions) -> dict[Key, Record]:
    if asked.cost is None:
        return {}
    return {
        _key(one.setting): {f"on_front_{asked.cost}": one.on_front}
        for one in candidates(results, asked.cost, how=asked.method)
    }


ROUNDING = 1e-9  # 0.96 - 0.95 is a little more than 0.01


@dataclass(frozen=True)
class Sparsest:
    """Of a method: `found` of `seeds` had a network within the tolerance; means are over all seeds.

    None where no seed has one. `loss` is the test accuracy of the dense networks minus theirs, paired
    by seed; `stopped` counts trials that were stopped early, whose rounds are not looked at.
    """

    method: Mapping[str, object]
    seeds: int
    found: int
    sparsity: Interval | None
    compression: Interval | None
    accuracy: Interval | None
    loss: Interval | None
    stopped: int = 0


def sparsest_within(rows: DataFrame, tolerance: float) -> Index:
    """The rows, one per seed that has one, with the sparsest network within the tolerance (a fraction)."""
    is_near = rows["final/val_accuracy"] >= rows["ipa/val_accuracy"] - tolerance - ROUNDING
    near = rows[is_near & (rows["final/sparsity"] > 0)]  # a network that is not pruned is none
    # Of equally sparse ones the more accurate on validation images.
    ranked = near.sort_values(["final/sparsity", "final/val_accuracy"], ascending=False, kind="stable")
    return ranked.drop_duplicates("seed").sort_values("seed").index


def sparsest(
    results: DataFrame, *, tolerance: float, how: IntervalMethod = "t", earlier: DataFrame | None = None
) -> list[Sparsest]:
    """One entry per method, in the order of the plan.

    `earlier` are networks of rounds before the last, as rows of `results` (see `rounds.earlier_networks`).
    """
    columns = [c for c in setting_columns(results) if c != "amount"]
    before = {} if earlier is None or earlier.empty else _by_method(earlier, columns)
    return [
        _sparsest(method, rows, before.get(_sparsest_key(method)), tolerance, how)
        for method, rows in methods(results)
    ]


def _by_method(earlier: DataFrame, columns: list[str]) -> dict[tuple[str, ...], DataFrame]:
    groups = earlier.groupby(columns, sort=False, dropna=False)
    return {_sparsest_key(dict(zip(columns, values, strict=True))): rows for values, rows in groups}


def _sparsest_key(method: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(map(str, method.values()))


def _sparsest(
    method: Mapping[str, object],
    rows: DataFrame,
    earlier: DataFrame | None,
    tolerance: float,
    how: IntervalMethod,
) -> Sparsest:
    import pandas

    every = rows if earlier is None else pandas.concat([rows, earlier], ignore_index=True)
    best = every.loc[sparsest_within(every, tolerance)]
    seeds = rows.drop_duplicates("seed")
    stopped = int(rows.attrs.get("stopped", 0))
    if best.empty:
        return Sparsest(method, len(seeds), 0, None, None, None, None, stopped)
    dense = seeds[~seeds["seed"].isin(best["seed"])]["ipa/accuracy"].tolist()
    none = len(dense)
    loss = (best["ipa/accuracy"] - best["final/accuracy"]).tolist()
    return Sparsest(
        method,
        len(seeds),
        len(best),
        interval([*best["final/sparsity"].tolist(), *[0.0] * none], how=how),
        interval([*best["final/compression"].tolist(), *[1.0] * none], how=how, bounds=AMOUNT),
        interval([*best["final/accuracy"].tolist(), *dense], how=how),
        interval([*loss, *[0.0] * none], how=how, bounds=DIFFERENCE),
        stopped,
    )
