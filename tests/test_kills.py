"""A sweep killed again and again, driver or worker, at ten random moments, and carried on each time.

Run as a script it prints the table of what happened: `python tests/test_kills.py`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

import psutil
import pytest

from orchestrator.store.address import default_uri
from orchestrator.store.model_files import read_checked
from orchestrator.tracking import RunRow, Tracker, initialise

ROOT = Path(__file__).parent.parent
SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[64, 64])"]
  dataset: [digits]
  batch_size: [32]
  technique: [weight, neuron]
  schedule: [one_shot, iterative(rounds=3)]
  amount: [50%, 80%, 90%]
  seed: [0, 1]
train: {epochs: 10}
recover: finetune(epochs=10)
"""
TRIALS, DENSE = 24, 2
SEEDS = range(10)  # of kills, one after the other
LONGEST = 240.0  # seconds that one sweep may take on a loaded machine
TIMED = ("seconds", "peak_memory_bytes")  # what differs between two runs of equal bits


@dataclass(frozen=True)
class Row:
    """What a kill did. `again` counts points that had finished and ran once more."""

    seed: int
    killed: str
    finished_then: int
    unfinished_then: int
    again: int
    duplicates: int
    left_running: int
    exit_code: int
    bits_equal: bool


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "orchestrator.cli",
        "sweep",
        "--space",
        str(folder / "kills.yaml"),
        "--retries",
        "5",
    ]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "RAY"))}
    return {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def sweeping(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "kills.yaml").write_text(SPACE)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(folder), cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def sweep(folder: Path) -> int:
    with sweeping(folder) as process:
        return process.wait(LONGEST)


def runs(folder: Path) -> list[RunRow]:
    """All runs below the sweep; none while there is no store yet."""
    if not (folder / "mlruns" / "mlflow.db").exists():
        return []
    initialise(default_uri(folder))  # waits until the sweep has made it
    tracker = Tracker(default_uri(folder), "kills")
    return [row for row in tracker.search("tags.point LIKE '_%'") if row.tags["kind"] != "sweep"]


def bits(folder: Path) -> dict[str, object]:
    """Key -> the digests of its tensors and the numbers that no clock decides."""
    tracker = Tracker(default_uri(folder), "kills")
    found: dict[str, object] = {}
    for key, row in tracker.finished().items():
        files = read_checked(tracker.folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"])
        tensors = {name: data for name, data in files.items() if name.endswith(".safetensors")}
        found[key] = (tensors, numbers(row.metrics), history(tracker, row))
    return found


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(TIMED)}


def history(tracker: Tracker, row: RunRow) -> tuple[dict[int, float], ...]:
    return tuple(tracker.history(row.run_id, name) for name in ("train/loss", "val/accuracy", "sparsity"))


@cache
def reference() -> dict[str, object]:
    """The bits of a sweep that nothing happened to."""
    with tempfile.TemporaryDirectory() as name:
        assert sweep(Path(name)) == 0
        return bits(Path(name))


def finished(folder: Path) -> Counter[str]:
    """Key -> how many finished runs bear it."""
    return Counter(row.tags["key"] for row in runs(folder) if row.status == "FINISHED" and "key" in row.tags)


def wait_for(process: subprocess.Popen[bytes], folder: Path, points: int, then_seconds: float) -> None:
    """Until so many points are finished, and a little longer; or until the sweep is over."""
    while process.poll() is None and len(finished(folder)) < points:
        time.sleep(0.5)
    with suppress(subprocess.TimeoutExpired):
        process.wait(then_seconds)


def workers(driver: int) -> list[psutil.Process]:
    """The processes that run trials, as Ray names them; without its own agents Ray itself ends."""
    with suppress(psutil.Error):
        family = psutil.Process(driver).children(recursive=True)
        return [child for child in family if "ray::ImplicitFunc" in "".join(child.cmdline()[:1])]
    return []


def victim(process: subprocess.Popen[bytes], kind: str, dice: random.Random) -> psutil.Process | None:
    """The process to kill; None if the sweep is over before there is one."""
    while process.poll() is None:
        if kind == "driver":
            return psutil.Process(process.pid)
        if found := workers(process.pid):
            return dice.choice(found)
        time.sleep(0.1)
    return None


def storm(seeds: Sequence[int], folder: Path) -> list[Row]:
    """One sweep, killed once for each of the seeds at a random moment, and carried on as often as need be."""
    hits: list[tuple[int, str, Counter[str], Counter[str]]] = []
    left = list(seeds)
    while left:
        with sweeping(folder) as process:
            while left and process.poll() is None:
                hits.append(hit(process, folder, left.pop(0), to_come=len(left)))
                if hits[-1][1] == "driver":
                    break
            code = process.wait(LONGEST)
    if code:  # the last to be killed was the driver
        code = sweep(folder)
    rows, ends, equal = runs(folder), finished(folder), bits(folder) == reference()
    starts = Counter(row.tags["point"] for row in rows)
    return [
        Row(
            seed=seed,
            killed=kind,
            finished_then=len(before),
            unfinished_then=TRIALS + DENSE - len(before),
            again=sum(starts[key] > started[key] for key in before),
            duplicates=sum(count > 1 for count in ends.values()),
            left_running=sum(row.status == "RUNNING" for row in rows),
            exit_code=code,
            bits_equal=equal,
        )
        for seed, kind, before, started in hits
    ]


def hit(
    process: subprocess.Popen[bytes], folder: Path, seed: int, *, to_come: int
) -> tuple[int, str, Counter[str], Counter[str]]:
    """Kill the driver (even seeds) or a worker; what was finished, how often each point was begun."""
    dice, kind = random.Random(seed), ("driver", "worker")[seed % 2]
    now = len(finished(folder))
    most = max(1, (TRIALS + DENSE - now) // (to_come + 2))  # the kills to come find something to kill
    wait_for(process, folder, now + dice.randrange(most + 1), dice.uniform(0.0, 0.5))
    target = victim(process, kind, dice)
    before, started = finished(folder), Counter(row.tags["point"] for row in runs(folder))
    if target is not None:
        with suppress(psutil.NoSuchProcess):
            target.kill()
    return seed, kind if target is not None else "nobody", before, started


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    rows = storm(SEEDS, tmp_path)
    assert len(rows) == len(SEEDS)
    assert sum(row.killed != "nobody" for row in rows) >= 6, rows  # it may have been too fast for some
    for row in rows:
        assert (row.again, row.duplicates, row.left_running, row.exit_code) == (0, 0, 0, 0), row
        assert row.bits_equal, row


def main() -> None:
    names = [field.name.replace("_", " ") for field in fields(Row)]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    with tempfile.TemporaryDirectory() as name:
        for row in storm(SEEDS, Path(name)):
            print("| " + " | ".join(str(value) for value in astuple(row)) + " |")


if __name__ == "__main__":
    main()
