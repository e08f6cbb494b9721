"""A sweep through a real Ray: parents first, failures apart, loopback only, the bits of a serial run."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray  # before orchestrator.execution: it must be on loopback all the same

import models
from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.execution import dag_searcher, ray_start
from orchestrator.execution.ray_start import local_ray
from orchestrator.execution.resources import Resources
from orchestrator.execution.tune_experiment import run_experiment
from orchestrator.execution.worker import run_task
from orchestrator.space.techniques import resolve
from orchestrator.storage.uri import default_uri
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import Tracker
from orchestrator.trial.task import Task, TaskResult, WorkerSettings

pytestmark = pytest.mark.slow

DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
DIVERGES = replace(DENSE, train=Train(epochs=2, optimizer="sgd", lr=1e30))
WORKERS = ("ray::IDLE", "ray::ImplicitFunc")
TWO = Resources(cpus=2, gpus=0, gpus_per_trial=1.0, concurrent=2)


def dense_point(config: DenseConfig) -> Task:
    return Task(config.key(), f"dense {config.seed}", config)


def trial_point(config: DenseConfig, technique: str, amount: float = 0.5, recover: str = "none") -> Task:
    known = resolve(technique, {})
    prune = Prune(known.criterion, known.granularity, known.scope, "one_shot", amount)
    trial = TrialConfig(config, prune, recover, technique)
    return Task(trial.key(), technique, trial, parent=config.key())


def settings(folder: Path, name: str) -> tuple[Tracker, WorkerSettings]:
    uri = default_uri(folder / name)
    tracking.initialise(uri)
    tracker = Tracker(uri, name)
    sweep = tracker.start("sweep", name, tags={}).run_id
    return tracker, WorkerSettings(uri, name, sweep, None, models.__file__)


class Ears(threading.Thread):
    """Every address on which a process below this one listens, and Ray's Pythons, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.heard: set[str] = set()
        self.workers: set[int] = set()
        self.busy: set[int] = set()
        self.agents: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            children = psutil.Process().children(recursive=True)
            family = {os.getpid(), *(child.pid for child in children)}
            titles = {child.pid: title for child in children if (title := _title(child)).startswith("ray::")}
            self.workers |= {pid for pid, title in titles.items() if title.startswith(WORKERS)}
            self.busy |= {pid for pid, title in titles.items() if title.startswith(WORKERS[-1])}
            self.agents |= {title for title in titles.values() if not title.startswith(WORKERS)}
            for connection in psutil.net_connections("tcp"):
                if connection.pid in family and connection.status == psutil.CONN_LISTEN:
                    self.heard.add(connection.laddr.ip)


