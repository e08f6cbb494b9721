"""The experiments and runs of an MLflow store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from urllib.parse import quote

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from orchestrator.errors import StoreError
from orchestrator.storage import sqlite_runs
from orchestrator.storage.locks import is_owner_alive, owner
from orchestrator.storage.outbox import DataInput
from orchestrator.storage.runs import RunRecord, Runs, Value
from orchestrator.storage.sqlite_rows import NewRun, RunRows, create_run
from orchestrator.storage.uri import redact_uri, store_folder
from orchestrator.system.memory import infrequent_gc
from orchestrator.tracking.artifacts import Artifacts
from orchestrator.tracking.errors import STORE_FAULTS, breaker_for, translates_errors
from orchestrator.tracking.run_writer import ActiveRun, dataset_row

NOTE = "mlflow.note.content"  # the tag that MLflow's pages show as a run's description
NOTE_LENGTH = 7500  # characters; the store cuts tags at 8000
PAGE_RUNS = 1000
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for no valid run id
# How long the list of experiments is reused. A new sweep takes longer from creating its experiment to its
# first result, so that no finished run is missed.
CACHE_SECONDS = 3.0


def make_record(run: Run) -> RunRecord:
    """Turn MLflow's run into a RunRecord."""
    return RunRecord(
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
    """Return the address of MLflow's page that compares these runs; `base` is the server's."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


def open_store(uri: str, experiment: str = "") -> Tracker:
    """Return a tracker of an existing store, for reading. Writes nothing; StoreError if there is no store."""
    tracker = Tracker(uri, experiment)
    tracker.client  # noqa: B018  # connects, which checks the store
    return tracker


class Tracker(Artifacts, Runs):
    """One experiment of one store: its runs, and a search over all experiments."""

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri)
        self.experiment = experiment
        self._experiment_id = ""
        self._experiments: list[str] = []
        self._experiments_until = 0.0

    def translating_errors(self) -> AbstractContextManager[None]:
        """Within the block, translate errors of calls to this store; see `errors.translating_errors`."""
        return breaker_for(self.uri).translating_errors()

    @property
    @translates_errors
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is created if it is missing."""
        if not self._experiment_id:
            self._experiment_id = self._find_or_create()
        return self._experiment_id

    @property
    @translates_errors
    def artifact_root(self) -> str:
        """The URI below which the files of new runs are stored."""
        return str(self.client.get_experiment(self.experiment_id).artifact_location)

    def _own_experiment(self) -> list[str]:
        """Return the id of the experiment, if it exists: a search creates none."""
        if not self._experiment_id:
            experiment = self.client.get_experiment_by_name(self.experiment)
            return [] if experiment is None else [str(experiment.experiment_id)]
        return [self._experiment_id]

    def _find_or_create(self) -> str:
        experiment = self.client.get_experiment_by_name(self.experiment)
        # MLflow keeps the name of a deleted experiment, and refuses another of that name.
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        if experiment is not None:
            return str(experiment.experiment_id)
        folder = store_folder(self.uri)
        location = None if folder is None else (folder / "artifacts" / self.experiment).as_uri()
        self._experiments_until = 0.0
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._find_or_create()  # another process has created it meanwhile

    @translates_errors
    def start(
        self,
        kind: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str],
        start_ms: int | None = None,
        params: Mapping[str, Value] | None = None,
        data: DataInput | None = None,
    ) -> ActiveRun:
        """Create a RUNNING run: FINISHED at the end of its block, FAILED with a reason if it raises.

        `params` and `data`, its input, are logged with it where that is one transaction (`has_start`).
        """
        all_tags = {"kind": kind, "owner": owner(), **tags}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        start_ms = start_ms or int(time.time() * 1000)
        rows = RunRows(
            {param: str(value) for param, value in (params or {}).items()},
            tags=all_tags,
            dataset=None if data is None else dataset_row(data),
        )
        created = create_run(self.uri, NewRun(self.experiment_id, name, start_ms), rows)
        if created is not None:
            return ActiveRun(self.client, *created, has_start=True)
        run = self.client.create_run(self.experiment_id, start_ms, all_tags, run_name=name)
        return ActiveRun(self.client, run.info.run_id, run.info.artifact_uri)

    def attach(self, row: RunRecord) -> ActiveRun:
        """Return an existing run for writing."""
        return ActiveRun(self.client, row.run_id, row.artifact_uri)

    @translates_errors
    def reopen(self, run_id: str) -> ActiveRun:
        """Set a run RUNNING again, with this process as its owner."""
        self.client.update_run(run_id, "RUNNING")
        self.client.set_tag(run_id, "owner", owner())
        return self.attach(self.get_run(run_id))

    def runs_of_task(self, key: str) -> list[RunRecord]:
        """Return the runs of one task in this experiment, of any status."""
        return self.search(f"tags.point = '{key}'")

    def run_of_pending(self, id: str) -> RunRecord | None:
        """Return the run that was started for a pending run, if any."""
        return next(iter(self.search(f"tags.parcel = '{id}'")), None)

    @translates_errors
    def search(self, query: str, *, everywhere: bool = False, metric: str | None = None) -> list[RunRecord]:
        """Return active runs of this experiment, or of the whole store, newest first.

        With `metric` the rows may hold this metric alone, and no params, which takes less time.
        """
        experiments = None if everywhere else self._own_experiment()
        if experiments == []:
            return []
        rows = sqlite_runs.search(self.uri, query, experiments, metric=metric)
        if rows is not None:
            return rows
        return self._search(query, self._all_experiments() if experiments is None else experiments)

    @translates_errors
    def find_finished(self, key: str) -> RunRecord | None:
        """Return the finished run of a key, or None; of two the older."""
        query = f"attributes.status = 'FINISHED' and tags.key = '{key}'"
        rows = sqlite_runs.search(self.uri, query)
        if rows is None:
            is_cached = monotonic() < self._experiments_until
            rows = self._search(query, self._experiments if is_cached else self._all_experiments())
        return next((row for row in reversed(rows) if "invalid" not in row.tags), None)

    @translates_errors
    def experiments(self) -> dict[str, str]:
        """Return name -> id of all active experiments."""
        return {
            experiment.name: str(experiment.experiment_id) for experiment in self.client.search_experiments()
        }

    @translates_errors
    def experiment_tags(self) -> Mapping[str, str]:
        """Return the tags of this experiment."""
        return dict(self.client.get_experiment(self.experiment_id).tags)

    @translates_errors
    def set_experiment_tag(self, name: str, text: str) -> None:
        self.client.set_experiment_tag(self.experiment_id, name, text)

    def _all_experiments(self) -> list[str]:
        self._experiments = list(self.experiments().values())
        self._experiments_until = monotonic() + CACHE_SECONDS
        return self._experiments

    def _search(self, query: str, ids: list[str]) -> list[RunRecord]:
        """Search through MLflow, page by page."""
        rows: list[RunRecord] = []
        token: str | None = None
        while True:
            with infrequent_gc():
                page = self.client.search_runs(ids, query, ViewType.ACTIVE_ONLY, PAGE_RUNS, page_token=token)
                rows += [make_record(run) for run in page]
            token = page.token
            if not token:
                return rows

    @translates_errors
    def get_run(self, run_id: str) -> RunRecord:
        """Return one run by its id; StoreError if there is none."""
        try:
            return make_record(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code not in NO_SUCH_RUN:
                raise
            raise StoreError(
                f"no run {run_id!r} in {redact_uri(self.uri)}; `orchestrate ui` shows what there is"
            ) from error

    @translates_errors
    def close_abandoned(self) -> None:
        """Set runs of this experiment that a dead process of this host left RUNNING to KILLED."""
        for row in self.search("attributes.status = 'RUNNING'"):
            if not is_owner_alive(row.tags.get("owner", "")):
                self.close(row.run_id, "its process died before the run was finished")

    @translates_errors
    def close_children(self, parent: str, reason: str) -> None:
        """Set the RUNNING children of a run to KILLED."""
        for row in self.search(f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent}'"):
            self.close(row.run_id, reason)

    @translates_errors
    def close(self, run_id: str, reason: str, *, status: str = "KILLED") -> None:
        """End a run as KILLED, or as `status`, with a tag that gives the reason."""
        self.client.set_tag(run_id, "reason", reason)
        self.client.set_terminated(run_id, status)

    @translates_errors
    def metric_history(self, run_id: str, name: str) -> dict[int, float]:
        """Return step -> value of a metric; of two values at one step the later."""
        return {point.step: point.value for point in self.client.get_metric_history(run_id, name)}

    @translates_errors
    def data_digests(self, run_id: str) -> dict[str, str]:
        """Return name -> digest of the data sets that are inputs of a run."""
        inputs = self.client.get_run(run_id).inputs
        return {item.dataset.name: item.dataset.digest for item in (inputs.dataset_inputs if inputs else ())}

    @translates_errors
    def data_sizes(self, run_id: str) -> dict[str, dict[str, int]]:
        """Return name -> split -> images of the data sets that are inputs of a run; {} where not recorded."""
        inputs = self.client.get_run(run_id).inputs
        sets = [item.dataset for item in (inputs.dataset_inputs if inputs else ())]
        return {data.name: json.loads(data.profile or "{}") for data in sets}

    def try_set_tag(self, run_id: str, name: str, value: str) -> bool:
        """Set a tag; return False if the store cannot be written now."""
        try:
            self.client.set_tag(run_id, name, value)
        except (*STORE_FAULTS, StoreError):
            return False
        return True

    @translates_errors
    def delete_tag(self, run_id: str, name: str) -> None:
        self.client.delete_tag(run_id, name)

    @translates_errors
    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self.client.set_tag(run_id, name, value)
