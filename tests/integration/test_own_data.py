"""Images in folders, one's own and published: swept, resumed, rerun, exported, changed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image
from small_published import eurosat

SPACE = """\
axes:
  model: [slp]
  dataset: ["folder(path='../photos', size=16)"]
  technique: [weight]
  amount: [50%]
train: {epochs: 1}
recover: none
"""
SECONDS = 500.0


def run(folder: Path, *words: str, code: int = 0) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.long
def test_a_folder_is_swept_from_any_space_and_counts_in_every_key(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for label in ("left hand", "rechts ü"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "own.yaml").write_text(SPACE)
    done = run(tmp_path, "sweep", "--space", "spaces/own.yaml")
    assert "slp on folder(path='photos', size=16)" in done.stdout
    assert "own: 1 trials, 2 runs made, 0 trials reused" in done.stdout
    again = run(tmp_path, "sweep", "--space", "spaces/own.yaml")
    assert "nothing to do: all 1 trials are in the store" in again.stdout
    code = "import orchestrator; print(orchestrator.results('own').run_id[0])"
    command = [sys.executable, "-c", code]
    run_id = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert "equal: " in run(tmp_path, "rerun", run_id, "--check").stdout
    run(tmp_path, "export", run_id, "--format", "safetensors", "--out", "net.safetensors")
    about = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert about["class_names"] == ["left hand", "rechts ü"]
    assert len(about["input"]["normalisation"]["mean"]) == 3
    (tmp_path / "photos" / "left hand" / "3.png").write_bytes(b"")
    broken = run(tmp_path, "sweep", "--space", "spaces/own.yaml", code=4)
    assert "3.png is empty: 0 bytes; mend or remove it" in broken.stderr
    (tmp_path / "photos" / "left hand" / "3.png").unlink()
    planned = run(tmp_path, "plan", "--space", "spaces/own.yaml")
    assert "1 to run, 0 in the store" in planned.stdout


@pytest.mark.long
def test_a_published_data_set_is_swept_from_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    (content,) = eurosat().values()
    (tmp_path / "space.yaml").write_text(SPACE.replace("folder(path='../photos', ", "torchvision.eurosat("))
    missing = run(tmp_path, "plan", "--space", "space.yaml", code=4)
    assert f"{tmp_path}/data/eurosat/EuroSAT.zip is missing (expected md5 " in missing.stderr
    with zipfile.ZipFile(BytesIO(content)) as archive:
        archive.extractall(tmp_path / "data" / "eurosat")
    done = run(tmp_path, "sweep", "--space", "space.yaml")
    assert "slp on torchvision.eurosat(size=16)" in done.stdout
    assert "space: 1 trials, 2 runs made, 0 trials reused" in done.stdout
    assert "train have 60 images, and 27,000 were published" in done.stderr
    again = run(tmp_path, "sweep", "--space", "space.yaml")
    assert "nothing to do: all 1 trials are in the store" in again.stdout
