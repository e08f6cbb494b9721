"""Run one task on a worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import torch

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data import loading
from orchestrator.data.loading import load_planned_data
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.planning.fingerprints import installed_code, parse_code
from orchestrator.storage import model_files
from orchestrator.storage.outbox import DataInput, Outbox
from orchestrator.storage.uri import outbox_folder
from orchestrator.system.determinism import NONDETERMINISTIC_TAG, deterministic
from orchestrator.system.memory import disable_malloc_trim, peak_memory
from orchestrator.system.provenance import card, check_code
from orchestrator.tracking import Tracker
from orchestrator.tracking.checkpoint_store import MlflowCheckpointStore
from orchestrator.tracking.delivery import deliver_all, tracker_of
from orchestrator.tracking.recorder import write_result
from orchestrator.tracking.round_masks import load_round_masks
from orchestrator.tracking.run_session import RunSession, make_run_start
from orchestrator.tracking.source_models import load_source_model, transfer_tags
from orchestrator.trial.context import NetworkState
from orchestrator.trial.params import params
from orchestrator.trial.recovery import RoundMasks
from orchestrator.trial.run import Round, TrialResult, run_dense, run_trial
from orchestrator.trial.task import Task, WorkerSettings
from orchestrator.trial.weight_transfer import SourceModel

OnProgress = Callable[[dict[str, float]], None]
ShouldStop = Callable[[dict[str, float]], str]  # of a round: why the trial is to stop, or nothing
KEPT_DENSE = 4  # dense states that one worker keeps in memory


def run_task(
    point: Task,
    settings: WorkerSettings,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, float]:
    """Run a point and record it as one MLflow run; the final metrics come back, or {} if `judge` stopped it.

    DivergedError (recorded, and not run again), DataError and StoreError pass through; the run is
    FAILED then, with the reason.
    """
    check_code(settings.code)
    dense = point.dense
    torch.set_num_threads(dense.numerics.threads)
    disable_malloc_trim()
    check_source(point.config)
    images = load_planned_data(dense, settings.data_dir)
    tracker = tracker_of(settings.uri, settings.experiment)
    outbox = Outbox(outbox_folder(settings.uri, settings.state_dir))
    if (waiting := outbox.of_point(point.key)) is not None:  # a worker died between its work and the store
        with suppress(StoreUnavailableError):
            deliver_all(settings.uri, outbox)
        return waiting.final
    facts = DataInput(images.name, images.digest, _sizes(images))
    opening = make_run_start(point, settings, params=params(point.config), data=facts)
    store = StoredDenseNetworks(tracker, outbox)
    with RunSession(tracker, outbox, opening) as entry:
        if entry.done is not None:
            return {name: v for name, v in entry.done.metrics.items() if name.startswith("final/")}
        ancestor = load_source_model(tracker, dense)
        shared = load_round_masks(tracker, point.config) if isinstance(point.config, TrialConfig) else None
        walk = partial(
            _run, point.config, images, store=store, ancestor=ancestor, beat=on_progress, judge=should_stop
        )
        peak = peak_memory(dense.numerics.device)
        with deterministic(dense.numerics.device, tf32=dense.numerics.tf32) as loose:
            result = walk(keeper=entry.keeper, every_seconds=settings.checkpoint_seconds, shared=shared)
        found = partial(write_result, point=point, result=result, parent_held=store.held, stop=settings.stop)
        marks = {NONDETERMINISTIC_TAG: ", ".join(sorted(loose))} if loose else {}
        marks |= card(dense.numerics.device)
        marks |= transfer_tags(dense, images, ancestor)
        marks |= {} if shared is None else {"trunk_key": shared.key}
        entry.finish(partial(found, peak_bytes=peak(), extra_tags=marks))
    return {} if result.stopped_because else result.last.measurement.metrics("final")


def _run(
    config: DenseConfig | TrialConfig,
    images: loading.Dataset,
    *,
    store: StoredDenseNetworks,
    ancestor: SourceModel | None,
    shared: RoundMasks | None,
    beat: OnProgress | None,
    judge: ShouldStop | None,
    keeper: MlflowCheckpointStore,
    every_seconds: float | None,
) -> TrialResult:
    report = None if beat is None else lambda stage, epoch, record: beat({"epoch": float(epoch)})
    if not isinstance(config, TrialConfig):
        return run_dense(
            config,
            images,
            source_model=ancestor,
            on_epoch=report,
            checkpoints=keeper,
            every_seconds=every_seconds,
        )
    heard = None if judge is None else partial(_judged, judge)
    return run_trial(
        config,
        images,
        store=store,
        source_model=ancestor,
        masks_from=shared,
        on_epoch=report,
        on_round=heard,
        checkpoints=keeper,
        every_seconds=every_seconds,
    )


def _judged(judge: ShouldStop, round: Round) -> str:
    here, dense = round.measurement, round.ipa
    return judge(
        {
            "round": float(round.number),
            "rounds": float(round.rounds),
            "val_accuracy": here.val_accuracy,
            "val_loss": here.val_loss,
            "sparsity": here.sparsity,
            "pq_index": here.pq_index,
            "dense_val_accuracy": dense.val_accuracy,
            "dense_pq_index": dense.pq_index,
        }
    )


class StoredDenseNetworks:
    """Dense states by key, from MLflow, else from what waits for it; the last few stay in memory.

    `held`: the last one was in MLflow.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox) -> None:
        self.tracker = tracker
        self.outbox = outbox
        self.held = False

    def dense(self, config: DenseConfig) -> NetworkState | None:
        # In this order: what is in neither place was in neither at any moment between.
        waiting = self._waiting(config.key())
        stored = self._stored(config.key()) if waiting is None else None
        self.held = stored is not None
        return waiting or stored

    def _waiting(self, key: str) -> NetworkState | None:
        parcel = self.outbox.of_point(key)
        if parcel is None:
            return None
        try:
            return _waiting_state(parcel.files / "model", parcel.end.tags["manifest_sha256"])
        except StoreError:  # delivered at this very moment
            return None

    def _stored(self, key: str) -> NetworkState | None:
        try:
            state = _dense_state(self.tracker, key)
        except StoreUnavailableError:
            state = None
        if state is None:
            _dense_state.cache_clear()  # it may be there the next time
        return state


