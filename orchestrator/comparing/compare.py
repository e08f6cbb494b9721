"""Results over seeds, for every setting that was swept: as records for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import (
    AMOUNT,
    DIFFERENCE,
    FRACTION,
    Bounds,
    How,
    Interval,
    dense_interval,
    interval,
)
from orchestrator.comparing.marks import count
from orchestrator.comparing.paired import Baseline, differences
from orchestrator.comparing.pareto import candidates
from orchestrator.comparing.setting import STOPPED, amount_label, is_by_criterion, settings
from orchestrator.comparing.sparsest import sparsest

if TYPE_CHECKING:
    from pandas import DataFrame

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
class Asked:
    """What a comparison is to say beside the means; `tolerance` is a fraction, `cost` a key of COSTS."""

    how: How = "t"
    baseline: Baseline | None = None
    tolerance: float | None = None
    cost: str | None = None
    earlier: DataFrame | None = None  # networks of earlier rounds, as rows of `results`


ASKED_NOTHING = Asked()


def compared(results: DataFrame, asked: Asked = ASKED_NOTHING) -> list[Record]:
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
                whole = _interval(rows, name, asked.how)
                record |= _told(name, whole, asked)
                record |= {"interval": whole.kind} if whole and name == "accuracy" else {}
        if (dense := dense_interval(rows, how=asked.how)) is not None:
            record |= _told("dense_accuracy", dense, asked)
        record["speedup_theoretical"] = _ratio(rows)
        for found in more:
            record |= found.get(_key(setting), found.get(_key(setting, method=True), {}))
        records.append(record)
    return records


def _interval(rows: DataFrame, name: str, how: How) -> Interval | None:
    """None where the metric was not measured for all seeds."""
    values = rows[f"final/{name}"]
    return interval(values.tolist(), how=how, bounds=_bounds(name)) if values.notna().all() else None


def _bounds(name: str) -> Bounds:
    if name in FRACTIONS:
        return FRACTION
    return DIFFERENCE if name == "worst_class_drop" else AMOUNT


def _told(name: str, found: Interval | None, asked: Asked) -> Record:
    if found is None:
        return _unknown(name, asked)
    half = {f"{name}_ci95": found.half_width} if asked.how == "t" else {}
    return {name: found.mean, **half, f"{name}_low": found.low, f"{name}_high": found.high}


def _unknown(name: str, asked: Asked) -> Record:
    columns = ("", "_ci95", "_low", "_high") if asked.how == "t" else ("", "_low", "_high")
    return {f"{name}{column}": None for column in columns}


def _ratio(rows: DataFrame) -> float | None:
    """Dense over effective MACs; None where nothing is left to multiply."""
    effective = float(rows["final/macs_effective"].mean())
    return float(rows["final/macs_dense"].mean()) / effective if effective else None


def _key(setting: Mapping[str, object], *, method: bool = False) -> Key:
    return tuple((name, str(value)) for name, value in setting.items() if not method or name != "amount")


def _of_methods(results: DataFrame, asked: Asked) -> dict[Key, Record]:
    if asked.tolerance is None:
        return {}
    told: dict[Key, Record] = {}
    for found in sparsest(results, tolerance=asked.tolerance, how=asked.how, earlier=asked.earlier):
        told[_key(found.method)] = {
            "tolerance": asked.tolerance,
            **_told("sparsity_within", found.sparsity, asked),
            **_told("accuracy_within", found.accuracy, asked),
            **_told("loss_within", found.loss, asked),
            "seeds_within": found.found,
        }
    return told


def _of_baseline(results: DataFrame, asked: Asked) -> dict[Key, Record]:
    if asked.baseline is None:
        return {}
    untested: Record = {"difference_p": None, "difference_p_holm": None, "comparisons": None}
    none: Record = {"baseline": asked.baseline.text, **_told("difference", None, asked), "pairs": 0}
    none |= untested
    told = {_key(setting): none for setting, _ in settings(results)}
    every = differences(results, asked.baseline, how=asked.how)
    for found in every:
        told[_key(found.setting)] = {
            "baseline": asked.baseline.text,
            **_told("difference", found.difference, asked),
            "pairs": found.difference.count,
            "difference_p": found.difference.p,
            "difference_p_holm": found.p_holm,
            "comparisons": len(every),
        }
    return told


def _of_front(results: DataFrame, asked: Asked) -> dict[Key, Record]:
    if asked.cost is None:
        return {}
    return {
        _key(one.setting): {f"on_front_{asked.cost}": one.on_front}
        for one in candidates(results, asked.cost, how=asked.how)
    }
