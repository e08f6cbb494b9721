"""Runs in MLflow: the one record of what was done. Nothing else imports mlflow.

A run is found again by the tag `key`, which it gets after its tensors are stored and before it is
FINISHED. A run of a few calls: create, one batch or two, inputs, artifacts, the key, the end.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.address import shown, store_folder
from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.ownership import owner, owner_lives

PAGE = 1000
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000
TAG_LENGTH = 500
DIGEST_LENGTH = 36
NOTE = "mlflow.note.content"
NOTE_LENGTH = 7500  # characters; the store cuts tags at 8000
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
Value = str | int | float | bool | None


@dataclass(frozen=True)
class MetricPoint:
    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class RunRow:
    """One run as the store lists it."""

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifact_uri: str
    start_ms: int
    end_ms: int | None


def initialise(uri: str) -> None:
    """Create or migrate the store, one process at a time. StoreError where it cannot be used."""
    folder = store_folder(uri)
    try:
        if folder is None:
            MlflowClient(uri).search_experiments(max_results=1)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".mlflow.lock", timeout=60):
            MlflowClient(uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # a driver may be missing
        reason = shown(str(error).splitlines()[0])
        raise StoreError(
            f"the store {shown(uri)} cannot be used: {reason}; set MLFLOW_TRACKING_URI"
        ) from error


class Tracker:
    """One experiment of one store."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def client(self) -> MlflowClient:
        self._client = self._client or MlflowClient(self.uri)
        return self._client

    @property
    def experiment_id(self) -> str:
        if not self._experiment_id:
            self._experiment_id = self._find_or_create()
        return self._experiment_id

    def _find_or_create(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is not None:
            return str(found.experiment_id)
        folder = store_folder(self.uri)
        place = None if folder is None else (folder / "artifacts" / self.experiment).as_uri()
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=place))
        except MlflowException:  # another process was faster
            return self._find_or_create()

    def start(self, kind: str, name: str, *, parent: str | None = None, tags: Mapping[str, str]) -> OpenRun:
        """A RUNNING run: FINISHED at the end of its block, FAILED with the reason if the block raises."""
        described = {"kind": kind, "owner": owner(), **tags}
        if parent is not None:
            described["mlflow.parentRunId"] = parent
        created = self.client.create_run(self.experiment_id, tags=described, run_name=name)
        return OpenRun(self.client, created.info.run_id)

    def reopen(self, run_id: str) -> OpenRun:
        """A run of before, RUNNING again under this process."""
        self.client.update_run(run_id, "RUNNING")
        self.client.set_tag(run_id, "owner", owner())
        return OpenRun(self.client, run_id)

    def finished(self, keys: Collection[str] | None = None) -> dict[str, RunRow]:
        """Key -> finished run, over the whole store; of two with one key the older."""
        found: dict[str, RunRow] = {}
        for row in self.search("attributes.status = 'FINISHED' and tags.key LIKE '_%'", everywhere=True):
            key = row.tags["key"]
            wanted = (keys is None or key in keys) and "invalid" not in row.tags
            if wanted and (key not in found or row.start_ms < found[key].start_ms):
                found[key] = row
        return found

    def stopped(self, keys: Collection[str], stop: str) -> dict[str, RunRow]:
        """Key -> the latest run that was stopped by the rule `stop`, over the whole store."""
        rows = self.search("attributes.status = 'FINISHED' and tags.stopped_key LIKE '_%'", everywhere=True)
        found = {row.tags["stopped_key"]: row for row in reversed(rows) if row.tags.get("stop") == stop}
        return {key: row for key, row in found.items() if key in keys}

    def failed(self, keys: Collection[str]) -> dict[str, RunRow]:
        """Key -> the latest FAILED run of the point, over the whole store."""
        rows = self.search("attributes.status = 'FAILED' and tags.point LIKE '_%'", everywhere=True)
        return {row.tags["point"]: row for row in reversed(rows) if row.tags["point"] in keys}

    def finished_one(self, key: str) -> RunRow | None:
        """The finished run of one key, or None."""
        rows = self.search(f"attributes.status = 'FINISHED' and tags.key = '{key}'", everywhere=True)
        return next((row for row in reversed(rows) if "invalid" not in row.tags), None)

    def search(self, query: str, *, everywhere: bool = False) -> list[RunRow]:
        """Active runs of this experiment, or of the whole store, newest first."""
        ids = (
            [e.experiment_id for e in self.client.search_experiments()]
            if everywhere
            else [self.experiment_id]
        )
        rows: list[RunRow] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(ids, query, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
            rows += [_row(run) for run in page]
            token = page.token
            if not token:
                return rows

    def row(self, run_id: str) -> RunRow:
        """One run by its id; StoreError if there is none."""
        try:
            return _row(self.client.get_run(run_id))
        except MlflowException as error:
            raise StoreError(
                f"no run {run_id!r} in {shown(self.uri)}; `orchestrate ui` shows what there is"
            ) from error

    def close_abandoned(self) -> None:
        """Mark runs of this experiment that a dead process of this host left RUNNING as KILLED."""
        for row in self.search("attributes.status = 'RUNNING'"):
            if not owner_lives(row.tags.get("owner", "")):
                self.close(row.run_id, "its process died before the run was finished")

    def close_children(self, parent: str, reason: str) -> None:
        """Mark what is still RUNNING below a run as KILLED."""
        for row in self.search(f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent}'"):
            self.close(row.run_id, reason)

    def close(self, run_id: str, reason: str) -> None:
        """Mark a run as KILLED, and say why."""
        self.client.set_tag(run_id, "reason", reason)
        self.client.set_terminated(run_id, "KILLED")

    def upload(self, run_id: str, files: Mapping[str, str | bytes]) -> None:
        """Artifacts of a run from text or bytes, by path."""
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                place = Path(folder) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.encode() if isinstance(content, str) else content)
            self.client.log_artifacts(run_id, folder)

    def history(self, run_id: str, name: str) -> dict[int, float]:
        """Step -> value of one metric; of two values at one step the later."""
        return {point.step: point.value for point in self.client.get_metric_history(run_id, name)}

    def data_digests(self, run_id: str) -> dict[str, str]:
        """Name -> digest of the data sets that are inputs of a run."""
        inputs = self.client.get_run(run_id).inputs
        return {item.dataset.name: item.dataset.digest for item in (inputs.dataset_inputs if inputs else ())}

    def text(self, row: RunRow, path: str) -> str:
        """A text artifact of a run; StoreError if it is not there."""
        try:
            return self.folder(row, path).read_text()
        except (OSError, MlflowException) as error:
            raise StoreError(f"run {row.run_id} has no artifact {path}: {error}") from error

    def local_folder(self, row: RunRow, path: str) -> Path | None:
        """Where a run's artifacts below `path` lie on this disk; None for a store elsewhere."""
        if not row.artifact_uri.startswith("file://"):
            return None
        return Path(url2pathname(urlsplit(row.artifact_uri).path)) / path

    def folder(self, row: RunRow, path: str) -> Path:
        """A local folder with a run's artifacts below `path`: the store's own where it is on this disk."""
        return self.local_folder(row, path) or Path(
            self.client.download_artifacts(row.run_id, path, tempfile.mkdtemp())
        )

    def try_tag(self, run_id: str, name: str, value: str) -> bool:
        """Set a tag; False where the store cannot be written now."""
        try:
            self.client.set_tag(run_id, name, value)
        except (MlflowException, SQLAlchemyError, OSError):
            return False
        return True

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self.client.set_tag(run_id, name, value)


