"""Results over seeds: means with 95% intervals, for every setting that was swept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENCE = 0.95
CAPTION = "test accuracy in %, mean ± half of the 95% t interval over seeds"
AXES = (
    "model",
    "dataset",
    "batch_size",
    "technique",
    "recover",
    "schedule",
    "criterion",
    "granularity",
    "scope",
)
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
)


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and half the width of its 95% t interval; None for a single seed."""

    mean: float
    half_width: float | None
    count: int

    def __str__(self) -> str:
        """In percent, for fractions."""
        spread = "" if self.half_width is None else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean. ValueError without values."""
    from scipy.stats import t

    count = len(values)
    if not count:
        raise ValueError("no values to average")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, half, count)


def setting_columns(results: DataFrame) -> list[str]:
    """The columns that tell settings apart: the axes that were swept, dotted fields too, without the seed."""
    dotted = [
        c for c in results.columns if c.startswith(("train.", "numerics.")) and c != "numerics.micro_batch"
    ]
    swept = [c for c in (*AXES, *dotted) if c in results.columns and results[c].nunique(dropna=False) > 1]
    if "technique" in swept:
        swept = [c for c in swept if c not in ("criterion", "granularity", "scope")]
    always = [c for c in ("model", "dataset", "batch_size", "technique") if c in results.columns]
    return [*always, *(c for c in swept if c not in always), "amount"]


def settings(results: DataFrame) -> Iterator[tuple[dict[str, object], DataFrame]]:
    """Each setting of the finished trials, with its rows (one per seed), in the order of the plan."""
    columns = setting_columns(results)
    finished = results[results["status"] == "finished"]
    if len(finished):
        for values, rows in finished.groupby(columns, sort=False, dropna=False):
            yield dict(zip(columns, values, strict=True)), rows


def compared(results: DataFrame) -> list[dict[str, object]]:
    """One record per setting: its axes, the seeds, mean and `_ci95` of each metric; for --json and --csv."""
    records = []
    for setting, rows in settings(results):
        record: dict[str, object] = {**setting, "seeds": len(rows)}
        for name in METRICS:
            if f"final/{name}" in rows:
                found = interval(rows[f"final/{name}"].tolist())
                record |= {name: found.mean, f"{name}_ci95": found.half_width}
        record["speedup_theoretical"] = _ratio(rows)
        records.append(record)
    return records


def _ratio(rows: DataFrame) -> float | None:
    """Dense over effective MACs; None where nothing is left to multiply."""
    effective = float(rows["final/macs_effective"].mean())
    return float(rows["final/macs_dense"].mean()) / effective if effective else None


def pivoted(results: DataFrame) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A table per (model, data set, batch size): title, header, and a row of mean accuracies per amount."""
    columns = setting_columns(results)
    here = [c for c in ("model", "dataset", "batch_size") if c in columns]
    told = [c for c in columns if c not in here and c != "amount"]
    tables: dict[str, dict[float, dict[str, str]]] = {}
    methods: dict[str, None] = {}
    for setting, rows in settings(results):
        title = f"{setting['model']} on {setting['dataset']}, batch {setting['batch_size']}"
        method = ", ".join(str(setting[c]) for c in told)
        methods[method] = None
        cell = str(interval(rows["final/accuracy"].tolist()))
        tables.setdefault(title, {}).setdefault(float(str(setting["amount"])), {})[method] = cell
    for title, by_amount in tables.items():
        body = [
            [f"{100 * amount:.4g}%", *(cells.get(m, "") for m in methods)]
            for amount, cells in sorted(by_amount.items())
        ]
        yield title, ["amount", *methods], body


def markdown(results: DataFrame) -> str:
    """The pivoted tables as Markdown, for the description of the sweep's run."""
    parts = []
    for title, header, body in pivoted(results):
        lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]
        parts.append(f"**{title}**: {CAPTION}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)
