"""A sweep over allocations: MACs land alike, and what was measured is shown by command and report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import orchestrate

import orchestrator
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker

pytestmark = pytest.mark.slow

SPACE = """\
version: 1
axes:
  model: ["cnn(widths=[6, 10])"]
  dataset: [digits]
  criterion: [l2]
  granularity: [channel]
  allocate: [uniform, per_mac, sensitivity]
  amount: [{macs: 50%}]
train: {epochs: 2}
"""
FILTER = 9 * 64 + 9 * 10 * 16  # MACs of a filter of the first layer, with all that reads it


def test_macs_land_alike_and_one_measurement_serves_all_trials_and_readers(tmp_path: Path) -> None:
    (tmp_path / "allocations.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "allocations.yaml"]
    environment = {**os.environ, "ORCHESTRATE_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uri = default_uri(tmp_path)
    results = orchestrator.results("allocations", uri=uri)
    assert set(results["status"]) == {"finished"}
    assert list(dict.fromkeys(results["technique"])) == ["l2/uniform", "l2/per_mac", "l2/sensitivity"]
    assert list(dict.fromkeys(results["scope"])) == ["layer", "per_mac", "sensitivity"]
    half = results["final/macs_dense"] // 2
    assert (results["final/macs_physical"] <= half).all()
    assert (results["final/macs_physical"] > half - FILTER).all()
    (dense,) = Tracker(uri, "allocations").search("tags.kind = 'dense'")
    assert len([tag for tag in dense.tags if tag.startswith("sensitivity.")]) == 1

    shown = orchestrate("sensitivity", "allocations", "--csv", "--out", "picture.svg", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "measuring" not in shown.stderr  # it is stored with the dense network
    rows = list(csv.DictReader(shown.stdout.splitlines()))
    assert [(row["layer"], row["size"], row["macs"]) for row in rows] == [
        ("blocks.0.conv", "6", str(9 * 6 * 64)),
        ("blocks.1.conv", "10", str(9 * 6 * 10 * 16)),
    ]
    assert all(row["validation_images"] == "180" and row["dense_run"] == dense.run_id for row in rows)
    assert {float(row["loss"]) for row in rows} == {dense.metrics["final/val_loss"]}
    assert "rise of the loss" in (tmp_path / "picture.svg").read_text()

    measured = orchestrate("sensitivity", dense.run_id, "--json", cwd=tmp_path)
    assert "measuring" in measured.stderr  # of single weights by their magnitude it was not known
    assert [row["layer"] for row in json.loads(measured.stdout)][-1] == "output.weight"
    table = orchestrate("sensitivity", results["run_id"].iloc[0], cwd=tmp_path)
    assert "l2, channel, seed 0; dense: loss" in table.stdout
    for words, message in (
        (["--granularity", "nm"], "granularity nm removes a fixed part of every row"),
        (["--criterion", "movement"], "criterion 'movement' sums over the steps of a training"),
        (["--criterion", "l3"], "--criterion: unknown criterion 'l3'; did you mean l2 or l1"),
        (["--out", "picture.gif"], "unknown format 'gif'"),
        (["--csv", "--json"], "are several formats; give one"),
    ):
        refused = orchestrate("sensitivity", dense.run_id, *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("error: ")
        assert message in refused.stderr
    report = orchestrate("report", "allocations", "--out", "report.html", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report.html").read_text()
    assert "Sensitivity of layers" in page
    assert "on digits, l2, channel, seed 0" in page
    assert "on digits, magnitude, weight, seed 0" in page
    again = orchestrate("rerun", results["run_id"].iloc[-1], "--check", cwd=tmp_path)
    assert again.stdout.startswith("equal: "), again.stdout + again.stderr
