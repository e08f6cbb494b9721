"""Searches through a real Ray and a real store: killed half-way and carried on, and what comes of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import psutil
import pytest

from orchestrator.analysis.results import results
from orchestrator.planning.plan_file import PLAN
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
LONGEST = 500.0  # seconds that one sweep may take on a loaded machine
POINTS = 6
COMMAND = ("sweep", "--space", "search.yaml", "--json")
ONE_BY_ONE = ("--max-concurrent", "1")  # so that each point follows from all those before it
SPACE = f"""\
version: 1
search:
  method: tpe
  trials: {POINTS}
  startup: 2
  objectives: {{final/val_accuracy: max, final/sparsity: max}}
axes:
  model: [slp]
  dataset: [digits]
  batch_size: {{low: 32, high: 128, step: 32}}
  technique: [weight, unstructured]
  amount: {{low: 10%, high: 95%}}
  recover: [none, finetune]
  finetune.epochs: [1, 2]
train: {{epochs: 2}}
"""


@contextmanager
def sweeping(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process of its own, which is gone at the end."""
    (folder / "search.yaml").write_text(SPACE)
    line = [sys.executable, "-m", "orchestrator.cli", *COMMAND, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, cwd=folder, text=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def swept(folder: Path, *words: str) -> dict[str, Any]:
    """What a sweep says in the end."""
    (folder / "search.yaml").write_text(SPACE)
    done = forked.orchestrate(*COMMAND, *words, cwd=folder, seconds=LONGEST)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tracker(folder: Path) -> Tracker:
    return Tracker(default_uri(folder), "search")


def trials(folder: Path) -> list[RunRecord]:
    """The finished trials; none before the sweep has written its plan, when the store may be half made."""
    if not (folder / "mlruns" / "artifacts").exists():
        return []
    query = "attributes.status = 'FINISHED' and tags.kind = 'trial' and tags.key LIKE '_%'"
    return tracker(folder).search(query, everywhere=True)


def asked(folder: Path) -> list[str]:
    """The keys of the points in the order in which they were asked for."""
    store = tracker(folder)
    (sweep,) = store.search("tags.kind = 'sweep'")
    return [key for point in json.loads(store.read_text(sweep, PLAN))["asked"] for key in point["keys"]]


def kill(process: subprocess.Popen[str]) -> None:
    """The driver first: its workers are Ray's, and go with it."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    told = swept(folder, *ONE_BY_ONE)
    assert (told["trials"], told["failed"]) == (POINTS, 0)
    return folder


def test_a_search_ends_with_its_best_points(whole: Path) -> None:
    told = swept(whole, *ONE_BY_ONE)  # there is nothing to do
    assert (told["ran"], told["reused"]) == (0, POINTS)
    frame = results("search", uri=default_uri(whole))
    assert list(frame["status"]) == ["finished"] * POINTS
    assert list(frame["key"]) == asked(whole)
    val, sparsity = frame["final/val_accuracy"], frame["final/sparsity"]
    beaten = [
        any((val >= v) & (sparsity >= s) & ((val > v) | (sparsity > s)))
        for v, s in zip(val, sparsity, strict=True)
    ]
    best = {number for number, is_beaten in enumerate(beaten, start=1) if not is_beaten}
    assert {point["point"] for point in told["best"]} == best
    assert set(told["best"][0]["means"]) == {"final/val_accuracy", "final/sparsity", "final/accuracy"}


@pytest.mark.long
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, whole: Path) -> None:
    finished = 3  # the first 2 points are drawn at random
    end = time.monotonic() + LONGEST
    with sweeping(tmp_path, *ONE_BY_ONE) as process:
        while process.poll() is None and len(trials(tmp_path)) < finished and time.monotonic() < end:
            time.sleep(0.4)
        assert process.poll() is None, process.communicate()
        kill(process)
    before = [row.tags["key"] for row in trials(tmp_path)]
    assert finished <= len(before) < POINTS
    told = swept(tmp_path, *ONE_BY_ONE)
    assert told["trials"] == POINTS
    assert asked(tmp_path) == asked(whole)
    assert Counter(row.tags["key"] for row in trials(tmp_path)) == Counter(asked(whole))
    assert len(told["best"]) > 0


@pytest.mark.long
def test_two_at_a_time_it_has_its_points_too(tmp_path: Path) -> None:
    told = swept(tmp_path, "--max-concurrent", "2", "--set", "seed=0,1", "--set", "search.trials=4")
    assert (told["trials"], told["failed"]) == (8, 0)
    assert {point["seeds"] for point in told["best"]} == {2}
    assert len(set(asked(tmp_path))) == 8
    keys = [row.tags["key"] for row in trials(tmp_path)]
    assert sorted(keys) == sorted(asked(tmp_path))
