"""A sweep in one file, made again by the command in an empty store: the same bits, and nothing beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from in_process import orchestrate
from whole_sweep import NAME, record_sweep

from orchestrator.report.bundle import write_bundle
from orchestrator.storage.uri import default_uri


@pytest.mark.slow
def test_a_bundle_is_made_again_in_an_empty_store(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    record_sweep(default_uri(first), tmp_path / "state")
    written = write_bundle(NAME, uri=default_uri(first), out=second / "x.zip")
    assert written.runs == 3

    command = [sys.executable, "-m", "orchestrator", "rerun", "x.zip"]  # Ray gets a process of its own
    done = subprocess.run(command, cwd=second, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("equal: 3 runs, ")
    assert lines[-1] == "environment: the same"
    assert not any("in this store already" in line for line in lines)
    assert {path.name for path in second.iterdir()} <= {"x.zip", "mlruns"}

    # Once more: nothing is to do, and that is said.
    again = orchestrate("rerun", "x.zip", cwd=second)
    assert "2 trials were in this store already and were not made again" in again.stdout
