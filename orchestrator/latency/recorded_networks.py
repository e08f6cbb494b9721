"""Measure the latencies of recorded networks, once their sweep is over, and list them.

Networks that must take equally long are timed once: those cut to the same widths, and uncut ones, as dense
kernels do the same work whatever the weights. CSR depends on which weights are alive: every mask is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

import models
from orchestrator.analysis.results import RUN_ID, find_sweep
from orchestrator.analysis.tables import Table
from orchestrator.errors import StoreError
from orchestrator.latency.measure import (
    BATCHES,
    FORMS,
    MIN_SPARSITY,
    SECONDS,
    Latency,
    NetworkVariants,
    is_convertible,
    is_supported,
    measure,
)
from orchestrator.model_io.load import build_module, saved_model
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.storage.manifest import ARCH, MANIFEST, MASKS
from orchestrator.storage.model_files import ModelSpec, Shape
from orchestrator.system.console import print_line
from orchestrator.system.determinism import seeded
from orchestrator.system.provenance import environment
from orchestrator.system.timing import batch_suffix
from orchestrator.tracking import MetricPoint, RunRecord, Tracker, open_store
from pruning.masking import prunable_layers

TAG = "latency"  # of a run: batch size -> the conditions of its measurement, as JSON
TITLE = "one forward pass on one thread: median in ms; IQR is of the form that one would ship"
HEADER = ("network", "runs", "batch", "form", *FORMS, "IQR", "speedup", "MACs", "A/A", "reliable")
Json = Mapping[str, Any]


@dataclass(frozen=True)
class LatencyOptions:
    """Batch sizes, and seconds for each form of a network; `remeasure` networks that have times, too."""

    batches: tuple[int, ...] = BATCHES
    seconds: float = SECONDS
    remeasure: bool = False


@dataclass(frozen=True)
class TimingJob:
    """Runs that one measurement stands for; the network is that of the first."""

    rows: tuple[RunRecord, ...]
    batches: tuple[int, ...]


DEFAULT_OPTIONS = LatencyOptions()
OnProgress = Callable[[str], None]


def print_progress(line: str) -> None:
    """Print a line to stderr."""
    print_line(line, error=True)


def measure_named(
    names: Sequence[str],
    options: LatencyOptions = DEFAULT_OPTIONS,
    *,
    uri: str,
    on_progress: OnProgress = print_progress,
) -> list[RunRecord]:
    """Measure the runs that `find_runs` finds for the names, and return them with their new metrics.

    Raises StoreError where there is no such store, sweep or run.
    """
    tracker = open_store(uri)
    rows = find_runs(tracker, names)
    if not measure_runs(tracker, rows, options, on_progress=on_progress):
        on_progress(f"nothing to measure: all {len(rows)} runs have latencies; --again measures anew")
    return [tracker.get_run(row.run_id) for row in rows]


def measure_sweep(
    tracker: Tracker,
    sweep: RunRecord,
    options: LatencyOptions = DEFAULT_OPTIONS,
    *,
    on_progress: OnProgress = print_progress,
) -> int:
    """Measure the finished trials of a sweep that have no latency; return how many networks were timed."""
    return measure_runs(tracker, trials_of(tracker, sweep), options, on_progress=on_progress)


def measure_runs(
    tracker: Tracker,
    rows: Sequence[RunRecord],
    options: LatencyOptions = DEFAULT_OPTIONS,
    *,
    on_progress: OnProgress = print_progress,
) -> int:
    """Measure the networks of these runs one after the other; return how many were timed.

    Each is recorded before the next, so that an interruption loses only the one in progress.
    """
    jobs = plan_jobs(tracker, rows, options)
    for number, job in enumerate(jobs, start=1):
        first = job.rows[0]
        variants = load_variants(tracker, first)
        latencies = [measure(variants, batch=batch, seconds=options.seconds) for batch in job.batches]
        for row in job.rows:
            _record(tracker, row, latencies, measured_on=first.run_id)
        equal = f" and {len(job.rows) - 1} alike" if len(job.rows) > 1 else ""
        times = "; ".join(map(_progress_text, latencies))
        on_progress(f"{number}/{len(jobs)} {first.name}{equal}: {times}")
    return len(jobs)


def _progress_text(latency: Latency) -> str:
    median = latency.timing.spreads[latency.form].p50
    doubts = f", unreliable: {', '.join(latency.timing.doubts)}" if latency.timing.doubts else ""
    return f"batch {latency.batch}: {latency.form} {median:.3g} ms, {latency.speedup:.3g}x{doubts}"


def find_runs(tracker: Tracker, names: Sequence[str]) -> list[RunRecord]:
    """Return the runs of spaces (their latest sweeps) and of ids of sweeps, trials and dense runs."""
    runs: dict[str, RunRecord] = {}
    for name in names:
        row = tracker.get_run(name) if RUN_ID.fullmatch(name) else None
        if row is None or row.tags.get("kind") not in ("dense", "trial"):
            runs |= {trial.run_id: trial for trial in trials_of(tracker, find_sweep(tracker, name))}
            continue
        if row.status != "FINISHED" or "key" not in row.tags:
            raise StoreError(f"run {name} is {row.status} and holds no whole result to measure")
        runs[row.run_id] = row
    return list(runs.values())


def trials_of(tracker: Tracker, sweep: RunRecord) -> list[RunRecord]:
    """Return the finished trials of a sweep, in the order of its plan."""
    keys = [row["key"] for row in load_planned_rows(tracker.read_text(sweep, PLAN))]
    finished = tracker.find_all_finished(set(keys))
    return [finished[key] for key in keys if key in finished]


def load_variants(tracker: Tracker, row: RunRecord) -> NetworkVariants:
    """Load the network of a run in all its forms; the dense one has random weights, which are as fast."""
    saved = saved_model(tracker, row)
    model, shape, classes = saved.spec.architecture
    with seeded(0), models.random_weights():  # the caller's generators stay as they are
        dense = models.build(model, input_shape=shape, num_classes=classes)
    if all(mask.all() for mask in saved.masks.values()):
        return NetworkVariants(dense, shape)
    variants = NetworkVariants(dense, shape, build_module(saved, tracker, cut=False), masks=saved.masks)
    if saved.spec.cut_widths is None:
        return variants
    return replace(variants, cut=build_module(saved, tracker, cut=True))


def plan_jobs(tracker: Tracker, rows: Iterable[RunRecord], options: LatencyOptions) -> list[TimingJob]:
    """Group the runs that lack a latency at one of the batch sizes, those of equal networks together."""
    groups: dict[tuple[tuple[int, ...], tuple[object, ...]], list[RunRecord]] = {}
    for row in rows:
        batches = tuple(
            batch for batch in options.batches if options.remeasure or not has_latency(row, batch)
        )
        if batches:
            groups.setdefault((batches, _network_key(tracker, row)), []).append(row)
    return [TimingJob(tuple(group), batches) for (batches, _), group in groups.items()]


def has_latency(row: RunRecord, batch: int) -> bool:
    """Return whether a run has a latency at this batch size."""
    return f"final/latency_ms_p50{batch_suffix(batch)}" in row.metrics


def _network_key(tracker: Tracker, row: RunRecord) -> tuple[object, ...]:
    """Equal for the runs whose networks must take equally long."""
    spec = ModelSpec.from_json(tracker.read_text(row, f"model/{ARCH}").encode(), f"model/{ARCH}")
    if spec.cut_widths is not None:
        return (*spec.architecture, json.dumps(spec.cut_widths, sort_keys=True))
    sparsity = {
        name: row.metrics.get(f"layers/{name}", 0.0) for name in _convertible_layers(*spec.architecture)
    }
    if is_supported() and max(sparsity.values(), default=0.0) > MIN_SPARSITY:
        manifest = json.loads(tracker.read_text(row, f"model/{MANIFEST}"))
        return (*spec.architecture, manifest[MASKS]["sha256"])
    return (*spec.architecture, row.metrics["final/sparsity"] > 0)


@lru_cache(maxsize=16)
def _convertible_layers(model: str, input_shape: Shape, num_classes: int) -> tuple[str, ...]:
    with torch.device("meta"):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
    return tuple(name for name, layer in prunable_layers(net).items() if is_convertible(layer))


def _record(tracker: Tracker, row: RunRecord, latencies: Sequence[Latency], *, measured_on: str) -> None:
    """Log metrics and tag in one call: a run has both or neither."""
    points = [MetricPoint(name, value) for latency in latencies for name, value in latency.metrics().items()]
    tag = dict(json.loads(row.tags.get(TAG, "{}")))
    tag |= {str(latency.batch): _conditions(latency, measured_on) for latency in latencies}
    tracker.attach(row).log(metrics=points, tags={TAG: json.dumps(tag)})


def _conditions(latency: Latency, measured_on: str) -> Json:
    facts, load, doubts = environment(), latency.timing.load, latency.timing.doubts
    return {
        "form": latency.form,
        "forms": list(latency.timing.spreads),
        "csr_layers": len(latency.csr_layers),
        "reliable": not doubts,
        "doubts": list(doubts),
        "load_average": round(load.average, 2),
        "busy_cores_of_others": round(load.others, 2),
        "threads": 1,
        "cores": load.cores,
        "machine": facts["processor"],
        "torch": facts["package.torch"],
        "python": facts["python"],
        "measured_on": measured_on,
    }


def conditions(row: RunRecord, batch: int) -> Json:
    """Return how a run's latency at a batch size was measured; empty where it was not."""
    tag: dict[str, Json] = json.loads(row.tags.get(TAG, "{}"))
    return tag.get(str(batch), {})


def latency_records(rows: Iterable[RunRecord], batches: Sequence[int]) -> list[Json]:
    """Return one record per run and batch size that has a latency: times, ratios and conditions."""
    return [_latency_record(row, batch) for row in rows for batch in batches if has_latency(row, batch)]


def _latency_record(row: RunRecord, batch: int) -> Json:
    condition, metrics, suffix = conditions(row, batch), row.metrics, batch_suffix(batch)
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


def latency_table(records: Sequence[Json]) -> Table:
    """Return a row per measurement: runs whose networks must take equally long share one."""
    groups: dict[tuple[str, int], list[Json]] = {}
    for record in records:
        groups.setdefault((record["measured_on"], record["batch"]), []).append(record)
    rows = [_table_row(group[0], len(group)) for group in groups.values()]
    return Table(TITLE, list(HEADER), rows, "MACs: dense over those that are left, the theoretical speedup")


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
