"""Data of a function of one's own: swept, found again, loaded, rerun, trusted elsewhere, edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

DATA = """\
import numpy as np
import torchvision
from torch.utils.data import Dataset

from shapes import SIZE


class Squares(Dataset):
    classes = ["left", "right"]

    def __init__(self, count):
        self.images = np.random.default_rng(0).integers(0, 128, (count, SIZE, SIZE), dtype=np.uint8)
        for number, image in enumerate(self.images):
            image[:, 4 * (number % 2) :][:, :4] += 100

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number], number % 2


def squares(count=80):
    print("reading")
    return Squares(count)
"""
SPACE = """\
axes:
  model: [slp]
  dataset: ["../mine/data.py:squares(count=60)"]
  technique: [weight]
  amount: [50%]
train: {epochs: 1}
recover: none
"""
LOAD = """\
import json, sys
import orchestrator
net, record = orchestrator.load(sys.argv[1], strict=True, trust_code=len(sys.argv) > 2)
print(json.dumps([record.params["dataset"], record.accuracy]))
"""
SECONDS = 600.0
Done = CompletedProcess[str]


def run(folder: Path, *words: str, code: int = 0) -> Done:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent / 'store' / 'mlflow.db'}",
        "ORCHESTRATE_STATE_DIR": str(folder.parent / "state"),
    }
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_function_of_one_s_own_is_data_from_the_space_to_the_reload(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "research", tmp_path / "elsewhere"
    for name, text in {
        "research/mine/data.py": DATA,
        "research/mine/shapes.py": "SIZE = 8\n",
        "research/spaces/own.yaml": SPACE,
        "elsewhere/spaces/own.yaml": SPACE,
        "store/empty": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    orchestrate = ("-m", "orchestrator")
    sweep = (*orchestrate, "sweep", "--space", "spaces/own.yaml", "--device", "cpu")

    done = run(folder, *sweep)
    assert "slp on ../mine/data.py:squares(count=60)" in done.stdout
    assert "own: 1 trials, 2 runs made, 0 trials reused" in done.stdout
    assert "reading" not in done.stdout
    assert "nothing to do: all 1 trials are in the store" in run(folder, *sweep).stdout
    table = json.loads(run(folder, *orchestrate, "compare", "own", "--json").stdout)
    assert "../mine/data.py:squares(count=60)" in json.dumps(table)
    assert "@" not in json.dumps(table)
    code = "import orchestrator; print(orchestrator.results('own').run_id[0])"
    run_id = run(folder, "-c", code).stdout.strip()
    kept = list((tmp_path / "store").rglob("code/*/mine/*.py"))
    assert {file.name: file.read_text() for file in kept} == {"data.py": DATA, "shapes.py": "SIZE = 8\n"}

    # The file is at hand.
    dataset, accuracy = json.loads(run(folder, "-c", LOAD, run_id).stdout)
    assert dataset == "../mine/data.py:squares(count=60)"
    assert 0 <= accuracy <= 1
    assert run(folder, *orchestrate, "rerun", run_id, "--check").stdout.startswith("equal: ")
    run(folder, *orchestrate, "export", run_id, "--format", "safetensors", "--out", "net.safetensors")
    about = json.loads((folder / "net.safetensors.json").read_text())
    assert about["class_names"] == ["left", "right"]
    assert len(about["input"]["normalisation"]["mean"]) == 1

    # It is not, and the copy of the store runs where it is trusted alone.
    refused = run(elsewhere, *orchestrate, "rerun", run_id, "--check", code=4).stderr
    assert "there is no mine/data.py in this folder" in refused
    assert "--trust-code" in refused
    assert len(refused.splitlines()) == 1
    assert "--trust-code" in run(elsewhere, "-c", LOAD, run_id, code=1).stderr
    run(elsewhere, *orchestrate, "export", run_id, "--format", "safetensors", "--out", "net.safetensors")
    about = json.loads((elsewhere / "net.safetensors.json").read_text())
    assert about["class_names"] is None
    assert about["input"]["normalisation"]["mean"] is None
    assert json.loads(run(elsewhere, "-c", LOAD, run_id, "trust").stdout)[1] == accuracy
    trusted = run(elsewhere, *orchestrate, "rerun", run_id, "--check", "--trust-code")
    assert trusted.stdout.startswith("equal: ")

    # An edited file is other data, also where it is edited beside the main file.
    (folder / "mine" / "shapes.py").write_text("SIZE = 9\n")
    planned = run(folder, *orchestrate, "plan", "--space", "spaces/own.yaml").stdout
    assert "1 to run, 0 in the store" in planned
    assert "source of ../mine/data.py changed" in planned
    assert "data of ../mine/data.py:squares changed" in planned
    (folder / "mine" / "data.py").write_text(DATA.replace("number % 2\n", "number % 2 + np.random.rand()\n"))
    for command in ("plan", "sweep"):
        broken = run(folder, *orchestrate, command, "--space", "spaces/own.yaml", code=4).stderr
        assert "is another one when it is read again" in broken.splitlines()[-1]
