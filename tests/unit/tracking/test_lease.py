"""One process runs a sweep at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from orchestrator.errors import BusyError
from orchestrator.execution.status import status
from orchestrator.model_io.rerun import compare, find_recorded_run, rerun
from orchestrator.storage.locks import owner
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker, initialise
from orchestrator.tracking import lease as module
from orchestrator.tracking.lease import acquire_lease, heartbeat

ROOT = Path(__file__).parents[3]
PLAN_SHA256 = "f" * 64
SPACE = """\
version: 1
about: Enough to be at it for a while.
axes:
  model: ["mlp(widths=[16, 8])"]
  dataset: [digits]
  technique: [weight, unstructured]
  amount: [90%]
  seed: [0, 1]
train: {epochs: 2}
recover: finetune(epochs=2)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = default_uri(tmp_path_factory.mktemp("store"))
    initialise(found)
    return found


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest) -> Tracker:
    """An experiment for each test."""
    return Tracker(uri, request.node.name)


def held(tracker: Tracker, holder: str) -> str:
    """A RUNNING sweep of another owner."""
    run = tracker.start("sweep", "claimed", tags={"plan_sha256": PLAN_SHA256, "space": "claimed"})
    tracker.set_tag(run.run_id, "owner", holder)
    return run.run_id


def other_process(code: str = "input()") -> tuple[subprocess.Popen[str], str]:
    """A living process, and its name as an owner."""
    text = f"from orchestrator.storage.locks import owner; print(owner(), flush=True); {code}"
    process = subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_sweep_of_a_living_process_is_refused_and_of_a_dead_one_carried_on(tracker: Tracker) -> None:
    process, holder = other_process()
    run_id = held(tracker, holder)
    try:
        with pytest.raises(BusyError, match=rf"host \S+, pid {process.pid}; ") as raised:
            acquire_lease(tracker, PLAN_SHA256, name="claimed")
    finally:
        process.kill()
        process.wait()
    assert raised.value.exit_code == 6
    assert f"orchestrate status {run_id}" in str(raised.value)
    assert tracker.get_run(run_id).tags["owner"] == holder

    with acquire_lease(tracker, PLAN_SHA256, name="claimed") as run:
        assert run.run_id == run_id
        row = tracker.get_run(run_id)
        assert (row.status, row.tags["owner"]) == ("RUNNING", owner())
    assert tracker.get_run(run_id).status == "FINISHED"


def test_another_plan_is_another_sweep(tracker: Tracker) -> None:
    process, holder = other_process()
    run_id = held(tracker, holder)
    try:
        with acquire_lease(tracker, "0" * 64, name="claimed") as run:
            assert run.run_id != run_id
    finally:
        process.kill()
        process.wait()


def test_of_another_host_the_beats_are_heard(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 1.0)
    run_id = held(tracker, "another-host 12 3.0")

    def beat() -> None:
        for count in range(15):
            tracker.set_tag(run_id, "beat", str(count))
            time.sleep(0.1)

    thread = Thread(target=beat)
    thread.start()
    with pytest.raises(BusyError, match="host another-host, pid 12"):
        acquire_lease(tracker, PLAN_SHA256, name="claimed")
    thread.join()

    child = tracker.start("trial", "x", parent=run_id, tags={"owner": "another-host 13 3.0"}).run_id
    with acquire_lease(tracker, PLAN_SHA256, name="claimed") as run:
        assert run.run_id == run_id
        assert tracker.get_run(child).status == "KILLED"
        assert tracker.get_run(child).tags["reason"] == module.TAKEN_OVER


def test_two_that_claimed_at_once_on_a_server(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked before either claimed: the second sees the first when it looks again."""
    looked: list[int] = []
    rows = module._sweep_runs

    def blind_at_first(tracker: Tracker, plan_sha256: str) -> object:
        looked.append(1)
        return [] if len(looked) == 1 else rows(tracker, plan_sha256)

    first = held(tracker, "another-host 12 3.0")
    monkeypatch.setattr(module, "_sweep_runs", blind_at_first)
    with pytest.raises(BusyError, match="another-host"):
        acquire_lease(tracker, PLAN_SHA256, name="claimed")
    states = {row.run_id: row.status for row in tracker.search("tags.kind = 'sweep'")}
    assert states.pop(first) == "RUNNING"
    assert list(states.values()) == ["KILLED"]


def test_beats_go_on_until_the_end(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    with acquire_lease(tracker, PLAN_SHA256, name="claimed") as run:
        with heartbeat(tracker, run):
            time.sleep(0.5)
        heard = int(tracker.get_run(run.run_id).tags["beat"])
        time.sleep(0.2)
        assert int(tracker.get_run(run.run_id).tags["beat"]) == heard
    assert 2 <= heard <= 12


@pytest.mark.long
@pytest.mark.slow
def test_the_same_sweep_twice_at_once(tmp_path: Path) -> None:
    """The second process exits 6 and names the first; the first is whole, and every run has its bits."""
    (tmp_path / "twice.yaml").write_text(SPACE)
    words = [sys.executable, "-m", "orchestrator.cli", "sweep", "--space", "twice.yaml", "--device", "cpu"]
    both = [
        subprocess.Popen(
            words,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        results = [(*process.communicate(timeout=300), process.returncode) for process in both]
    finally:
        for process in both:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    codes = sorted(code for _, _, code in results)
    assert codes == [0, 6], results
    first = next(process.pid for process in both if process.returncode == 0)
    error = next(err for _, err, code in results if code == 6)
    assert f"pid {first}" in error

    uri = default_uri(tmp_path)
    tracker = Tracker(uri, "twice")
    keys = [row.tags["key"] for row in tracker.search("tags.key LIKE '_%'")]
    assert len(keys) == len(set(keys)) == 2 + 4
    found = status("twice", uri=uri)
    assert (found.state, found.done, found.missing) == ("finished", 4, 0)
    # Made by parallel workers from stored dense networks; made again here, serially and from nothing.
    for row in tracker.search("tags.key LIKE '_%'"):
        recorded = find_recorded_run(row.run_id, uri=uri)
        assert compare(recorded, rerun(recorded)).differences == []
