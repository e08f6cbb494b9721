"""Recorded latencies as records and as a table: measured beside theoretical speedup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.analysis.tables import Table
from orchestrator.latency.measure import FORMS
from orchestrator.latency.runs import conditions
from orchestrator.latency.tasks import measured
from orchestrator.system.timing import batch_suffix
from orchestrator.tracking import RunRecord

Record = Mapping[str, Any]  # JSON
TITLE = "one forward pass on one thread: median in ms; IQR is of the form that one would ship"
HEADER = ("network", "runs", "batch", "form", *FORMS, "IQR", "speedup", "MACs", "A/A", "reliable")


def records(rows: Iterable[RunRecord], batches: Sequence[int]) -> list[Record]:
    """One record per run and batch size that has a latency; all that is known of it."""
    return [_record(row, batch) for row in rows for batch in batches if measured(row, batch)]


def _record(row: RunRecord, batch: int) -> Record:
    told, metrics, end = conditions(row, batch), row.metrics, batch_suffix(batch)
    # A form that only an earlier measurement had is not one of this.
    times = {
        f"{form}_ms_{part}": metrics[f"latency/{form}_ms_{part}{end}"]
        for form in told["forms"]
        for part in ("p50", "iqr")
    }
    return {
        "run_id": row.run_id,
        "name": row.name,
        "batch": batch,
        "latency_ms_p50": metrics[f"final/latency_ms_p50{end}"],
        **times,
        "speedup": metrics[f"latency/speedup{end}"],
        "speedup_theoretical": _theoretical(metrics, told["form"]),
        "aa": metrics[f"latency/aa{end}"],
        **told,
    }


def _theoretical(metrics: Mapping[str, float], form: str) -> float | None:
    """Dense MACs over those of the cut network, or of the living weights; None where none are left."""
    left = metrics["final/macs_physical" if form == "cut" else "final/macs_effective"]
    return metrics["final/macs_dense"] / left if left else None


def table(found: Sequence[Record]) -> Table:
    """A line per measurement: runs whose networks must take equally long share one."""
    together: dict[tuple[str, int], list[Record]] = {}
    for record in found:
        together.setdefault((record["measured_on"], record["batch"]), []).append(record)
    rows = [_line(alike[0], len(alike)) for alike in together.values()]
    return Table(TITLE, list(HEADER), rows, "MACs: dense over those that are left, the theoretical speedup")


def _line(record: Record, runs: int) -> list[str]:
    times = [_number(record.get(f"{form}_ms_p50")) for form in FORMS]
    spread = _number(record[f"{record['form']}_ms_iqr"])
    ratios = [_times(record[name]) for name in ("speedup", "speedup_theoretical")]
    reliable = "yes" if record["reliable"] else f"no: {', '.join(record['doubts'])}"
    about = [record["name"], str(runs), str(record["batch"]), record["form"]]
    return [*about, *times, spread, *ratios, f"{record['aa']:.2f}", reliable]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"
