"""Latencies of recorded networks, measured when their sweep is over and the machine is quiet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import models
from orchestrator.analysis.results import find_sweep
from orchestrator.errors import StoreError
from orchestrator.latency.measure import Latency, NetworkVariants, measure
from orchestrator.latency.tasks import STANDARD, LatencyOptions, plan_tasks
from orchestrator.model_io.load import build_module, saved_model
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.system.console import print_line
from orchestrator.system.determinism import seeded
from orchestrator.system.provenance import environment
from orchestrator.tracking import MetricPoint, RunRecord, Tracker, open_store

TAG = "latency"  # of a run: batch size -> how its latencies were measured, as JSON
Tell = Callable[[str], None]
Json = Mapping[str, Any]


def to_stderr(line: str) -> None:
    print_line(line, error=True)


def measure_named(
    names: Sequence[str], options: LatencyOptions = STANDARD, *, uri: str, tell: Tell = to_stderr
) -> list[RunRecord]:
    """Measure what is named, as `find_runs` does it; its runs come back as they are then.

    StoreError where there is no such store, sweep or run.
    """
    tracker = open_store(uri)
    rows = find_runs(tracker, names)
    if not measure_runs(tracker, rows, options, tell=tell):
        tell(f"nothing to measure: all {len(rows)} runs have latencies; --again measures anew")
    return [tracker.get_run(row.run_id) for row in rows]


def measure_sweep(
    tracker: Tracker, sweep: RunRecord, options: LatencyOptions = STANDARD, *, tell: Tell = to_stderr
) -> int:
    """Measure all finished trials of a sweep that have no latency yet; how many networks were timed."""
    return measure_runs(tracker, trials_of(tracker, sweep), options, tell=tell)


def trials_of(tracker: Tracker, sweep: RunRecord) -> list[RunRecord]:
    """The finished trials of a sweep, in the order of its plan."""
    keys = [row["key"] for row in load_planned_rows(tracker.read_text(sweep, PLAN))]
    done = tracker.find_all_finished(set(keys))
    return [done[key] for key in keys if key in done]


def find_runs(tracker: Tracker, names: Sequence[str]) -> list[RunRecord]:
    """The runs of spaces' latest sweeps, and of the ids of sweeps, trials and dense runs; each once."""
    found: dict[str, RunRecord] = {}
    for name in names:
        found |= {row.run_id: row for row in _named(tracker, name)}
    return list(found.values())


def _named(tracker: Tracker, name: str) -> list[RunRecord]:
    if len(name) == 32 and all(sign in "0123456789abcdef" for sign in name):
        row = tracker.get_run(name)
        if row.tags.get("kind") in ("dense", "trial"):
            if row.status != "FINISHED" or "key" not in row.tags:
                raise StoreError(f"run {name} is {row.status} and holds no whole result to measure")
            return [row]
    return trials_of(tracker, find_sweep(tracker, name))


def measure_runs(
    tracker: Tracker, rows: Sequence[RunRecord], options: LatencyOptions = STANDARD, *, tell: Tell = to_stderr
) -> int:
    """Measure the networks of these runs one after the other; each is recorded before the next.

    How many networks were timed comes back. Interrupted, it leaves what is measured.
    """
    tasks = plan_tasks(tracker, rows, options)
    for number, task in enumerate(tasks, start=1):
        forms = load_forms(tracker, task.rows[0])
        found = [measure(forms, batch=batch, seconds=options.seconds) for batch in task.batches]
        for row in task.rows:
            _record(tracker, row, found, measured_on=task.rows[0].run_id)
        alike = f" and {len(task.rows) - 1} alike" if len(task.rows) > 1 else ""
        tell(f"{number}/{len(tasks)} {task.rows[0].name}{alike}: {'; '.join(map(_said, found))}")
    return len(tasks)


def _said(latency: Latency) -> str:
    shipped = latency.timing.spreads[latency.form]
    doubts = f", unreliable: {', '.join(latency.timing.doubts)}" if latency.timing.doubts else ""
    return f"batch {latency.batch}: {latency.form} {shipped.p50:.3g} ms, {latency.speedup:.3g}x{doubts}"


def load_forms(tracker: Tracker, row: RunRecord) -> NetworkVariants:
    """The network of a run in all its forms; the dense one is a fresh draw, as fast as any."""
    saved = saved_model(tracker, row)
    model, shape, classes = saved.spec.architecture
    with seeded(0):
        dense = models.build(model, input_shape=shape, num_classes=classes)
    if all(mask.all() for mask in saved.masks.values()):
        return NetworkVariants(dense, shape)
    forms = NetworkVariants(dense, shape, build_module(saved, tracker, cut=False), masks=saved.masks)
    if saved.spec.cut_widths is None:
        return forms
    return replace(forms, cut=build_module(saved, tracker, cut=True))


def _record(tracker: Tracker, row: RunRecord, found: Sequence[Latency], *, measured_on: str) -> None:
    """Metrics and tag in one call: a run has both or neither."""
    points = [MetricPoint(name, value) for latency in found for name, value in latency.metrics().items()]
    new = {str(latency.batch): _conditions(latency, measured_on) for latency in found}
    tracker.attach(row).log(metrics=points, tags={TAG: json.dumps({**_tag(row), **new})})


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
    """How a run's latency at a batch size was measured; empty where it was not."""
    found: Json = _tag(row).get(str(batch), {})
    return found


def _tag(row: RunRecord) -> dict[str, Json]:
    return dict(json.loads(row.tags.get(TAG, "{}")))
