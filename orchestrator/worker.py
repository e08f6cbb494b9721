"""One point of a plan, run and recorded: what a worker does, with no knowledge of who schedules it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch

import models
from orchestrator import data, model_files
from orchestrator.bench import State
from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.described import params
from orchestrator.errors import DivergedError, StoreError
from orchestrator.point import Point, Settings
from orchestrator.recording import record
from orchestrator.tracking import Tracker
from orchestrator.trial import Round, run_dense, run_trial
from pruning.registry import parse

Beat = Callable[[dict[str, float]], None]
Judge = Callable[[dict[str, float]], str]  # of a round: why the trial is to stop, or nothing
KEPT_DENSE = 4  # dense states that one worker keeps in memory


def run_point(
    point: Point, settings: Settings, *, beat: Beat | None = None, judge: Judge | None = None
) -> dict[str, float]:
    """Run a point and record it as one MLflow run; the final metrics come back, or {} if `judge` stopped it.

    DivergedError (recorded, and not run again), DataError and StoreError pass through; the run is
    FAILED then, with the reason.
    """
    if models.__file__ != settings.models_file:
        raise StoreError(f"this worker imported another `models` package: {models.__file__}")
    dense = point.dense
    torch.set_num_threads(dense.numerics.threads)
    images = load_data(dense.dataset, settings.data_dir, dense.numerics.device)
    tracker = _tracker(settings.uri, settings.experiment)
    kind = "trial" if point.parent else "dense"
    report = None if beat is None else lambda stage, epoch, record: beat({"epoch": float(epoch)})
    tags = {**(point.tags or {}), "point": point.key}
    with tracker.start(kind, point.name, parent=settings.sweep_run, tags=tags) as run:
        run.log(params=params(point.config))
        run.log_data(images.name, images.digest, _sizes(images))
        store = DenseStore(tracker)
        try:
            if isinstance(point.config, TrialConfig):
                heard = None if judge is None else partial(_judged, judge)
                result = run_trial(point.config, images, store=store, report=report, report_round=heard)
            else:
                result = run_dense(point.config, images, report=report)
        except DivergedError:
            run.log(tags={"diverged": "true"})
            raise
        return record(run, point, result, parent_held=store.held, stop=settings.stop)


def _judged(judge: Judge, round: Round) -> str:
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


class DenseStore:
    """Dense states by key, from MLflow; the last few stay in memory. `held`: the last one was there."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.held = False

    def dense(self, config: DenseConfig) -> State | None:
        state = _dense_state(self.tracker.uri, config.key())
        if state is None:
            _dense_state.cache_clear()  # it may be there the next time
        self.held = state is not None
        return state


@lru_cache(maxsize=KEPT_DENSE)
def _dense_state(uri: str, key: str) -> State | None:
    tracker = _tracker(uri, "")
    row = tracker.finished_one(key)
    if row is None:
        return None
    try:
        saved = model_files.load(tracker.folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"])
    except StoreError as error:
        tracker.set_tag(row.run_id, "invalid", str(error))  # the next sweep trains it anew
        raise
    return saved.state()


@lru_cache(maxsize=4)
def load_data(text: str, data_dir: str | None, device: str) -> data.Dataset:
    """A data set by its text form, kept in memory."""
    name, options = parse(text)
    return data.load(name, data_dir=None if data_dir is None else Path(data_dir), device=device, **options)


@lru_cache(maxsize=8)
def _tracker(uri: str, experiment: str) -> Tracker:
    return Tracker(uri, experiment)


def _sizes(images: data.Dataset) -> dict[str, int]:
    return {"train": len(images.train), "validation": len(images.validation), "test": len(images.test)}
