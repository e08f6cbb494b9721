"""Results over seeds: means with 95% intervals, for every setting that was swept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
    "criterion",
    "granularity",
    "scope",
    "when",
    "schedule",
    "control",
    "prepare",
    "recover",
    "distill",
)
NO_SETTING = ("key", "dense_key", "seed", "requested_batch_size", "status", "run_id", "reason", "notes")
MOST_METHODS = 6  # columns of a pivoted table
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
    """The columns that tell settings apart, the amount last: what was swept, without the seed.

    A column that says nothing beyond those before it, as a technique's criterion does, is left out.
    """
    others = [c for c in results.columns if c not in NO_SETTING and "/" not in c]
    first = [c for c in ("model", "dataset", "batch_size", "technique", "amount") if c in results.columns]
    chosen, count = first, results.groupby(first, dropna=False).ngroups
    for column in (*(c for c in AXES if c in others), *(c for c in others if c not in AXES)):
        more = results.groupby([*chosen, column], dropna=False).ngroups if column not in chosen else count
        if more > count:
            chosen, count = [*chosen, column], more
    return [*(c for c in chosen if c != "amount"), "amount"]


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


@dataclass(frozen=True)
class Table:
    """A table of texts for one (model, data set, batch size)."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(results: DataFrame) -> list[Table]:
    """Accuracies, amounts by methods, where a few methods share their amounts; else a row per setting."""
    few = pivoted(results)
    widest = max((len(table.header) for table in few), default=0)
    full = all(all(row) for table in few for row in table.rows)
    return (
        few if widest <= 1 + MOST_METHODS and full and any(len(t.rows) > 1 for t in few) else listed(results)
    )


def pivoted(results: DataFrame) -> list[Table]:
    """A row of mean test accuracies per amount, a column per method."""
    cells: dict[str, dict[float, dict[str, str]]] = {}
    methods: dict[str, dict[str, None]] = {}
    for setting, rows in settings(results):
        title, method = panel_title(setting), method_label(setting)
        methods.setdefault(title, {})[method] = None
        cell = str(interval(rows["final/accuracy"].tolist()))
        cells.setdefault(title, {}).setdefault(float(str(setting["amount"])), {})[method] = cell
    return [
        Table(
            f"{title}: {CAPTION}",
            ["amount", *methods[title]],
            [[percent(a), *(row.get(m, "") for m in methods[title])] for a, row in sorted(by_amount.items())],
        )
        for title, by_amount in cells.items()
    ]


def listed(results: DataFrame) -> list[Table]:
    """A row per setting: how well it does, what is left of it, and what it has cost since the first epoch."""
    found: dict[str, list[list[str]]] = {}
    for setting, rows in settings(results):
        mean = {name: float(rows[f"final/{name}"].mean()) for name in METRICS}
        found.setdefault(panel_title(setting), []).append(
            [
                method_label(setting),
                percent(float(str(setting["amount"]))),
                str(interval(rows["final/accuracy"].tolist())),
                f"{mean['loss']:.3f}",
                percent(mean["sparsity"]),
                percent(mean["macs_effective"] / mean["macs_dense"]),
                percent(mean["macs_physical"] / mean["macs_dense"]),
                f"{mean['parameters_physical']:.0f}",
                f"{mean['epochs']:g}",
                f"{mean['train_flops'] / 1e9:.3g}",
                str(len(rows)),
            ]
        )
    return [Table(f"{title}: {CAPTION}", LISTED, rows) for title, rows in found.items()]


LISTED = [
    "method",
    "amount",
    "accuracy",
    "loss",
    "sparsity",
    "MACs",
    "MACs cut",
    "parameters cut",
    "epochs",
    "GFLOPs",
    "seeds",
]


def markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in found:
        rows = (table.header, ["---"] * len(table.header), *table.rows)
        parts.append(f"**{table.title}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}%"


def panel_title(setting: Mapping[str, object]) -> str:
    """What a setting's table and picture are called."""
    return f"{setting['model']} on {setting['dataset']}, batch {setting['batch_size']}"


def method_label(setting: Mapping[str, object]) -> str:
    """What was done, without the values that mean that nothing was."""
    told = [
        value for name, value in setting.items() if name not in ("model", "dataset", "batch_size", "amount")
    ]
    return ", ".join(str(value) for value in told if value not in ("none", "after")) or "nothing"
