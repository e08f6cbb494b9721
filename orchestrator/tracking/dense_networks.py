"""The dense networks that trials start from, as the store and the outbox have them."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from orchestrator.config import DenseConfig
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage import model_files
from orchestrator.storage.outbox import Outbox
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.sensitivities import StoredSensitivities
from orchestrator.trial.context import NetworkState
from orchestrator.trial.sensitivity import Question, Sensitivity

CACHED_NETWORKS = 4  # that a worker keeps in memory


class StoredDenseNetworks:
    """Load dense states by key from the outbox or from MLflow; the last few stay in memory.

    `is_in_store`: the last state that was asked for came from MLflow. What was measured of the networks is
    read from their runs and added there, or, where the store cannot be reached, measured again.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox) -> None:
        self.tracker = tracker
        self.outbox = outbox
        self.is_in_store = False

    def dense(self, config: DenseConfig) -> NetworkState | None:
        # The outbox first: a run moves from there to the store, so a state that is in neither never was.
        pending = self._load_pending(config.key())
        stored = self._load_stored(config.key()) if pending is None else None
        self.is_in_store = stored is not None
        return pending or stored

    def sensitivity(self, question: Question) -> Sensitivity | None:
        with suppress(StoreError, OSError), self.tracker.translating_errors():
            return StoredSensitivities(self.tracker).sensitivity(question)
        return None

    def add_sensitivity(self, sensitivity: Sensitivity) -> None:
        # What is stored spares others its time. A folder that is gone, whose OSError is not translated, is no
        # reason to fail a trial that has what it needs.
        with suppress(StoreError, OSError), self.tracker.translating_errors():
            StoredSensitivities(self.tracker).add_sensitivity(sensitivity)

    def _load_pending(self, key: str) -> NetworkState | None:
        pending = self.outbox.find_task_result(key)
        if pending is None:
            return None
        try:
            return _load_state(pending.files / "model", pending.end.tags["manifest_sha256"])
        except StoreError:  # delivered at this very moment
            return None

    def _load_stored(self, key: str) -> NetworkState | None:
        try:
            state = _load_dense_state(self.tracker, key)
        except StoreUnavailableError:
            state = None
        if state is None:
            _load_dense_state.cache_clear()  # it may be there the next time
        return state


@lru_cache(maxsize=CACHED_NETWORKS)
def _load_state(folder: Path, manifest_sha256: str) -> NetworkState:
    return model_files.load_model(folder, manifest_sha256=manifest_sha256).state()


@lru_cache(maxsize=CACHED_NETWORKS)
def _load_dense_state(tracker: Tracker, key: str) -> NetworkState | None:
    with tracker.translating_errors():
        row = tracker.find_finished(key)
        if row is None:
            return None
        folder = tracker.download_folder(row, "model")
    try:
        saved = model_files.load_model(folder, manifest_sha256=row.tags["manifest_sha256"])
    except StoreError as error:
        tracker.try_set_tag(row.run_id, "invalid", str(error))  # the next sweep trains it anew
        raise
    return saved.state()
