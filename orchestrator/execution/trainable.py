"""The Tune trainable: run one task, report progress, obey stop signals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from uuid import uuid4

import ray
from ray import tune

from orchestrator.execution.dag_searcher import METRICS, OUTCOMES, REASON, STOPPED, SUCCEEDED, TASKS
from orchestrator.execution.ray_patches import internal_kv
from orchestrator.execution.worker import run_tasks
from orchestrator.training.loop import run_training
from orchestrator.trial.task import Task, WorkerSettings, load_tasks


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
    """Run one task, or several as a stack, in a worker; `stop_signals` is None where no trial is stopped.

    In a cluster of several nodes the run is tagged with the node that it ran on.
    """
    tasks, last_report, stop_reasons = load_tasks(config[TASKS]), monotonic(), dict[str, str]()
    if in_cluster:
        node = ray.get_runtime_context().get_node_id()
        tasks = tuple(replace(task, tags={**(task.tags or {}), "node": node}) for task in tasks)

    def on_progress(values: dict[str, float]) -> None:
        nonlocal last_report
        if monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = monotonic()
            tune.report({SUCCEEDED: 0, **values})

    def should_stop(task: Task, values: dict[str, float]) -> str:
        nonlocal last_report
        last_report = monotonic()
        tune.report({SUCCEEDED: 0, "task": task.key, **values})  # returns once the scheduler has decided
        stop_reasons[task.key] = "" if stop_signals is None else stop_signals.get(task.key)
        return stop_reasons[task.key]

    run = run_training
    if tasks[0].dense.numerics.devices > 1:
        from orchestrator.execution.device_workers import run_shared  # torch.distributed, which few need

        run = partial(run_shared, tasks[0], settings)
    ended = run_tasks(tasks, settings, on_progress=on_progress, should_stop=should_stop, run_training=run)
    outcomes = {
        task.key: _outcome(metrics, stop_reasons.get(task.key, ""))
        for task, metrics in zip(tasks, ended, strict=True)
    }
    succeeded = all(METRICS in outcome for outcome in outcomes.values())
    tune.report({SUCCEEDED: int(succeeded), OUTCOMES: json.dumps(outcomes)})


def _outcome(metrics: dict[str, float] | Exception, stop_reason: str) -> dict[str, object]:
    """Return how a task ended, as it is reported."""
    if isinstance(metrics, Exception):
        return {REASON: f"{type(metrics).__name__}: {metrics}"}
    return {METRICS: metrics} if metrics else {STOPPED: stop_reason}
