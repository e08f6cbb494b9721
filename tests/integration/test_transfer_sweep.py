"""The third journey as a person takes it: a sweep --from a network of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import forked
import in_process
import pytest
from whole_sweep import record_sweep

from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker

FIRST = """\
version: 1
axes:
  model: ["mlp(widths=[24, 16])"]
  dataset: ["digits(classes=[0, 1, 2])"]
  technique: [structured]
  amount: [50%]
train: {epochs: 3}
recover: finetune(epochs=1)
"""
SETS = (
    "dataset=digits(classes=[7, 8, 9], samples_per_class=10)",
    "technique=structured",
    "amount=0,50%",
    "seed=0",
    "train.epochs=3",
)
SECONDS = 900.0  # of one command on a machine with much else to do
Done = CompletedProcess[str]


@pytest.fixture
def orchestrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """A command's result; what starts Ray is a process of its own."""
    monkeypatch.setenv("ORCHESTRATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "400")  # on a machine with much else to do

    def call(*words: str, code: int = 0) -> Done:
        if words[0] == "sweep":
            done = forked.orchestrate(*words, cwd=tmp_path, seconds=SECONDS)
        else:
            done = in_process.orchestrate(*words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done

    return call


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_logged_network_is_taken_on_to_other_classes(
    orchestrate: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    uri = default_uri(tmp_path)
    first = record_sweep(uri, tmp_path / "state", load_space(str(tmp_path / "first.yaml")))
    tracker = Tracker(uri, "transfer")
    trial = tracker.get_run(first)
    move = ["--space", "transfer", "--device", "cpu", *(word for item in SETS for word in ("--set", item))]

    assert "give --from MODEL" in orchestrate("plan", *move, code=2).stderr
    planned = orchestrate("plan", *move, "--from", trial.run_id, "--json")
    assert json.loads(planned.stdout)["trials"] == 3 * 2
    told = planned.stderr.splitlines()
    assert told == [
        f"the model of {trial.run_id} takes the place of the space's: mlp(widths=[24, 16], bias=False)",
        f"digits(classes=[7, 8, 9], samples_per_class=10): 2 of 3 tensors of {trial.run_id}; "
        "drawn anew: output.weight (head: other classes)",
    ]

    swept = orchestrate("sweep", *move, "--from", trial.run_id, "--json")
    assert json.loads(swept.stdout)["ran"] == 3 * 3
    (sweep,) = tracker.search("tags.kind = 'sweep'")
    assert sweep.tags["ancestor"] == trial.run_id
    assert f"--from {trial.run_id}" in sweep.tags["command"]
    runs = [
        run for run in tracker.find_all_finished().values() if run.tags["mlflow.parentRunId"] == sweep.run_id
    ]
    descended = [run for run in runs if run.params.get("start") in ("weights", "masked")]
    assert len(descended) == 2 * 3
    for run in descended:
        assert run.params["ancestor_sha256"] == sweep.tags["ancestor_sha256"]
        assert (run.tags["ancestor"], run.tags["inherited"]) == (trial.run_id, "2 of 3 tensors")

    again = orchestrate("sweep", *move, "--from", f"runs:/{trial.run_id}", "--json")
    assert json.loads(again.stdout)["ran"] == 0
    compared = orchestrate("compare", "transfer", "--baseline", "start=scratch", "--json").stdout
    assert all(f'"start": "{start}"' in compared for start in ("weights", "masked"))
    masked = next(run for run in descended if run.params["start"] == "masked" and run.tags["kind"] == "trial")
    checked = orchestrate("rerun", masked.run_id, "--check").stdout
    assert checked.startswith("equal: ")
    assert masked.metrics["final/parameters_physical"] < masked.metrics["final/parameters_dense"]
