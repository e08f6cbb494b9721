"""Measure the latencies of recorded networks, once their sweep is over, on a CPU or a GPU.

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
from orchestrator.errors import DeviceError, StoreError
from orchestrator.latency.measure import (
    BATCHES,
    MIN_SPARSITY,
    SECONDS,
    Latency,
    NetworkVariants,
    is_convertible,
    is_supported,
    measure,
)
from orchestrator.latency.records import TAG, has_latency, tag_entry
from orchestrator.model_io.load import build_module, saved_model
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.storage.manifest import ARCH, MANIFEST, MASKS
from orchestrator.storage.model_files import ModelSpec, Shape
from orchestrator.system.console import print_line
from orchestrator.system.determinism import deterministic, seeded
from orchestrator.system.provenance import environment
from orchestrator.tracking import MetricPoint, RunRecord, Tracker, open_store
from pruning.masking import prunable_layers
from pruning.user_code import own_code

Json = Mapping[str, Any]


@dataclass(frozen=True)
class LatencyOptions:
    """Batch sizes, and seconds for each form of a network; `remeasure` networks that have times, too.

    `device` is cpu or cuda: a network has times on each.
    """

    batches: tuple[int, ...] = BATCHES
    seconds: float = SECONDS
    remeasure: bool = False
    device: str = "cpu"


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

    Each is recorded before the next, so that an interruption loses only the one in progress. DeviceError
    without the GPU that is to be measured on.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device here; use --device cpu")
    jobs = plan_jobs(tracker, rows, options)
    for number, job in enumerate(jobs, start=1):
        first = job.rows[0]
        variants = load_variants(tracker, first)
        with deterministic(options.device):  # without TF32: the forms are to agree
            latencies = [
                measure(variants, batch=batch, seconds=options.seconds, device=options.device)
                for batch in job.batches
            ]
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
            batch
            for batch in options.batches
            if options.remeasure or not has_latency(row, batch, options.device)
        )
        if batches:
            network = _network_key(tracker, row, device=options.device)
            groups.setdefault((batches, network), []).append(row)
    return [TimingJob(tuple(group), batches) for (batches, _), group in groups.items()]


def _network_key(tracker: Tracker, row: RunRecord, *, device: str) -> tuple[object, ...]:
    """Equal for the runs whose networks must take equally long."""
    spec = ModelSpec.from_json(tracker.read_text(row, f"model/{ARCH}").encode(), f"model/{ARCH}")
    if own_code.is_own(spec.model.partition("(")[0]):
        saved_model(tracker, row)  # checks the files; from here on this process may run the network's code
    if spec.cut_widths is not None:
        return (*spec.architecture, json.dumps(spec.cut_widths, sort_keys=True))
    sparsity = {
        name: row.metrics.get(f"layers/{name}", 0.0) for name in _convertible_layers(*spec.architecture)
    }
    if device == "cpu" and is_supported() and max(sparsity.values(), default=0.0) > MIN_SPARSITY:
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
    tag |= {
        tag_entry(latency.batch, latency.device): _conditions(latency, measured_on) for latency in latencies
    }
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
        "machine": torch.cuda.get_device_name() if latency.device == "cuda" else facts["processor"],
        "torch": facts["package.torch"],
        "python": facts["python"],
        "measured_on": measured_on,
    }
