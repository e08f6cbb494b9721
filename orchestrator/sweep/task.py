"""What a worker of Ray does with one point: run it, and tell Tune how far it is and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic

import ray
from ray import tune

from orchestrator.launching.point import Point, Settings
from orchestrator.launching.worker import run_point
from orchestrator.search import METRICS, STOPPED, SUCCEEDED
from orchestrator.sweep.verdicts import Verdicts

SECONDS_BETWEEN_BEATS = 1.0


def trainable(
    config: Mapping[str, str], settings: Settings, verdicts: Verdicts | None, *, shared: bool
) -> None:
    """Run one point in a worker; `verdicts` is None where no trial is stopped.

    In a `shared` cluster a point's run is tagged with the node that it ran on.
    """
    point, last, verdict = Point.from_text(config["point"]), monotonic(), ""
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
        verdict = "" if verdicts is None else verdicts.of(point.key)
        return verdict

    try:
        metrics = run_point(point, settings, beat=beat, judge=judge)
    # The boundary of a worker: whatever a trial raises is in its run already, and the sweep goes on.
    except Exception as error:  # noqa: BLE001
        tune.report({SUCCEEDED: 0, "reason": f"{type(error).__name__}: {error}"})
    else:
        whole = {SUCCEEDED: 1, METRICS: json.dumps(metrics)}
        tune.report(whole if metrics else {SUCCEEDED: 0, STOPPED: verdict})
