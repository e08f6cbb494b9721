"""Experiments, runs and artifacts of an MLflow store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from urllib.parse import quote

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from orchestrator.errors import StoreError
from orchestrator.storage import sqlite_runs
from orchestrator.storage.locks import is_owner_alive, owner
from orchestrator.storage.runs import RunRecord, Runs
from orchestrator.storage.uri import redact_uri, store_folder
from orchestrator.system.memory import infrequent_gc
from orchestrator.tracking.active_run import ActiveRun
from orchestrator.tracking.artifacts import Artifacts
from orchestrator.tracking.errors import STORE_FAULTS, breaker_for, translates_errors

NOTE = "mlflow.note.content"
NOTE_LENGTH = 7500  # characters; the store cuts tags at 8000


def make_record(run: Run) -> RunRecord:
    """A run of MLflow's as a row."""
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
    """The address of MLflow's compare view for these runs."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


PAGE = 1000
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for what is no run id
KNOWN_SECONDS = 3.0  # shorter than what lies between a new sweep's experiment and its first result


def open_store(uri: str, experiment: str = "") -> Tracker:
    """The tracker of a store that is there, for who reads. Writes nothing; StoreError where there is none."""
    tracker = Tracker(uri, experiment)
    tracker.client  # noqa: B018  which looks whether it can be used
    return tracker


class Tracker(Artifacts, Runs):
    """One experiment of one store."""

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri)
        self.experiment = experiment
        self._experiment_id = ""
        self._experiments: list[str] = []
        self._experiments_until = 0.0

    def translating_errors(self) -> AbstractContextManager[None]:
        """Calls of this store; what they raise where it is away, full or refuses is in `faults.reaching`."""
        return breaker_for(self.uri).translating_errors()

    @property
    @translates_errors
    def experiment_id(self) -> str:
        """The experiment's id; it is made if there is none."""
        if not self._experiment_id:
            self._experiment_id = self._find_or_create()
        return self._experiment_id

    @property
    @translates_errors
    def artifact_root(self) -> str:
        """Where the files of new runs go: a folder of a disk, or what a server answers for."""
        return str(self.client.get_experiment(self.experiment_id).artifact_location)

    def _own_experiment(self) -> list[str]:
        """The experiment, if there is one: who searches makes none."""
        if not self._experiment_id:
            found = self.client.get_experiment_by_name(self.experiment)
            return [] if found is None else [str(found.experiment_id)]
        return [self._experiment_id]

    def _find_or_create(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is not None:
            return str(found.experiment_id)
        folder = store_folder(self.uri)
        place = None if folder is None else (folder / "artifacts" / self.experiment).as_uri()
        self._experiments_until = 0.0
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._find_or_create()  # another process was faster

    @translates_errors
    def start(
        self,
        kind: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str],
        start_ms: int | None = None,
    ) -> ActiveRun:
        """A RUNNING run: FINISHED at the end of its block, FAILED with the reason if the block raises."""
        described = {"kind": kind, "owner": owner(), **tags}
        if parent is not None:
            described["mlflow.parentRunId"] = parent
        created = self.client.create_run(self.experiment_id, start_ms, described, run_name=name)
        return ActiveRun(self.client, created.info.run_id, created.info.artifact_uri)

    def attach(self, row: RunRecord) -> ActiveRun:
        """A run that was begun before, to be written on."""
        return ActiveRun(self.client, row.run_id, row.artifact_uri)

    @translates_errors
    def reopen(self, run_id: str) -> ActiveRun:
        """A run of before, RUNNING again under this process."""
        self.client.update_run(run_id, "RUNNING")
        self.client.set_tag(run_id, "owner", owner())
        return self.attach(self.get_run(run_id))

    def runs_of_task(self, key: str) -> list[RunRecord]:
        """The runs of one point in this experiment, however they ended or did not."""
        return self.search(f"tags.point = '{key}'")

    def run_of_pending(self, id: str) -> RunRecord | None:
        """The run that was begun for a parcel."""
        return next(iter(self.search(f"tags.parcel = '{id}'")), None)

    @translates_errors
    def search(self, query: str, *, everywhere: bool = False, metric: str | None = None) -> list[RunRecord]:
        """Active runs of this experiment, or of the whole store, newest first.

        Who wants one `metric` alone, and no params, may get no others, in less time.
        """
        own = None if everywhere else self._own_experiment()
        if own == []:
            return []
        found = sqlite_runs.search(self.uri, query, own, metric=metric)
        if found is not None:
            return found
        return self._search(query, self._all_experiments() if own is None else own)

    @translates_errors
    def find_finished(self, key: str) -> RunRecord | None:
        """The finished run of one key, or None."""
        query = f"attributes.status = 'FINISHED' and tags.key = '{key}'"
        rows = sqlite_runs.search(self.uri, query)
        if rows is None:
            rows = self._search(query, self._experiment_ids())
        return next((row for row in reversed(rows) if "invalid" not in row.tags), None)

    @translates_errors
    def experiments(self) -> dict[str, str]:
        """Name -> id of all that are active."""
        return {e.name: str(e.experiment_id) for e in self.client.search_experiments()}

    @translates_errors
    def experiment_tags(self) -> Mapping[str, str]:
        """What is said of this experiment."""
        return dict(self.client.get_experiment(self.experiment_id).tags)

    @translates_errors
    def set_experiment_tag(self, name: str, text: str) -> None:
        self.client.set_experiment_tag(self.experiment_id, name, text)

    def _all_experiments(self) -> list[str]:
        self._experiments = [str(e.experiment_id) for e in self.client.search_experiments()]
        self._experiments_until = monotonic() + KNOWN_SECONDS
        return self._experiments

    def _experiment_ids(self) -> list[str]:
        """All experiments, as they were a moment ago: none that is younger holds a finished run."""
        return self._experiments if monotonic() < self._experiments_until else self._all_experiments()

    def _search(self, query: str, ids: list[str]) -> list[RunRecord]:
        """As MLflow finds them, page by page."""
        rows: list[RunRecord] = []
        token: str | None = None
        while True:
            with infrequent_gc():
                page = self.client.search_runs(ids, query, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
                rows += [make_record(run) for run in page]
            token = page.token
            if not token:
                return rows

    @translates_errors
    def get_run(self, run_id: str) -> RunRecord:
        """One run by its id; StoreError if there is none."""
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
        """Mark runs of this experiment that a dead process of this host left RUNNING as KILLED."""
        for row in self.search("attributes.status = 'RUNNING'"):
            if not is_owner_alive(row.tags.get("owner", "")):
                self.close(row.run_id, "its process died before the run was finished")

    @translates_errors
    def close_children(self, parent: str, reason: str) -> None:
        """Mark what is still RUNNING below a run as KILLED."""
        for row in self.search(f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent}'"):
            self.close(row.run_id, reason)

    @translates_errors
    def close(self, run_id: str, reason: str, *, status: str = "KILLED") -> None:
        """Mark a run as KILLED, or as what `status` says, and say why."""
        self.client.set_tag(run_id, "reason", reason)
        self.client.set_terminated(run_id, status)

    @translates_errors
    def metric_history(self, run_id: str, name: str) -> dict[int, float]:
        """Step -> value of one metric; of two values at one step the later."""
        return {point.step: point.value for point in self.client.get_metric_history(run_id, name)}

    @translates_errors
    def data_digests(self, run_id: str) -> dict[str, str]:
        """Name -> digest of the data sets that are inputs of a run."""
        inputs = self.client.get_run(run_id).inputs
        return {item.dataset.name: item.dataset.digest for item in (inputs.dataset_inputs if inputs else ())}

    def try_set_tag(self, run_id: str, name: str, value: str) -> bool:
        """Set a tag; False where the store cannot be written now."""
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
