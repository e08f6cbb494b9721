"""Workers that die: their trials are done again in a new process, and given up in the end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import forked
import psutil
import pytest

import models
from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.execution.resources import Resources
from orchestrator.execution.status import status
from orchestrator.execution.tune_experiment import run_experiment
from orchestrator.execution.worker import run_task
from orchestrator.space.techniques import resolve
from orchestrator.storage.uri import default_uri
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.trial.task import Task, WorkerSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
TWO = Resources(cpus=2, gpus=0, gpus_per_trial=1.0, concurrent=2, retries=1)
CRASHER = """
import os
from pruning.criteria import criteria

@criteria.register(summary="ends the process that asks it")
def crasher(scene):
    os._exit(7)
"""
ENTRY = "[pruning.criterion]\ncrasher = crasher\n"
SPACE = """\
version: 1
axes:
  model: [slp]
  dataset: [digits]
  criterion: [crasher, magnitude]
  granularity: [weight]
  amount: [50%]
train: {epochs: 1}
"""


def dense_point(config: DenseConfig) -> Task:
    return Task(config.key(), f"dense {config.seed}", config)


def trial_point(technique: str, epochs: int) -> Task:
    known = resolve(technique, {})
    prune = Prune(known.criterion, known.granularity, known.scope, "one_shot", 0.5)
    trial = TrialConfig(DENSE, prune, f"finetune(epochs={epochs}, lr=1.0)", technique)
    return Task(trial.key(), technique, trial, parent=DENSE.key())


def settings(folder: Path, name: str) -> tuple[Tracker, WorkerSettings]:
    uri = default_uri(folder / name)
    tracking.initialise(uri)
    tracker = Tracker(uri, name)
    sweep = tracker.start("sweep", name, tags={}).run_id
    return tracker, WorkerSettings(uri, name, sweep, None, models.__file__)


def files(tracker: Tracker, row: RunRecord) -> dict[str, str]:
    """Path -> SHA-256 of the tensors that a run keeps."""
    manifest = json.loads(tracker.read_text(row, "model/manifest.json"))
    found = {name: entry["sha256"] for name, entry in manifest.items()}
    return {name: digest for name, digest in found.items() if name.endswith(".safetensors")}


class Killer(threading.Thread):
    """Kills the process that runs a point, once: `kill -9`, as the kernel does when memory runs out."""

    def __init__(self, tracker: Tracker, key: str, *, after: float) -> None:
        super().__init__(daemon=True)
        self.tracker, self.key, self.after = tracker, key, after
        self.killed = 0

    def run(self) -> None:
        while not (pid := self._pid()):
            time.sleep(0.1)
        time.sleep(self.after)
        assert pid in {child.pid for child in psutil.Process().children(recursive=True)}
        os.kill(pid, signal.SIGKILL)
        self.killed = pid

    def _pid(self) -> int:
        rows = self.tracker.search(f"tags.point = '{self.key}' and attributes.status = 'RUNNING'")
        return int(rows[0].tags["owner"].split()[1]) if rows else 0


@pytest.mark.long
def test_the_trial_of_a_killed_worker_is_done_again_in_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = trial_point("unstructured", 200)
    points = [
        dense_point(DENSE),
        victim,
        *(trial_point(name, 3) for name in ("weight", "neuron", "structured")),
    ]
    tracker, place = settings(tmp_path, "killed")
    killer = Killer(tracker, victim.key, after=0.1)
    killer.start()
    ended = run_experiment(points, place, TWO, SignalHandler(), reused=0)
    assert killer.killed
    assert [outcome.reason for outcome in ended.results] == [""] * len(points)
    said = capsys.readouterr().err
    assert said.count("unstructured: its worker died; it is tried again (1 of 1)") == 1

    (done,) = (row for row in tracker.runs_of_task(victim.key) if row.status == "FINISHED")
    (killed,) = (row for row in tracker.runs_of_task(victim.key) if row.status != "FINISHED")
    assert (killed.status, killed.tags["reason"]) == ("KILLED", "its worker died")
    assert int(killed.tags["owner"].split()[1]) == killer.killed != int(done.tags["owner"].split()[1])
    assert len(tracker.search("attributes.status = 'FINISHED'")) == len(points)
    assert not tracker.search("attributes.status = 'RUNNING' and tags.kind != 'sweep'")

    quiet, serial = settings(tmp_path, "quiet")
    for point in points:
        run_task(point, serial)
    for key, row in quiet.find_all_finished().items():
        assert files(quiet, row)
        assert files(tracker, tracker.find_all_finished()[key]) == files(quiet, row)


@pytest.mark.long  # so it is where a criterion kills its worker, below
def test_a_point_is_given_up_when_its_workers_die_again_and_again(tmp_path: Path) -> None:
    points = [dense_point(DENSE), trial_point("unstructured", 100_000), trial_point("weight", 3)]
    tracker, place = settings(tmp_path, "given-up")
    first = Killer(tracker, points[1].key, after=0.2)
    first.start()
    given_up: list[tuple[str, str]] = []
    once = replace(TWO, retries=0)
    ended = run_experiment(
        points,
        place,
        once,
        SignalHandler(),
        reused=0,
        on_task_lost=lambda point, reason: given_up.append((point.key, reason)),
    )
    assert first.killed
    assert given_up == [(points[1].key, "its worker died")]
    assert [(outcome.task.key, outcome.reason) for outcome in ended.failures] == given_up
    assert tracker.find_all_finished().keys() == {points[0].key, points[2].key}


@pytest.mark.long  # its worker dies three times, and each new one takes seconds to start
def test_a_criterion_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    """From another package, as a crash in somebody's extension would be."""
    site = tmp_path / "site"
    info = site / "crasher-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "crasher.py").write_text(CRASHER)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: crasher\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(ENTRY)
    (tmp_path / "space.yaml").write_text(SPACE)
    words = ["sweep", "--space", "space.yaml", "--device", "cpu", "--retries", "1"]
    done = forked.orchestrate(*words, cwd=tmp_path, site=site, seconds=400)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    # First with the other trial, which takes no time either, then by itself.
    assert done.stderr.count("and 1 more: their worker died; they are tried again (1 of 1)") == 1
    assert done.stderr.count("its worker died; it is tried again (1 of 1)") == 1
    assert done.stderr.count("its worker died 2 times") == 1
    assert "2 trials, 2 runs made, 0 trials reused, 1 failed" in done.stdout

    uri = default_uri(tmp_path)
    tracker = Tracker(uri, "space")
    failed = tracker.search("attributes.status = 'FAILED'")
    assert [row.tags["reason"] for row in failed] == ["its worker died 2 times"]
    assert sorted(row.status for row in tracker.search("tags.kind = 'trial'")) == [
        "FAILED",
        "FINISHED",
        "KILLED",
        "KILLED",
        "KILLED",
    ]
    found = status("space", uri=uri)
    assert (found.state, found.done, found.failed, found.running) == ("finished", 1, 1, 0)
