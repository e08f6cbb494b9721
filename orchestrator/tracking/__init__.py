"""Record and find runs in MLflow. No other package imports mlflow.

A result is found by the tag `key` of its run, which is set after its files are stored and before the run is
FINISHED. Each run takes a few calls: create, one or two batches, inputs, artifacts, the key, the end.
"""

from orchestrator.storage.runs import DIGEST_LENGTH, TAG_LENGTH, MetricPoint, RunRecord, Value
from orchestrator.tracking.client import NOTE, NOTE_LENGTH, Tracker, compare_address, open_store
from orchestrator.tracking.connection import initialise
from orchestrator.tracking.errors import COOLDOWN_SECONDS, breaker_for
from orchestrator.tracking.run_writer import ActiveRun
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
