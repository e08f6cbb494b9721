"""A run that is being written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from traceback import format_exception
from types import TracebackType

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.redaction import redact
from orchestrator.storage.outbox import DataInput
from orchestrator.storage.runs import DIGEST_LENGTH, TAG_LENGTH, MetricPoint, Value
from orchestrator.storage.sqlite_rows import DATA_CONTEXT, DatasetRow, RunRows, write_rows
from orchestrator.tracking.errors import STORE_FAULTS, translates_errors
from orchestrator.tracking.mlflow_patches import artifact_repository

MAX_PARAMS_PER_CALL, MAX_METRICS_PER_CALL = 100, 1000  # limits of MLflow's REST interface


def failure_reason(error: BaseException) -> str:
    """Return the tag `reason` of a run that an error ended: the error's type and text without secrets."""
    return redact(f"{type(error).__name__}: {error}")[:TAG_LENGTH]


def dataset_row(data: DataInput) -> DatasetRow:
    """Return a data set as MLflow holds it: DIGEST_LENGTH of its digest, and its sizes in images."""
    source, profile = json.dumps({"name": data.name}), json.dumps(dict(data.sizes))
    return DatasetRow(data.name, data.digest[:DIGEST_LENGTH], source, profile, "train")


class ActiveRun:
    """A run that is being written; use it in a `with`, which ends it."""

    def __init__(
        self, client: MlflowClient, run_id: str, artifact_uri: str, *, has_start: bool = False
    ) -> None:
        """`has_start`: the params and the data set of its start were logged as it was created."""
        self.client = client
        self.run_id = run_id
        self.artifact_uri = artifact_uri
        self.has_start = has_start
        self.status = "FINISHED"

    @property
    def uri(self) -> str:
        """The URI of its store."""
        return str(self.client.tracking_uri)

    def __enter__(self) -> ActiveRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end(self.status)
            return
        try:
            self._end_with(error)
        except (*STORE_FAULTS, StoreError) as fault:
            # The run stays RUNNING; the next process that acquires the sweep's lease closes it.
            error.add_note(f"the run could not be ended in the store: {fault}")

    def _end_with(self, error: BaseException) -> None:
        if not isinstance(error, OrchestrateError):
            self.client.log_text(self.run_id, redact("".join(format_exception(error))), "traceback.txt")
        self.client.set_tag(self.run_id, "reason", failure_reason(error))
        is_stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        self.end("KILLED" if is_stopped else "FAILED")

    @translates_errors
    def end(self, status: str, *, end_ms: int | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, now or at the time `end_ms`."""
        self.log(end=status, at_ms=end_ms)

    @translates_errors
    def log(
        self,
        *,
        params: Mapping[str, Value] | None = None,
        metrics: Iterable[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
        at_ms: int | None = None,
        data: DataInput | None = None,
        end: str = "",
    ) -> None:
        """Log params, a data set as the run's input, metrics and tags, and end the run where `end` says how.

        `at_ms` is the time of the metrics and of the end, by default now: a metric logged twice at one time
        and step is stored once. In a SQLite store all of it is one transaction; else these are as few calls
        as MLflow's limits allow, and the end is last. ValueError for a metric that is NaN.
        """
        now = int(time.time() * 1000) if at_ms is None else at_ms
        points = list(metrics)
        if nan_names := [point.name for point in points if point.value != point.value]:
            raise ValueError(f"metric {nan_names[0]} is NaN, and is not logged")
        texts = {name: str(value) for name, value in (params or {}).items()}
        dataset = None if data is None else dataset_row(data)
        rows = RunRows(texts, points, tags or {}, now, dataset, (end, now) if end else None)
        if not write_rows(self.uri, self.run_id, rows):
            self._log_by_mlflow(rows)

    def _log_by_mlflow(self, rows: RunRows) -> None:
        points = [Metric(point.name, point.value, rows.at_ms, point.step) for point in rows.metrics]
        items = [Param(name, text) for name, text in rows.params.items()]
        run_tags = [RunTag(name, text) for name, text in rows.tags.items()]
        while len(points) > MAX_METRICS_PER_CALL or len(items) > MAX_PARAMS_PER_CALL:
            self.client.log_batch(self.run_id, points[:MAX_METRICS_PER_CALL], items[:MAX_PARAMS_PER_CALL])
            points, items = points[MAX_METRICS_PER_CALL:], items[MAX_PARAMS_PER_CALL:]
        while points or items or run_tags:
            self.client.log_batch(self.run_id, points, items, run_tags[:MAX_PARAMS_PER_CALL])
            points, items, run_tags = [], [], run_tags[MAX_PARAMS_PER_CALL:]
        if rows.dataset is not None:
            self._log_dataset(rows.dataset)
        if rows.end is not None:
            self.client.set_terminated(self.run_id, *rows.end)

    def log_dataset(self, name: str, digest: str, sizes: Mapping[str, int]) -> None:
        """Log a data set as the run's input; `sizes` in images. MLflow holds DIGEST_LENGTH of its digest."""
        self.log(data=DataInput(name, digest, sizes))

    def _log_dataset(self, row: DatasetRow) -> None:
        dataset = Dataset(row.name, row.digest, "code", row.source, None, row.profile)
        inputs = [DatasetInput(dataset, [InputTag(DATA_CONTEXT, row.context)])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            # Two runs that bring one data set to an experiment at once: the second try finds it there.
            if "IntegrityError" not in str(error):
                raise
            self.client.log_inputs(self.run_id, inputs)

    @translates_errors
    def log_folder(self, folder: Path) -> None:
        """Upload all files below a folder as the run's artifacts."""
        # Not `client.log_artifacts`, which would first ask the store for the artifact URI.
        artifact_repository(self.artifact_uri, uri=self.client.tracking_uri).log_artifacts(str(folder))
