"""One point of a plan, run and recorded: what a worker does, with no knowledge of who schedules it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

import models
from orchestrator import data, model_files
from orchestrator.bench import State
from orchestrator.config import DenseConfig, TrialConfig, dense_from_json
from orchestrator.described import params
from orchestrator.environment import environment
from orchestrator.errors import DivergedError, StoreError
from orchestrator.measure import LayerRow, Measurement
from orchestrator.stops import Stop, stops
from orchestrator.tracking import TAG_LENGTH, MetricPoint, OpenRun, Tracker
from orchestrator.training import EpochRecord
from orchestrator.trial import Result, Round, run_dense, run_trial
from pruning.architecture import widths
from pruning.phases import phases
from pruning.registry import parse

Beat = Callable[[dict[str, float]], None]
Judge = Callable[[dict[str, float]], str]  # of a round: why the trial is to stop, or nothing
CONFIG, ENVIRONMENT = "config.json", "environment.json"  # artifacts of every run
NOTES_LENGTH = 2000  # characters
KEPT_DENSE = 4  # dense states that one worker keeps in memory


@dataclass(frozen=True)
class Settings:
    """Where a worker records what it does, all paths absolute; and how its sweep stops trials, if it does."""

    uri: str
    experiment: str
    sweep_run: str
    data_dir: str | None
    models_file: str
    stop: Stop | None = None


@dataclass(frozen=True)
class Point:
    """A dense training or a pruned trial, ready to run; `parent` is the key that it waits for."""

    key: str
    name: str
    config: DenseConfig | TrialConfig
    parent: str | None = None
    tags: Mapping[str, str] | None = None

    @property
    def dense(self) -> DenseConfig:
        """The dense training that it is, or starts from."""
        return self.config.dense if isinstance(self.config, TrialConfig) else self.config

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Point:
        content = json.loads(text)
        build = TrialConfig.from_json if content["parent"] else dense_from_json
        return cls(**{**content, "config": build(content["config"])})


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
        return _record(run, point, result, parent_held=store.held, stop=settings.stop)


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


def _record(
    run: OpenRun, point: Point, result: Result, *, parent_held: bool, stop: Stop | None
) -> dict[str, float]:
    """Metrics, artifacts and then the key, in that order: a run with a key is whole."""
    dense = point.dense
    found = _phases(result, stop) if isinstance(point.config, TrialConfig) else []
    run.log(metrics=metric_points(result))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model").mkdir()
        # Without recovery the weights are the parent's with the dead ones at zero: masks say it all.
        untouched = parent_held and isinstance(point.config, TrialConfig) and _keeps_weights(point.config)
        manifest = model_files.save(
            place / "model",
            result.last.state,
            arch=_architecture(dense, result),
            parent=point.parent if untouched else None,
        )
        (place / CONFIG).write_text(json.dumps(asdict(point.config), indent=1, sort_keys=True))
        (place / ENVIRONMENT).write_text(json.dumps(environment(), indent=1, sort_keys=True))
        (place / "layers.json").write_text(json.dumps(_table(result.last.layers)))
        (place / "rounds.json").write_text(json.dumps(_rounds_table(result, found)))
        (place / "confusion.json").write_text(json.dumps(result.last.confusion.tolist()))
        ops = {"unsupported": result.cost.unsupported, "not_counted": result.cost.other_ops}
        (place / "operators.json").write_text(json.dumps(ops, indent=1, sort_keys=True))
        run.log_folder(place)
    planned = min(dense.numerics.micro_batch, dense.batch_size)
    used = min(result.last.state.micro_batch, dense.batch_size)
    tags = {"manifest_sha256": manifest, "notes": _notes(result)}
    tags |= {"phase": found[-1]} if found else {}
    tags |= {"micro_batch_halved_to": str(used)} if used < planned else {}
    if result.stopped_because:
        why = result.stopped_because[:TAG_LENGTH]
        run.log(tags=tags | {"stopped_key": point.key, "stop": str(stop or ""), "stopped_because": why})
        return {}
    run.log(tags=tags | {"key": point.key})
    return result.last.measurement.metrics("final")


def _phases(result: Result, stop: Stop | None) -> list[str]:
    """The phase of every round, the dense network's index before them.

    A whole trial's own phases depend on nothing but itself; a stopped one's are those that stopped it.
    """
    indices = [result.ipa.pq_index, *(measured.measurement.pq_index for measured in result.rounds)]
    method = stops.get(stop.text) if stop is not None and result.stopped_because else None
    if method is None or method.name != "pq_index":
        return phases(indices)[1:]
    return phases(indices, delta=method.options["delta"], patience=method.options["patience"])[1:]


def _rounds_table(result: Result, found: Sequence[str]) -> dict[str, list[Any]]:
    """The measurements of every round; with their phases, if there are any."""
    table = _table([measured.measurement for measured in result.rounds])
    if not found:
        return table
    rows = [[*row, phase] for row, phase in zip(table["data"], found, strict=True)]
    return {"columns": [*table["columns"], "phase"], "data": rows}


def metric_points(result: Result) -> list[MetricPoint]:
    """Every metric that the run of a result bears; one that was stopped has no final ones."""
    final = {} if result.stopped_because else result.last.measurement.metrics("final")
    points = [MetricPoint(name, value) for name, value in final.items()]
    points += [MetricPoint(name, value) for name, value in result.ipa.metrics("ipa").items()]
    return [*points, *_curves(result), *_rounds(result), *_layers(result.last.layers)]


def _keeps_weights(config: TrialConfig) -> bool:
    return (config.recover, config.when, config.prepare) == ("none", "after", "none")


def _notes(result: Result) -> str:
    """What there was to say of the rounds, each thing at the first round that had it."""
    first: dict[str, str] = {}
    for measured in result.rounds:
        for note in measured.notes:
            first.setdefault(note.removeprefix(note.partition(": ")[0]), note)
    return "; ".join(first.values())[:NOTES_LENGTH]


def _architecture(dense: DenseConfig, result: Result) -> dict[str, object]:
    """How to build the network again; `cut_widths` are the layers' sizes once dead channels are out."""
    return {
        "model": dense.model,
        "input_shape": list(result.data.input_shape),
        "num_classes": result.data.num_classes,
        "cut_widths": widths(result.last.net) if result.last.cut else None,
    }