@lru_cache(maxsize=KEPT_DENSE)
def _waiting_state(folder: Path, manifest_sha256: str) -> NetworkState:
    return model_files.load_model(folder, manifest_sha256=manifest_sha256).state()


@lru_cache(maxsize=KEPT_DENSE)
def _dense_state(tracker: Tracker, key: str) -> NetworkState | None:
    with tracker.translating_errors():
        row = tracker.finished_one(key)
        if row is None:
            return None
        folder = tracker.folder(row, "model")
    try:
        saved = model_files.load_model(folder, manifest_sha256=row.tags["manifest_sha256"])
    except StoreError as error:
        tracker.try_tag(row.run_id, "invalid", str(error))  # the next sweep trains it anew
        raise
    return saved.state()


def check_source(config: DenseConfig | TrialConfig) -> None:
    """StoreError unless what other packages bring is here as it was when the sweep was planned."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    planned = (dense.dense_code, config.trial_code if isinstance(config, TrialConfig) else "")
    for then, now in zip(planned, installed_code(config), strict=True):
        if then and then != now:
            old, new = parse_code(then), parse_code(now)
            changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            raise StoreError(
                f"{', '.join(name.rstrip('=') for name in changed)}: this worker has another source or "
                "version than the sweep was planned with; leave packages as they are while a sweep runs, and "
                "sweep again"
            )


def _sizes(images: loading.Dataset) -> dict[str, int]:
    return {"train": len(images.train), "validation": len(images.validation), "test": len(images.test)}
