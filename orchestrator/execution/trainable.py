"""The Tune trainable: run one task, report progress, obey stop signals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from uuid import uuid4

import ray
from ray import tune
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from orchestrator.execution.searcher import METRICS, STOPPED, SUCCEEDED
from orchestrator.execution.worker import run_task
from orchestrator.trial.task import Task, WorkerSettings


@dataclass(frozen=True)
class StopSignals:
    """Reasons by the keys of trials, in a place of their own."""

    folder: str = field(default_factory=lambda: f"orchestrate/{uuid4().hex}/")

    def set(self, key: str, reason: str) -> None:
        """Every worker finds it once this has returned."""
        _internal_kv_put(self.folder + key, reason, overwrite=True)

    def get(self, key: str) -> str:
        """Why the trial is to stop; empty where it goes on."""
        found: bytes | None = _internal_kv_get(self.folder + key)
        return (found or b"").decode()

    def clear(self) -> None:
        _internal_kv_del(self.folder, del_by_prefix=True)


SECONDS_BETWEEN_BEATS = 1.0


def trainable(
    config: Mapping[str, str], settings: WorkerSettings, verdicts: StopSignals | None, *, shared: bool
) -> None:
    """Run one point in a worker; `verdicts` is None where no trial is stopped.

    In a `shared` cluster a point's run is tagged with the node that it ran on.
    """
    point, last, verdict = Task.from_text(config["point"]), monotonic(), ""
    if shared:
        node = ray.get_runtime_context().get_node_id()
        point = replace(point, tags={**(point.tags or {}), "node": node})

    def beat(values: dict[str, float]) -> None:
        nonlocal last
        if monotonic() - last > SECONDS_BETWEEN_BEATS:
            last = monotonic()
            tune.report({SUCCEEDED: 0, **values})

    def judge(values: dict[str, float]) -> str:
        nonlocal last, verdict
        last = monotonic()
        tune.report({SUCCEEDED: 0, **values})  # returns once the scheduler has judged
        verdict = "" if verdicts is None else verdicts.get(point.key)
        return verdict

    try:
        metrics = run_task(point, settings, on_progress=beat, should_stop=judge)
    # The boundary of a worker: whatever a trial raises is in its run already, and the sweep goes on.
    except Exception as error:  # noqa: BLE001
        tune.report({SUCCEEDED: 0, "reason": f"{type(error).__name__}: {error}"})
    else:
        whole = {SUCCEEDED: 1, METRICS: json.dumps(metrics)}
        tune.report(whole if metrics else {SUCCEEDED: 0, STOPPED: verdict})
