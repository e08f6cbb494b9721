"""The Tune trainable: run one task, report progress, obey stop signals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from uuid import uuid4

import ray
from ray import tune

from orchestrator.execution.dag_searcher import METRICS, STOPPED, SUCCEEDED, TASK
from orchestrator.execution.ray_patches import internal_kv
from orchestrator.execution.worker import run_task
from orchestrator.trial.task import Task, WorkerSettings


@dataclass(frozen=True)
class StopSignals:
    """Why trials are to stop, by their keys, in Ray's key-value store."""

    prefix: str = field(default_factory=lambda: f"orchestrate/{uuid4().hex}/")

    def set(self, key: str, reason: str) -> None:
        """Set the reason of a trial: every worker can read it once this has returned."""
        internal_kv._internal_kv_put(self.prefix + key, reason, overwrite=True)

    def get(self, key: str) -> str:
        """Return why a trial is to stop, or nothing if it goes on."""
        reason: bytes | None = internal_kv._internal_kv_get(self.prefix + key)
        return (reason or b"").decode()

    def clear(self) -> None:
        internal_kv._internal_kv_del(self.prefix, del_by_prefix=True)


SECONDS_BETWEEN_REPORTS = 1.0


def trainable(
    config: Mapping[str, str], settings: WorkerSettings, stop_signals: StopSignals | None, *, in_cluster: bool
) -> None:
    """Run one task in a worker; `stop_signals` is None where no trial is stopped.

    In a cluster of several nodes the run is tagged with the node that it ran on.
    """
    task, last_report, stop_reason = Task.from_text(config[TASK]), monotonic(), ""
    if in_cluster:
        node = ray.get_runtime_context().get_node_id()
        task = replace(task, tags={**(task.tags or {}), "node": node})

    def on_progress(values: dict[str, float]) -> None:
        nonlocal last_report
        if monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = monotonic()
            tune.report({SUCCEEDED: 0, **values})

    def should_stop(values: dict[str, float]) -> str:
        nonlocal last_report, stop_reason
        last_report = monotonic()
        tune.report({SUCCEEDED: 0, **values})  # returns once the scheduler has decided
        stop_reason = "" if stop_signals is None else stop_signals.get(task.key)
        return stop_reason

    try:
        metrics = run_task(task, settings, on_progress=on_progress, should_stop=should_stop)
    # The boundary of a worker: whatever a trial raises is in its run already, and the sweep goes on.
    except Exception as error:  # noqa: BLE001
        tune.report({SUCCEEDED: 0, "reason": f"{type(error).__name__}: {error}"})
    else:
        success = {SUCCEEDED: 1, METRICS: json.dumps(metrics)}
        tune.report(success if metrics else {SUCCEEDED: 0, STOPPED: stop_reason})
