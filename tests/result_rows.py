"""Rows of `results`, made up: what the tests of comparisons and of the report read."""

from __future__ import annotations

from typing import Any

import pandas

from orchestrator.analysis.setting_means import METRICS

Row = dict[str, Any]


def row(
    technique: str = "weight", amount: float = 0.5, seed: int = 0, accuracy: float = 0.9, **others: Any
) -> Row:
    base: Row = {
        "model": "slp",
        "dataset": "digits",
        "batch_size": 64,
        "technique": technique,
        "criterion": "magnitude",
        "granularity": "weight",
        "scope": "layer",
        "amount": amount,
        "seed": seed,
        "status": "finished",
        "final/accuracy": accuracy,
        "final/sparsity": amount,
        "final/macs_dense": 640.0,
        "final/macs_effective": 640.0 * (1 - amount),
        "final/macs_physical": 640.0,
        "final/parameters_physical": 650.0,
        "final/loss": 0.5,
        "final/epochs": 10.0,
        "final/train_flops": 3e9,
        "final/train_flops_effective": 1.5e9,
        "ipa/accuracy": 0.95,
    }
    return {f"final/{name}": 0.0 for name in METRICS if name != "latency_ms_p50"} | base | others


def frame(*rows: Row) -> pandas.DataFrame:
    return pandas.DataFrame(list(rows))
