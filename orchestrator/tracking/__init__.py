"""Runs in MLflow: the one record of what was done. Nothing outside this package imports mlflow.

A run is found again by the tag `key`, which it gets after its tensors are stored and before it is
FINISHED. A run of a few calls: create, one batch or two, inputs, artifacts, the key, the end.
"""

from orchestrator.store.runs import DIGEST_LENGTH, TAG_LENGTH, MetricPoint, RunRow, Value
from orchestrator.tracking.line import REST_SECONDS, line_to
from orchestrator.tracking.open_run import OpenRun
from orchestrator.tracking.rows import NOTE, NOTE_LENGTH, compare_address
from orchestrator.tracking.tracker import Tracker, initialise

__all__ = [
    "DIGEST_LENGTH",
    "NOTE",
    "NOTE_LENGTH",
    "REST_SECONDS",
    "TAG_LENGTH",
    "MetricPoint",
    "OpenRun",
    "RunRow",
    "Tracker",
    "Value",
    "compare_address",
    "initialise",
    "line_to",
]