def _title(process: psutil.Process) -> str:
    """What it calls itself."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def numbers(outcome: TaskResult) -> dict[str, float]:
    """The final metrics that no clock decides."""
    found = outcome.metrics or {}
    return {
        name: v for name, v in found.items() if name.startswith("final/") and not name.endswith("seconds")
    }


def test_a_sweep_is_a_serial_run_on_loopback_and_a_failure_stays_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dag_searcher, "WORKER_SECONDS", 1e9)  # a second pays only where points go slowly
    good, bad = [DENSE, replace(DENSE, seed=1)], DIVERGES
    points = [
        trial_point(bad, "weight"),
        trial_point(bad, "neuron"),
        dense_point(bad),
        *map(dense_point, good),
    ]
    for config in good:
        points += [trial_point(config, "structured", 0.5, "finetune(epochs=1, lr=1.0)")]
        points += [trial_point(config, name) for name in ("weight", "neuron", "random")]
    tracker, place = settings(tmp_path, "swept")
    ears = Ears()
    ears.start()
    ended = run_experiment(points, place, TWO, SignalHandler(), reused=0)
    ears.done.set()
    ears.join()
    assert len(ears.busy) == 1  # what so few points are worth, and none for Tune
    assert len(ears.workers) <= 2  # on a loaded machine Ray starts another before the first is ready
    assert ears.agents == {"ray::RuntimeEnvAgent"}  # without which no raylet starts
    assert ears.heard
    assert ears.heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

    assert ended.signal == 0
    assert {outcome.task.key for outcome in ended.results} == {point.key for point in points}
    assert len(ended.results) == len(points)
    order = [outcome.task.key for outcome in ended.results]
    for point in points:
        assert point.parent is None or order.index(point.parent) < order.index(point.key)

    reasons = {outcome.task.key: outcome.reason for outcome in ended.failures}
    why = "DivergedError: the loss is no longer finite in epoch 1 of 2"
    assert reasons == {bad.key(): why} | {
        point.key: f"its dense network failed: {why}" for point in points[:2]
    }

    rows = tracker.search(f"tags.`mlflow.parentRunId` = '{place.sweep_run}'")
    assert sorted(row.status for row in rows) == ["FAILED"] + ["FINISHED"] * 10  # dropped ones have no run
    assert tracker.find_all_finished().keys() == {point.key for point in points} - reasons.keys()

    _, serial = settings(tmp_path, "serial")
    found = {outcome.task.key: numbers(outcome) for outcome in ended.results}
    for point in sorted(points[3:], key=lambda point: point.parent is not None):
        final = run_task(point, serial)
        assert found[point.key] == {name: v for name, v in final.items() if not name.endswith("seconds")}


def test_an_interrupted_sweep_ends_by_itself_and_blames_no_worker(tmp_path: Path) -> None:
    # Far more than can be done; each reports about every second.
    slow = [replace(DENSE, seed=seed, train=Train(epochs=100_000)) for seed in range(4)]
    points = [
        dense_point(DENSE),
        *map(dense_point, slow),
        *(trial_point(config, "weight") for config in slow),
    ]
    tracker, place = settings(tmp_path, "interrupted")

    def interrupt() -> None:
        while not tracker.find_all_finished():
            time.sleep(0.2)
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started, before = (
        time.monotonic(),
        signal.getsignal(signal.SIGINT),
    )  # ignored, where a shell runs it with &
    ended = run_experiment(points, place, TWO, SignalHandler(), reused=0)
    assert time.monotonic() - started < 120
    assert ended.signal == signal.SIGINT
    assert [(outcome.task.key, outcome.metrics is not None) for outcome in ended.results] == [
        (DENSE.key(), True)
    ]
    assert tracker.find_all_finished().keys() == {DENSE.key()}
    assert signal.getsignal(signal.SIGINT) is before


def test_an_epoch_that_takes_minutes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A worker hears of a stop when it reports, which is at the end of an epoch."""
    endless = replace(DENSE, model="mlp(widths=[4096, 4096])", batch_size=1, train=Train(epochs=1000))
    tracker, place = settings(tmp_path, "endless")
    pressed: list[float] = []

    def interrupt() -> None:
        while not tracker.search("tags.kind = 'dense' and attributes.status = 'RUNNING'"):
            time.sleep(0.2)
        time.sleep(2)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    ended = run_experiment(
        [dense_point(endless), trial_point(endless, "weight")], place, TWO, SignalHandler(), reused=0
    )
    assert time.monotonic() - pressed[0] < 60  # about 7 on an idle machine
    assert (ended.signal, ended.results) == (signal.SIGTERM, ())
    assert not [child for child in psutil.Process().children() if "ray" in child.name()]


def test_a_trial_sees_the_one_gpu_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray believes in two GPUs; no CUDA is needed to be shown one."""
    monkeypatch.delitem(ray_start.ENVIRONMENT, "RAY_preload_python_modules")  # torch, in four workers

    def seen(number: int) -> str:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 4:  # all four are at it at once
            time.sleep(0.1)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    halves = Resources(cpus=4, gpus=2, gpus_per_trial=0.5, concurrent=4)
    with local_ray(halves, SignalHandler()):
        task = ray.remote(num_cpus=halves.per_device["CPU"], num_gpus=halves.per_device["GPU"])(seen)
        assert sorted(ray.get([task.remote(number) for number in range(4)])) == ["0", "0", "1", "1"]
    assert not ray.is_initialized()
