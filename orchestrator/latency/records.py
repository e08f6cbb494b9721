"""The latencies that runs have, as records and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.analysis.tables import Table
from orchestrator.latency.measure import FORMS, latency_suffix
from orchestrator.tracking import RunRecord

TAG = "latency"  # of a run: batch size and device -> the conditions of its measurement, as JSON
TITLE = "one forward pass on {}: median in ms; IQR is of the form that one would ship"
HEADER = ("network", "runs", "batch", "form", *FORMS, "IQR", "speedup", "MACs", "A/A", "reliable")
Json = Mapping[str, Any]


def tag_entry(batch: int, device: str) -> str:
    """Return the name of a measurement in the tag of its run."""
    return str(batch) if device == "cpu" else f"{batch} {device}"


def has_latency(row: RunRecord, batch: int, device: str = "cpu") -> bool:
    """Return whether a run has a latency at this batch size on a device."""
    return f"final/latency_ms_p50{latency_suffix(batch, device)}" in row.metrics


def conditions(row: RunRecord, batch: int, device: str = "cpu") -> Json:
    """Return how a run's latency at a batch size was measured; empty where it was not."""
    tag: dict[str, Json] = json.loads(row.tags.get(TAG, "{}"))
    return tag.get(tag_entry(batch, device), {})


def latency_records(rows: Iterable[RunRecord], batches: Sequence[int], *, device: str = "cpu") -> list[Json]:
    """Return one record per run and batch size that has a latency: times, ratios and conditions."""
    return [
        _latency_record(row, batch, device)
        for row in rows
        for batch in batches
        if has_latency(row, batch, device)
    ]


def _latency_record(row: RunRecord, batch: int, device: str) -> Json:
    condition, metrics = conditions(row, batch, device), row.metrics
    suffix = latency_suffix(batch, device)
    # Of the forms of this measurement alone: the metrics of an earlier one may have further forms.
    times = {
        f"{form}_ms_{statistic}": metrics[f"latency/{form}_ms_{statistic}{suffix}"]
        for form in condition["forms"]
        for statistic in ("p50", "iqr")
    }
    # Of a cut network its MACs; else those of the living weights: 0 where none is alive.
    macs = metrics["final/macs_physical" if condition["form"] == "cut" else "final/macs_effective"]
    return {
        "run_id": row.run_id,
        "name": row.name,
        "batch": batch,
        "latency_ms_p50": metrics[f"final/latency_ms_p50{suffix}"],
        **times,
        "speedup": metrics[f"latency/speedup{suffix}"],
        "speedup_theoretical": metrics["final/macs_dense"] / macs if macs else None,
        "aa": metrics[f"latency/aa{suffix}"],
        **condition,
    }


def latency_table(records: Sequence[Json], *, device: str = "cpu") -> Table:
    """Return a row per measurement: runs whose networks must take equally long share one."""
    groups: dict[tuple[str, int], list[Json]] = {}
    for record in records:
        groups.setdefault((record["measured_on"], record["batch"]), []).append(record)
    rows = [_table_row(group[0], len(group)) for group in groups.values()]
    title = TITLE.format("a GPU" if device == "cuda" else "one thread")
    return Table(title, list(HEADER), rows, "MACs: dense over those that are left, the theoretical speedup")


def _table_row(record: Json, runs: int) -> list[str]:
    medians = (record.get(f"{form}_ms_p50") for form in FORMS)
    ratios = (record[name] for name in ("speedup", "speedup_theoretical"))
    iqr = record[f"{record['form']}_ms_iqr"]
    return [
        record["name"],
        str(runs),
        str(record["batch"]),
        record["form"],
        *("" if median is None else f"{median:.3g}" for median in medians),
        f"{iqr:.3g}",
        *("" if ratio is None else f"{ratio:.3g}x" for ratio in ratios),
        f"{record['aa']:.2f}",
        "yes" if record["reliable"] else f"no: {', '.join(record['doubts'])}",
    ]
