"""A store that goes away in mid-sweep: results wait, the sweep goes on, and all of them arrive."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import Server
from small_sweep import DENSE, LONGEST, NAME, TRIALS, check_all_there, finished, sweeping, until

from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.execution.worker import run_task
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.system import provenance
from orchestrator.tracking import Tracker, initialise
from orchestrator.trial.task import Task, WorkerSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.long
def test_a_server_that_comes_back_in_mid_sweep_and_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE_DIR", str(tmp_path / "client" / "state"))
    server = Server(tmp_path / "server")
    server.start()
    log, outbox = tmp_path / "client" / "log.txt", Outbox(outbox_folder(server.uri))
    try:
        with sweeping(tmp_path / "client", server.uri) as process:
            until(lambda: len(finished(server.uri)) >= 3, process)
            server.kill()
            until(lambda: len(outbox.pending_runs()) >= 3, process)  # it goes on computing
            server.start()
            until(lambda: len(finished(server.uri)) >= 7, process)  # what waited is delivered
            server.kill()
            assert process.wait(LONGEST) == 4, log.read_text()
        waiting = {parcel.start.point: parcel for parcel in outbox.pending_runs()}
        assert f"{len(waiting)} results wait in {outbox.folder}, and `orchestrate deliver` delivers them" in (
            log.read_text()
        )
        server.start()
        assert len(finished(server.uri)) + len(waiting) == TRIALS + DENSE  # it ran to its end
        told = json.loads(deliver(server.uri))
        assert told["delivered"] == len(waiting)
        assert [(item["space"], item["state"]) for item in told["sweeps"]] == [(NAME, "finished")]
        check_all_there(server.uri)
        with sweeping(tmp_path / "client", server.uri) as process:
            assert process.wait(LONGEST) == 0, log.read_text()
        check_all_there(server.uri)
        assert outbox.pending_runs() == []
        # Delivered as they were, and not run again.
        ended = {row.tags["key"]: row.end_ms for row in finished(server.uri)}
        assert all(ended[key] == parcel.end.end_ms for key, parcel in waiting.items())
    finally:
        server.kill()


def deliver(uri: str) -> str:
    """What `orchestrate deliver --json` says."""
    command = [sys.executable, "-m", "orchestrator.cli", "deliver", "--json"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.long
def test_a_sqlite_file_that_is_locked_for_a_while(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    initialise(uri)  # before two processes look at it
    with sweeping(tmp_path) as process:
        until(lambda: len(finished(uri)) >= 4, process)
        outbox = Outbox(outbox_folder(uri))
        connection = sqlite3.connect(tmp_path / "mlruns" / "mlflow.db", timeout=60, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        locked = time.monotonic()
        try:
            until(lambda: len(outbox.pending_runs()) >= 3, process)  # it goes on computing
            time.sleep(max(0.0, locked + 45 - time.monotonic()))
        finally:
            connection.rollback()
            connection.close()
        assert process.wait(LONGEST) == 0, (tmp_path / "log.txt").read_text()
    check_all_there(uri)
    assert outbox.pending_runs() == []


def test_checkpoints_through_a_server_are_found_and_removed(server: Server, tmp_path: Path) -> None:
    initialise(server.uri)
    tracker = Tracker(server.uri, "checkpoints")
    sweep = tracker.start("sweep", "checkpoints", tags={}).run_id
    artifacts = server.folder / "artifacts" / str(tracker.experiment_id)
    settings = WorkerSettings(
        server.uri,
        "checkpoints",
        sweep,
        None,
        provenance.install_path(),
        state_dir=str(tmp_path),
        checkpoint_seconds=0.0,
    )
    config = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=6), Numerics(micro_batch=4096))
    point = Task(config.key(), "dense", config)

    def die(values: dict[str, float]) -> None:
        if values["epoch"] == 4.0:
            raise SystemExit

    with pytest.raises(SystemExit):
        run_task(point, settings, on_progress=die)
    kept = list(artifacts.rglob("checkpoint/*.safetensors"))
    assert len(kept) == 2
    heard: list[float] = []
    run_task(point, settings, on_progress=lambda values: heard.append(values["epoch"]))
    assert heard[0] > 2.0
    row = tracker.find_all_finished({config.key()})[config.key()]
    assert "carried_on_from" in row.tags
    assert "checkpoints_left_in" not in row.tags
    assert not list(artifacts.rglob("checkpoint/*.safetensors"))
    assert list(artifacts.rglob("model/weights.safetensors"))