class OpenRun:
    """A run that is being written; use it in a `with`."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.status = "FINISHED"

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.client.set_terminated(self.run_id, self.status)
            return
        if not isinstance(error, OrchestrateError):
            self.client.log_text(self.run_id, "".join(format_exception(error)), "traceback.txt")
        self.client.set_tag(self.run_id, "reason", f"{type(error).__name__}: {error}"[:TAG_LENGTH])
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        self.client.set_terminated(self.run_id, "KILLED" if stopped else "FAILED")

    def log(
        self,
        *,
        params: Mapping[str, Value] | None = None,
        metrics: Iterable[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Params, metrics and tags in as few calls as the store's limits allow. No value may be NaN."""
        now = int(time.time() * 1000)
        points = [Metric(point.name, point.value, now, point.step) for point in metrics]
        if bad := [point.key for point in points if point.value != point.value]:
            raise ValueError(f"metric {bad[0]} is NaN, and is not logged")
        items = [Param(name, str(value)) for name, value in (params or {}).items()]
        marks = [RunTag(name, value) for name, value in (tags or {}).items()]
        while points or items or marks:
            self.client.log_batch(
                self.run_id, points[:METRICS_A_CALL], items[:PARAMS_A_CALL], marks[:PARAMS_A_CALL]
            )
            points, items, marks = points[METRICS_A_CALL:], items[PARAMS_A_CALL:], marks[PARAMS_A_CALL:]

    def log_data(self, name: str, digest: str, sizes: Mapping[str, int]) -> None:
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

    def log_folder(self, folder: Path) -> None:
        self.client.log_artifacts(self.run_id, str(folder))


def _row(run: Run) -> RunRow:
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
