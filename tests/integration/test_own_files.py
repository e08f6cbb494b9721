"""A network of one's own beside folders with the names of ours: swept, resumed, edited, reloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

FILES = {
    "net.py": "from models.blocks import Hidden\nfrom pruning import WIDTH\nfrom torch import nn\n\n\n"
    "def small(input_shape, num_classes, *, width=WIDTH):\n    from models.late import SCALE\n"
    "    width *= SCALE\n"
    "    return nn.Sequential(nn.Flatten(), Hidden(64, width), nn.Linear(width, num_classes))\n",
    "mine.py": "from models.late import SCALE\n\n\ndef score(context, power=SCALE):\n"
    "    return {name: weight.double().abs() ** power for name, weight in context.weights.items()}\n",
    "models/__init__.py": "",
    "models/blocks.py": "from torch import nn\n\n\nclass Hidden(nn.Sequential):\n"
    "    def __init__(self, inputs, outputs):\n"
    "        super().__init__(nn.Linear(inputs, outputs), nn.ReLU())\n",
    "models/late.py": "SCALE = 1\n",
    "pruning/__init__.py": "WIDTH = 12\n",
    "small.yaml": """\
axes:
  model: ["net.py:small"]
  dataset: ["digits(samples_per_class=20)"]
  criterion: ["mine.py:score(power=2)"]
  granularity: [unit]
  scope: [layer]
  amount: [50%]
train: {epochs: 1}
""",
}
LOAD = """\
import json, sys
import orchestrator
net, record = orchestrator.load(sys.argv[1], strict=True, trust_code=len(sys.argv) > 2)
import models, pruning
print(json.dumps([net[1][0].out_features, record.params["model"], models.__file__, pruning.__file__]))
"""
SECONDS = 900.0  # of one command on a machine with much else to do
Done = CompletedProcess[str]


def run(folder: Path, *words: str, code: int = 0) -> Done:
    """Run Python as a person does in a folder, whose `models` and `pruning` come first on its path."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent / 'store' / 'mlflow.db'}",
        "ORCHESTRATE_STATE_DIR": str(folder.parent / "state"),
        "RAY_raylet_start_wait_time_s": "400",
    }
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_network_of_one_s_own_from_an_empty_folder(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "research", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "store").mkdir()
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    orchestrate = ("-m", "orchestrator")

    run(folder, *orchestrate, "sweep", "--space", "small.yaml", "--device", "cpu")
    again = run(folder, *orchestrate, "sweep", "--space", "small.yaml", "--device", "cpu")
    assert "nothing to do: all 1 trials are in the store" in again.stdout
    table = json.loads(run(folder, *orchestrate, "compare", "small", "--json").stdout)
    assert "mine.py:score(power=2)" in json.dumps(table)
    assert "@" not in json.dumps(table)
    code = (
        "import orchestrator; frame = orchestrator.results('small'); print(frame.run_id[0], frame.model[0])"
    )
    run_id, model = run(folder, "-c", code).stdout.split()
    assert model == "net.py:small"

    # The file is at hand: what is loaded is cut, ours are ours, and a rerun has the same bits.
    width, name, *ours = json.loads(run(folder, "-c", LOAD, run_id).stdout)
    assert (width, name) == (6, "net.py:small")
    assert not any(path.startswith(str(tmp_path)) for path in ours)
    assert run(folder, *orchestrate, "rerun", run_id, "--check").stdout.startswith("equal: ")

    # It is not, and then nothing of the store's copy runs unless it is trusted.
    (folder / "models" / "late.py").write_text("SCALE = 1  # edited\n")
    for place, reason in ((folder, "models/late.py is not as it was"), (elsewhere, "there is no net.py")):
        refused = run(place, *orchestrate, "export", run_id, "--format", "pt2", code=4).stderr
        assert reason in refused
        assert "--trust-code" in refused
        assert len(refused.splitlines()) == 1
        assert not list(place.glob("*.pt2"))
    run(elsewhere, *orchestrate, "export", run_id, "--format", "pt2", "--trust-code")
    run(elsewhere, *orchestrate, "register", run_id, "--name", "own", "--trust-code")
    assert json.loads(run(elsewhere, "-c", LOAD, "models:/own/1", "trust").stdout)[0] == 6
    rerun = run(elsewhere, *orchestrate, "rerun", run_id, "--check", "--trust-code")
    assert rerun.stdout.startswith("equal: ")

    # The edited file is another network: planned anew, and said so.
    plan = run(folder, *orchestrate, "plan", "--space", "small.yaml").stdout
    assert "1 to run, 0 in the store" in plan
    assert "source of mine.py changed" in plan
    assert "source of net.py changed" in plan
