"""MLflow's runs as plain data, and the addresses of its pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from mlflow.entities import Run

from orchestrator.store.runs import RunRow

NOTE = "mlflow.note.content"
NOTE_LENGTH = 7500  # characters; the store cuts tags at 8000


def row_of(run: Run) -> RunRow:
    """A run of MLflow's as a row."""
    return RunRow(
        run.info.run_id,
        run.info.run_name or "",
        run.info.status,
        run.data.params,
        run.data.metrics,
        run.data.tags,
        run.info.artifact_uri or "",
        run.info.start_time,
        run.info.end_time,
    )


def compare_address(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The address of MLflow's compare view for these runs."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"