def _curves(result: Result) -> Iterator[MetricPoint]:
    """Loss and accuracy per epoch; the steps go on from round to round."""
    step = 0
    for measured in result.rounds:
        for record in measured.state.history:
            step += 1
            yield from _epoch(record, step)


def _epoch(record: EpochRecord, step: int) -> Iterator[MetricPoint]:
    yield MetricPoint("train/loss", record.train_loss, step)
    yield MetricPoint("train/accuracy", record.train_accuracy, step)
    yield MetricPoint("val/loss", record.val_loss, step)
    yield MetricPoint("val/accuracy", record.val_accuracy, step)
    yield MetricPoint("train/lr", record.lr, step)
    yield MetricPoint("train/seconds", record.seconds, step)


PER_ROUND = (
    "accuracy",
    "loss",
    "val_accuracy",
    "val_loss",
    "sparsity",
    "macs_effective",
    "epochs",
    "train_flops",
)


def _rounds(result: Result) -> Iterator[MetricPoint]:
    for number, measured in enumerate(result.rounds, start=1):
        values = asdict(measured.measurement)
        yield from (MetricPoint(f"round/{name}", float(values[name]), number) for name in PER_ROUND)
        yield from (
            MetricPoint(name, float(values[name]), number) for name in ("sparsity", "pq_index", "gini")
        )


def _layers(rows: tuple[LayerRow, ...]) -> Iterator[MetricPoint]:
    """Sparsity of each layer at step 0, where the pages draw it as a bar."""
    return (MetricPoint(f"layers/{row.layer}", row.sparsity) for row in rows)


def _table(rows: Sequence[LayerRow | Measurement]) -> dict[str, list[Any]]:  # names, and cells of any type
    """In the form that MLflow shows as a table."""
    return {
        "columns": [field.name for field in fields(rows[0])],
        "data": [list(vars(row).values()) for row in rows],
    }
