"""Runs in MLflow: the one record of what was done. Nothing outside this package imports mlflow.

A run is found again by the tag `key`, which it gets after its tensors are stored and before it is
FINISHED. A run of a few calls: create, one batch or two, inputs, artifacts, the key, the end.
"""

from orchestrator.storage.runs import DIGEST_LENGTH, TAG_LENGTH, MetricPoint, RunRecord, Value
from orchestrator.tracking.active_run import ActiveRun
from orchestrator.tracking.client import NOTE, NOTE_LENGTH, Tracker, compare_address, open_store
from orchestrator.tracking.connection import initialise
from orchestrator.tracking.errors import COOLDOWN_SECONDS, breaker_for
from orchestrator.tracking.sqlite_store import has_store

__all__ = [
    "COOLDOWN_SECONDS",
    "DIGEST_LENGTH",
    "NOTE",
    "NOTE_LENGTH",
    "TAG_LENGTH",
    "ActiveRun",
    "MetricPoint",
    "RunRecord",
    "Tracker",
    "Value",
    "breaker_for",
    "compare_address",
    "has_store",
    "initialise",
    "open_store",
]
