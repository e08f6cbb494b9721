"""Means over seeds per setting, and the highest sparsity within a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from orchestrator.analysis.notes import count_seeds
from orchestrator.analysis.paired import Baseline, differences
from orchestrator.analysis.pareto import candidates
from orchestrator.analysis.settings import (
    STOPPED,
    amount_label,
    axis_columns,
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
    "train_flops_effective",
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
TOLERANCE = 0.01
PARTS = ("criterion", "granularity", "scope", "schedule", "recover")  # a column each, whatever was swept
Record = dict[str, object]
Key = tuple[tuple[str, str], ...]  # of a setting, or of a method: a setting without its amount
ROUNDING = 1e-9  # 0.96 - 0.95 is a little more than 0.01


@dataclass(frozen=True)
class ComparisonOptions:
    """What a comparison shows beside the means; `tolerance` is a fraction, `cost` a key of COSTS."""

    method: IntervalMethod = "t"
    baseline: Baseline | None = None
    tolerance: float | None = None
    cost: str | None = None
    earlier: DataFrame | None = None  # networks of earlier rounds, as rows of `results`

    def with_default_tolerance(self) -> ComparisonOptions:
        """Return the options with a tolerance: of one point, if there is none."""
        return self if self.tolerance is not None else replace(self, tolerance=TOLERANCE)


DEFAULT_OPTIONS = ComparisonOptions()


def comparison_records(results: DataFrame, options: ComparisonOptions = DEFAULT_OPTIONS) -> list[Record]:
    """Return one record per setting: its axes, the number of seeds, and mean and interval of each metric.

    Every interval has the columns `_low` and `_high`; a t interval that is not cut at a bound has half its
    width, `_ci95`, as well. `interval` says what the accuracy's ends are. Further columns follow `options`.
    """
    extras = [
        _tolerance_columns(results, options),
        _baseline_columns(results, options),
        _front_columns(results, options),
    ]
    is_renamed = is_by_criterion(results)  # such a space has no techniques to name
    varied = [c for c in axis_columns(results) if c != "technique" and results[c].nunique(dropna=False) > 1]
    records: list[Record] = []
    for setting, rows in settings(results):
        record: Record = {
            "criterion" if column == "technique" and is_renamed else column: value
            for column, value in setting.items()
        }
        record |= {name: rows[name].iloc[0] for name in PARTS if name in rows and name not in setting}
        record |= {"amount_text": amount_label(rows), "seeds": len(rows)}
        record |= {"seeds_stopped": rows.attrs.get(STOPPED, 0)}
        record |= {f"seeds_{name}": count_seeds(rows, name) for name in ("at_chance", "empty_layers")}
        record |= {"run_ids": " ".join(rows["run_id"])} if "run_id" in rows else {}
        record |= _metric_columns(rows, options.method)
        for columns in extras:
            record |= columns.get(_key(setting), columns.get(_key(setting, has_amount=False), {}))
        # At the end, as readers may count on the columns of before.
        unnamed = [c for c in varied if c not in record and rows[c].nunique(dropna=False) == 1]
        record |= {column: _plain(rows[column].iloc[0]) for column in unnamed}
        records.append(record)
    return records


def _plain(value: object) -> object:
    """Convert a number of numpy's to Python's, and a missing value to None: JSON has neither."""
    if value != value:
        return None
    return value.item() if hasattr(value, "item") else value


def _metric_columns(rows: DataFrame, method: IntervalMethod) -> Record:
    """The columns of every metric of a setting; empty cells where some seeds lack it."""
    record: Record = {}
    for name in METRICS:
        values = rows.get(f"final/{name}")
        if values is None:
            continue
        mean = (
            interval(values.tolist(), method=method, bounds=_bounds(name)) if values.notna().all() else None
        )
        record |= _interval_columns(name, mean, method)
        record |= {"interval": mean.kind} if mean and name == "accuracy" else {}
    if (dense := dense_interval(rows, method=method)) is not None:
        record |= _interval_columns("dense_accuracy", dense, method)
    effective = float(rows["final/macs_effective"].mean())  # 0 where every weight is dead
    dense_macs = float(rows["final/macs_dense"].mean())
    return record | {"speedup_theoretical": dense_macs / effective if effective else None}


def _bounds(name: str) -> Bounds:
    if name in FRACTIONS:
        return FRACTION
    return DIFFERENCE if name == "worst_class_drop" else AMOUNT


def _interval_columns(name: str, mean: Interval | None, method: IntervalMethod) -> Record:
    values: Record = {name: None if mean is None else mean.mean}
    if method == "t":  # a bootstrap interval has no one width
        values[f"{name}_ci95"] = None if mean is None else mean.half_width
    low, high = (None, None) if mean is None else (mean.low, mean.high)
    return values | {f"{name}_low": low, f"{name}_high": high}


def _key(setting: Mapping[str, object], *, has_amount: bool = True) -> Key:
    return tuple((name, str(value)) for name, value in setting.items() if has_amount or name != "amount")


def _tolerance_columns(results: DataFrame, options: ComparisonOptions) -> dict[Key, Record]:
    """Method -> the highest sparsity within the tolerance."""
    tolerance, method = options.tolerance, options.method
    if tolerance is None:
        return {}
    return {
        _key(best.method): {
            "tolerance": tolerance,
            **_interval_columns("sparsity_within", best.sparsity, method),
            **_interval_columns("accuracy_within", best.accuracy, method),
            **_interval_columns("loss_within", best.loss, method),
            "seeds_within": best.seeds_within,
        }
        for best in sparsest(results, tolerance=tolerance, method=method, earlier=options.earlier)
    }


def _baseline_columns(results: DataFrame, options: ComparisonOptions) -> dict[Key, Record]:
    """Setting -> its difference to the baseline; empty cells where no trial pairs with it."""
    baseline, method = options.baseline, options.method
    if baseline is None:
        return {}
    unpaired: Record = {
        "baseline": baseline.text,
        **_interval_columns("difference", None, method),
        "pairs": 0,
        "difference_p": None,
        "difference_p_holm": None,
        "comparisons": None,
    }
    columns = {_key(setting): unpaired for setting, _ in settings(results)}
    pairs = differences(results, baseline, method=method)
    for pair in pairs:
        columns[_key(pair.setting)] = {
            "baseline": baseline.text,
            **_interval_columns("difference", pair.difference, method),
            "pairs": pair.difference.count,
            "difference_p": pair.difference.p,
            "difference_p_holm": pair.p_holm,
            "comparisons": len(pairs),
        }
    return columns


def _front_columns(results: DataFrame, options: ComparisonOptions) -> dict[Key, Record]:
    """Setting -> whether it is on the Pareto front of the cost."""
    if options.cost is None:
        return {}
    return {
        _key(candidate.setting): {f"on_front_{options.cost}": candidate.on_front}
        for candidate in candidates(results, options.cost, method=options.method)
    }


@dataclass(frozen=True)
class Sparsest:
    """The sparsest networks of a method within a tolerance of dense: means over all its seeds.

    `seeds_within` of `seeds` have such a network; the others count as their dense network. The means are
    None where no seed has one. `loss` is the dense networks' test accuracy minus theirs, paired by seed.
    `stopped` counts trials that were stopped early, whose rounds do not count.
    """

    method: Mapping[str, object]
    seeds: int
    seeds_within: int
    sparsity: Interval | None
    compression: Interval | None
    accuracy: Interval | None
    loss: Interval | None
    stopped: int = 0


def sparsest_within(rows: DataFrame, tolerance: float) -> Index:
    """Return the index of each seed's sparsest network within the tolerance (a fraction) of its dense one."""
    is_near = rows["final/val_accuracy"] >= rows["ipa/val_accuracy"] - tolerance - ROUNDING
    near = rows[is_near & (rows["final/sparsity"] > 0)]  # a network that is not pruned does not count
    # Of equally sparse networks the more accurate on validation images.
    ranked = near.sort_values(["final/sparsity", "final/val_accuracy"], ascending=False, kind="stable")
    return ranked.drop_duplicates("seed").sort_values("seed").index


