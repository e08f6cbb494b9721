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
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.redaction import redact
from orchestrator.storage.runs import DIGEST_LENGTH, TAG_LENGTH, MetricPoint, Value
from orchestrator.tracking.errors import STORE_FAULTS, translates_errors

PARAMS_A_CALL, METRICS_A_CALL = 100, 1000


class ActiveRun:
    """A run that is being written; use it in a `with`."""

    def __init__(self, client: MlflowClient, run_id: str, artifact_uri: str) -> None:
        self.client = client
        self.run_id = run_id
        self.artifact_uri = artifact_uri
        self.status = "FINISHED"

    @property
    def uri(self) -> str:
        """The address of its store."""
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
        except (
            *STORE_FAULTS,
            StoreError,
        ) as fault:  # the run stays open; who claims the sweep next closes it
            error.add_note(f"the store could not be told: {fault}")

    def _end_with(self, error: BaseException) -> None:
        if not isinstance(error, OrchestrateError):
            self.client.log_text(self.run_id, redact("".join(format_exception(error))), "traceback.txt")
        self.client.set_tag(self.run_id, "reason", redact(f"{type(error).__name__}: {error}")[:TAG_LENGTH])
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        self.end("KILLED" if stopped else "FAILED")

    @translates_errors
    def end(self, status: str, *, end_ms: int | None = None) -> None:
        """FINISHED, FAILED or KILLED; now, or at a time of before."""
        self.client.set_terminated(self.run_id, status, end_ms)

    @translates_errors
    def log(
        self,
        *,
        params: Mapping[str, Value] | None = None,
        metrics: Iterable[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
        at_ms: int | None = None,
    ) -> None:
        """Params, metrics and at last tags, in as few calls as the store's limits allow. No value may be NaN.

        `at_ms` is the time of the metrics, if it is not now; logged twice at one time they are there once.
        """
        now = int(time.time() * 1000) if at_ms is None else at_ms
        points = [Metric(point.name, point.value, now, point.step) for point in metrics]
        if bad := [point.key for point in points if point.value != point.value]:
            raise ValueError(f"metric {bad[0]} is NaN, and is not logged")
        items = [Param(name, str(value)) for name, value in (params or {}).items()]
        marks = [RunTag(name, value) for name, value in (tags or {}).items()]
        while len(points) > METRICS_A_CALL or len(items) > PARAMS_A_CALL:
            self.client.log_batch(self.run_id, points[:METRICS_A_CALL], items[:PARAMS_A_CALL])
            points, items = points[METRICS_A_CALL:], items[PARAMS_A_CALL:]
        while points or items or marks:
            self.client.log_batch(self.run_id, points, items, marks[:PARAMS_A_CALL])
            points, items, marks = [], [], marks[PARAMS_A_CALL:]

    @translates_errors
    def log_dataset(self, name: str, digest: str, sizes: Mapping[str, int]) -> None:
        """The data set as an input of the run; `digest` is cut to what MLflow holds, `sizes` in images."""
        known, sizes_text = json.dumps({"name": name}), json.dumps(dict(sizes))
        data = Dataset(name, digest[:DIGEST_LENGTH], "code", known, None, sizes_text)
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "train")])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            # Two runs that bring a data set to an experiment at once: it is there for the second try.
            if "IntegrityError" not in str(error):
                raise
            self.client.log_inputs(self.run_id, inputs)

    @translates_errors
    def log_folder(self, folder: Path) -> None:
        # The client would ask the store for the run first, to learn its address.
        place = get_artifact_repository(self.artifact_uri, tracking_uri=self.client.tracking_uri)
        place.log_artifacts(str(folder))
