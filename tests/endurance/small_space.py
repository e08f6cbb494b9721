"""The sweep that is disturbed, in its own folder, with its own store, and the bits of its results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.storage.model_files import read_verified_files
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker, initialise

ROOT = Path(__file__).parents[2]
NAME = "kills"
SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[64, 64])"]
  dataset: [digits]
  batch_size: [32]
  technique: [weight, neuron]
  schedule: [one_shot, iterative(rounds=3)]
  amount: [50%, 90%]
  seed: [0, 1]
train: {epochs: 10}
recover: finetune(epochs=10)
"""
POINTS = 18  # 16 trials and two dense networks
LONGEST = 400.0  # seconds that one sweep may take on a loaded machine
TIMED = ("seconds", "peak_memory_bytes")  # what differs between two runs of equal bits
SWEEP = [sys.executable, "-m", "orchestrator.cli", "sweep", "--space", f"{NAME}.yaml", "--retries", "5"]


@dataclass(frozen=True)
class Place:
    """Where a sweep is started, keeps its temporary files and its store."""

    folder: Path
    uri: str

    @staticmethod
    def make(folder: Path, uri: str = "") -> Place:
        for part in ("work", "tmp", "state"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "work" / f"{NAME}.yaml").write_text(SPACE)
        return Place(folder, uri or default_uri(folder / "work"))

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.uri, NAME)

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "RAY"))}
        return clean | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
            "ORCHESTRATE_STATE_DIR": str(self.folder / "state"),
            "MLFLOW_TRACKING_URI": self.uri,
        }

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """The sweep, in a session of its own: nobody's terminal, nobody's Ctrl-C."""
        return subprocess.Popen(
            SWEEP,
            cwd=self.work,
            env=self.environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def runs(self) -> list[RunRecord]:
        """All runs below the sweep; none while there is no store yet."""
        database = self.work / "mlruns" / "mlflow.db"
        if self.uri.startswith("sqlite") and not database.exists():
            return []
        initialise(self.uri)  # waits until the sweep has made it
        return [row for row in self.tracker.search("tags.point LIKE '_%'") if row.tags["kind"] != "sweep"]

    def bits(self) -> dict[str, object]:
        """Key -> the digests of its tensors and the numbers that no clock decides."""
        tracker, bits = self.tracker, dict[str, object]()
        for key, row in tracker.find_all_finished().items():
            files = read_verified_files(
                tracker.download_folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"]
            )
            tensors = {name: data for name, data in files.items() if name.endswith(".safetensors")}
            bits[key] = (tensors, numbers(row.metrics), history(tracker, row))
        return bits


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(TIMED)}


def history(tracker: Tracker, row: RunRecord) -> tuple[dict[int, float], ...]:
    return tuple(
        tracker.metric_history(row.run_id, name) for name in ("train/loss", "val/accuracy", "sparsity")
    )


def finished(rows: list[RunRecord]) -> Counter[str]:
    """Key -> how many finished runs bear it."""
    return Counter(row.tags["key"] for row in rows if row.status == "FINISHED" and "key" in row.tags)


def begun(rows: list[RunRecord]) -> Counter[str]:
    """Point -> how many runs were begun for it."""
    return Counter(row.tags["point"] for row in rows)
