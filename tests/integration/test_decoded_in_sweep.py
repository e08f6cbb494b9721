"""A decoded file that is cut or removed in mid-sweep: a failed trial with its reason, or nothing at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SPACE = """\
axes:
  model: [slp]
  dataset: ["npz(path='a.npz')"]
  technique: [weight]
  amount: [50%]
train: {epochs: 40, optimizer: sgd, lr: 0.001}
recover: none
"""
COMMAND = [sys.executable, "-m", "orchestrator", "sweep", "--space", "own.yaml"]
SECONDS = 500.0


def is_open_elsewhere(file: Path, driver: int) -> bool:
    """Whether a process other than the driver has a file open: a worker that trains on it."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(file) and int(link.parts[2]) != driver:
                return True
        except OSError:  # it has ended
            continue
    return False


def sweep_until_training(folder: Path, action: Callable[[Path], None]) -> tuple[int, str]:
    """Sweep, and act on the decoded file once a worker trains on it; return the exit code and stderr."""
    process = subprocess.Popen(
        COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < until:
            files = list((folder / "data" / "decoded").glob("*.u8"))
            if files and is_open_elsewhere(files[0], process.pid):
                time.sleep(4)  # until it is loaded, and before its 40 epochs are over
                action(files[0])
                break
            time.sleep(0.2)
        stderr = process.communicate(timeout=SECONDS)[1]
    finally:
        process.kill()
        process.wait()
    return process.returncode, stderr


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_cut_file_fails_a_trial_in_one_line_and_a_removed_one_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    images = np.random.default_rng(0).integers(0, 256, (340, 3, 256, 256), dtype=np.uint8)  # no float tensor
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(340) % 3)
    (tmp_path / "own.yaml").write_text(SPACE)
    code, said = sweep_until_training(tmp_path, lambda file: os.truncate(file, 1000))
    assert code == 3, said
    (failed,) = (line for line in said.splitlines() if line.startswith("failed: dense"))
    assert ".u8 was changed while it was in use" in failed
    code, said = sweep_until_training(tmp_path, lambda file: shutil.rmtree(file.parent))
    assert code == 0, said
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert "nothing to do: all 1 trials are in the store" in done.stdout
