"""A small sweep on digits as a person starts it, in a folder of its own, for tests that disturb it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.tracking import RunRecord, Tracker

ROOT = Path(__file__).parent.parent
NAME = "small"
SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[64, 64])"]
  dataset: [digits]
  batch_size: [32]
  technique: [weight, neuron]
  amount: [10%, 30%, 50%, 70%, 90%]
  seed: [0, 1]
train: {epochs: 5}
recover: finetune(epochs=20)
"""
TRIALS, DENSE = 20, 2
LONGEST = 500.0  # seconds that one sweep may take on a loaded machine


@contextmanager
def sweeping(folder: Path, uri: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A sweep under way, its store in the folder unless `uri` says where; what it says goes to log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.yaml").write_text(SPACE)
    environment = {**os.environ, "ORCHESTRATE_STATE_DIR": str(folder / "state")}
    environment |= {} if uri is None else {"MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "--space", str(folder / f"{NAME}.yaml")]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something to be the case while the sweep runs."""
    end = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None, "the sweep ended too early"
        assert time.monotonic() < end
        time.sleep(0.7)  # whoever asks a server takes time from it


def finished(uri: str) -> list[RunRecord]:
    """The whole results in the store."""
    return Tracker(uri, NAME).search("attributes.status = 'FINISHED' and tags.key LIKE '_%'")


def results(uri: str) -> dict[str, dict[str, float]]:
    """Key -> the metrics that no clock and no allocator decides."""
    timed = ("seconds", "peak_memory", "latency")
    return {
        row.tags["key"]: {n: v for n, v in row.metrics.items() if not any(word in n for word in timed)}
        for row in finished(uri)
    }


def check_all_there(uri: str) -> None:
    """Every key once, its files with it, nothing left open, and the sweep over."""
    rows = finished(uri)
    kinds = Counter(row.tags["kind"] for row in rows)
    assert kinds == {"trial": TRIALS, "dense": DENSE}
    assert len({row.tags["key"] for row in rows}) == TRIALS + DENSE
    tracker = Tracker(uri, NAME)
    assert [row.status for row in tracker.search("tags.kind = 'sweep'")] == ["FINISHED"]
    assert tracker.search("attributes.status = 'RUNNING'") == []
    assert tracker.search("attributes.status = 'FAILED'") == []
    for row in rows:
        assert row.metrics["final/accuracy"] > 0
        assert row.params["batch_size"] == "32"
        assert tracker.read_text(row, "model/manifest.json")
