"""A sweep whose Ray is killed under it, or that is stopped as it starts: real processes and signals."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker

pytestmark = pytest.mark.slow

SETS = ["seed=0,1", "amount=0,0.5", "technique=weight", "train.epochs=20"]
COMMAND = [sys.executable, "-m", "orchestrator", "sweep", "--space", "weight-vs-unit"]
COMMAND += [word for text in SETS for word in ("--set", text)]
DIED = r"error: Ray died; the same command carries on (its {}, pid {}, was ended by SIGKILL)"
SECONDS_TO_END = 10.0


@contextmanager
def sweep(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The sweep, with a folder for temporary files of its own; whatever is left of it is killed."""
    variables = os.environ | {
        "TMPDIR": str(temporary(folder)),
        "SWEEP_TEST": str(folder),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(COMMAND, cwd=folder, env=variables, text=True, **pipes) as process:
        try:
            yield process
        finally:
            for one in [process, *processes(folder)]:
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    one.kill()
            shutil.rmtree(temporary(folder))


def temporary(folder: Path) -> Path:
    """A path that is short enough for sockets, which pytest's own is not."""
    place = Path(tempfile.gettempdir()) / f"t-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    place.mkdir(exist_ok=True)
    return place


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that runs below a sweep of this folder, whoever its parent is by now."""
    marked = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SWEEP_TEST") == str(folder):
                marked.append(process)
    return marked


def child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """Ray's process of this name, as soon as it is there."""
    while process.poll() is None:
        with suppress(psutil.Error):
            for candidate in psutil.Process(process.pid).children():
                if Path((candidate.cmdline() or [""])[0]).name == name:
                    return candidate
        time.sleep(0.02)
    raise AssertionError(f"the sweep has ended: {process.communicate()}")


def rows(folder: Path) -> list[RunRecord]:
    if not (folder / "mlruns" / "mlflow.db").exists():
        return []
    return Tracker(default_uri(folder), "weight-vs-unit").search("attributes.run_id != ''")


def wait_for_a_training(process: subprocess.Popen[str], folder: Path) -> None:
    while process.poll() is None:
        if any(row.tags.get("kind") == "dense" and row.status == "RUNNING" for row in rows(folder)):
            return
        time.sleep(0.2)
    raise AssertionError(f"the sweep has ended: {process.communicate()}")


def check_nothing_left(folder: Path) -> None:
    assert [row for row in rows(folder) if row.status == "RUNNING"] == []
    deadline = time.monotonic() + 5
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(folder) == []
    assert list(temporary(folder).glob("*orchestrate-*")) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_where_ray_is_killed_the_sweep_ends_at_once_and_the_same_command_carries_on(
    tmp_path: Path, name: str
) -> None:
    with sweep(tmp_path) as process:
        wait_for_a_training(process, tmp_path)
        target = child(process, name)
        killed = time.monotonic()
        target.kill()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < SECONDS_TO_END
        assert process.returncode == 4
        assert out == ""
        assert err.splitlines()[-1] == DIED.format(name, target.pid)
        assert "Traceback" not in err
        check_nothing_left(tmp_path)
    with sweep(tmp_path) as process:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0
        assert "log level" not in err  # a line of Ray's own, once
        check_nothing_left(tmp_path)
    keys = [row.tags["key"] for row in rows(tmp_path) if "key" in row.tags]
    assert len(keys) == len(set(keys)) == 2 + 4  # two dense trainings, and the trials of two amounts


def test_ray_that_is_killed_while_it_starts_is_seen_too(tmp_path: Path) -> None:
    with sweep(tmp_path) as process:
        target = child(process, "gcs_server")
        killed = time.monotonic()
        target.kill()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < SECONDS_TO_END
        assert process.returncode == 4
        assert err.splitlines()[-1].startswith(("error: Ray died; ", "error: Ray did not start: "))
        check_nothing_left(tmp_path)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_during_the_start_ends_within_three_seconds(tmp_path: Path, seconds: float) -> None:
    with sweep(tmp_path) as process:
        time.sleep(seconds)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - pressed < 8  # 3, and what a busy machine takes to end a process
        # The latter from Python, before any code of ours.
        assert process.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err
        # Nothing at all where Python itself was still starting.
        assert (err.splitlines() or ["interrupted"])[-1].startswith("interrupted")
        check_nothing_left(tmp_path)