def sparsest(
    results: DataFrame, *, tolerance: float, method: IntervalMethod = "t", earlier: DataFrame | None = None
) -> list[Sparsest]:
    """Return one entry per method, in the order of the plan.

    `earlier` are networks of rounds before the last, as rows of `results` (see `pareto.earlier_networks`).
    """
    columns = [column for column in setting_columns(results) if column != "amount"]
    by_method = {}
    if earlier is not None and not earlier.empty:
        groups = earlier.groupby(columns, sort=False, dropna=False)
        by_method = {tuple(map(str, values)): rows for values, rows in groups}
    return [
        _sparsest(setting, rows, by_method.get(tuple(map(str, setting.values()))), tolerance, method)
        for setting, rows in methods(results)
    ]


def _sparsest(
    setting: Mapping[str, object],
    rows: DataFrame,
    earlier: DataFrame | None,
    tolerance: float,
    method: IntervalMethod,
) -> Sparsest:
    import pandas

    networks = rows if earlier is None else pandas.concat([rows, earlier], ignore_index=True)
    best = networks.loc[sparsest_within(networks, tolerance)]
    seeds = rows.drop_duplicates("seed")
    stopped = int(rows.attrs.get("stopped", 0))
    if best.empty:
        return Sparsest(setting, len(seeds), 0, None, None, None, None, stopped)
    dense = seeds[~seeds["seed"].isin(best["seed"])]["ipa/accuracy"].tolist()
    missing = len(dense)
    loss = (best["ipa/accuracy"] - best["final/accuracy"]).tolist()
    return Sparsest(
        setting,
        len(seeds),
        len(best),
        interval([*best["final/sparsity"].tolist(), *[0.0] * missing], method=method),
        interval([*best["final/compression"].tolist(), *[1.0] * missing], method=method, bounds=AMOUNT),
        interval([*best["final/accuracy"].tolist(), *dense], method=method),
        interval([*loss, *[0.0] * missing], method=method, bounds=DIFFERENCE),
        stopped,
    )
