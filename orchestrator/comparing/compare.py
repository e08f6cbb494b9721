"""Results over seeds, for every setting that was swept: as records for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import How, Interval, interval
from orchestrator.comparing.paired import Baseline, differences
from orchestrator.comparing.pareto import candidates
from orchestrator.comparing.setting import settings
from orchestrator.comparing.sparsest import sparsest

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = (
    "accuracy",
    "loss",
    "top5",
    "sparsity",
    "compression",
    "macs_dense",
    "macs_effective",
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
Record = dict[str, object]
Key = tuple[tuple[str, str], ...]  # of a setting, or of a method


@dataclass(frozen=True)
class Asked:
    """What a comparison is to say beside the means; `tolerance` is a fraction, `cost` a key of COSTS."""

    how: How = "t"
    baseline: Baseline | None = None
    tolerance: float | None = None
    cost: str | None = None


ASKED_NOTHING = Asked()


def compared(results: DataFrame, asked: Asked = ASKED_NOTHING) -> list[Record]:
    """One record per setting: its axes, the seeds, the mean and interval of each metric, and what was asked.

    A t interval is told by half its width, `_ci95`; a bootstrap interval by its ends, `_low` and `_high`.
    """
    more = [_of_methods(results, asked), _of_baseline(results, asked), _of_front(results, asked)]
    records = []
    for setting, rows in settings(results):
        record: Record = {**setting, "seeds": len(rows)}
        for name in METRICS:
            if f"final/{name}" in rows:
                values = rows[f"final/{name}"]
                whole = interval(values.tolist(), how=asked.how) if values.notna().all() else None
                record |= _told(name, whole, asked)
        record["speedup_theoretical"] = _ratio(rows)
        for found in more:
            record |= found.get(_key(setting), found.get(_key(setting, method=True), {}))
        records.append(record)
    return records


def _told(name: str, found: Interval | None, asked: Asked) -> Record:
    mean = None if found is None else found.mean
    if asked.how == "t":
        return {name: mean, f"{name}_ci95": None if found is None else found.half_width}
    low, high = (None, None) if found is None else (found.low, found.high)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


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
    for found in sparsest(results, tolerance=asked.tolerance, how=asked.how):
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
    none: Record = {"baseline": asked.baseline.text, **_told("difference", None, asked), "pairs": 0}
    told = {_key(setting): none for setting, _ in settings(results)}
    for found in differences(results, asked.baseline, how=asked.how):
        told[_key(found.setting)] = {
            "baseline": asked.baseline.text,
            **_told("difference", found.difference, asked),
            "pairs": found.difference.count,
        }
    return told


def _of_front(results: DataFrame, asked: Asked) -> dict[Key, Record]:
    if asked.cost is None:
        return {}
    return {
        _key(one.setting): {f"on_front_{asked.cost}": one.on_front}
        for one in candidates(results, asked.cost, how=asked.how)
    }
