"""From a sweep to an environment that has ONNX Runtime and numpy alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from subprocess import CompletedProcess

import pytest

SPACE = """\
axes:
  model: ["cnn(widths=[8, 16])"]
  dataset: [digits]
  technique: [structured]
  amount: [25%, 50%]
train: {epochs: 6}
recover: finetune(epochs=4)
"""
SECONDS = 900.0  # of one command on a machine with much else to do


def run(folder: Path, *command: str, code: int | None = 0) -> CompletedProcess[str]:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "ORCHESTRATE_STATE_DIR": str(folder / "state"),
        "RAY_raylet_start_wait_time_s": "400",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.long
def test_the_best_network_of_a_sweep_runs_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrate = (sys.executable, "-m", "orchestrator")
    (tmp_path / "small.yaml").write_text(SPACE)
    run(tmp_path, *orchestrate, "sweep", "small.yaml")
    words = (*orchestrate, "export", "small", "--best", "--within", "100%")
    assert "--within" in run(tmp_path, *words, code=2).stderr
    words = (*orchestrate, "export", "small", "--best", "--within", "99%", "--input", "uint8")
    done = run(tmp_path, *words, "--out", "shipped/digits")

    # The smallest is that with half of its channels, whatever its accuracy.
    rows = json.loads(run(tmp_path, *orchestrate, "compare", "small", "--json").stdout)
    half = next(row for row in rows if row["amount"] == 0.5)
    assert done.stdout.startswith(f"run {half['run_ids']}: the smallest of 2 of 2 finished trials of small")
    table = run(tmp_path, *orchestrate, "compare", "small").stdout
    assert f"orchestrate export {half['run_ids']}" in table
    run(tmp_path, *orchestrate, "report", "small", "--out", "report.html")
    report = (tmp_path / "report.html").read_text()
    assert f"orchestrate export {half['run_ids']}" in report
    assert "orchestrate export small --best" in report

    folder = tmp_path / "shipped" / "digits"
    (about,) = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    assert about["input"]["type"] == "uint8"
    assert about["test"]["accuracy"] == half["accuracy"]
    alone = tmp_path / "alone"
    venv.create(alone, with_pip=True)
    python = str(alone / "bin" / "python")
    monkeypatch.delenv("PYTHONPATH")  # nothing of this project is there
    installed = run(tmp_path, python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", code=None)
    if installed.returncode:
        pytest.skip(f"pip installs nothing here: {installed.stderr.strip().splitlines()[-1]}")
    refused = run(tmp_path, python, "-c", "import torch", code=None)
    assert "No module named 'torch'" in refused.stderr
    checked = run(tmp_path, python, "-I", str(folder / "check.py")).stdout.splitlines()
    assert checked[0] == f"class: {about['sample']['class_name']}"
    assert checked[-1] == "ok"


@pytest.mark.slow
def test_compress_answers_with_a_folder_or_with_exit_3(tmp_path: Path) -> None:
    words = (sys.executable, "-m", "orchestrator", "compress", "--model", "cnn(widths=[6, 10])")
    words += ("--data", "digits", "--epochs", "2", "--trials", "2")
    half = (*words, "--budget", "macs<=40%", "--out", "half")
    run(tmp_path, *half)
    (network,) = (tmp_path / "half").iterdir()
    card = (network / "README.md").read_text()
    assert "It was chosen among 2 trials, by validation accuracy, for: macs <= 40%." in card
    assert run(tmp_path, sys.executable, str(network / "check.py")).stdout.splitlines()[-1] == "ok"
    assert "already" in run(tmp_path, *half).stdout
    refused = run(tmp_path, *words, "--budget", "macs<=1%", "--out", "tiny", code=3)
    assert "nothing meets macs <= 1%" in refused.stderr
    assert not (tmp_path / "tiny").exists()
