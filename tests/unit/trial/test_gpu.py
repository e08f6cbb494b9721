"""A sweep on real GPUs: parts of one are shared, and its runs come out the same again, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep import run_sweep
from orchestrator.model_io.rerun import compare, find_recorded_run, rerun
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker

SPACE = """\
version: 1
axes:
  model: [cnn]
  dataset: [digits]
  batch_size: [64]
  technique: [weight, structured]
  amount: [50%]
  seed: [0, 1]
train: {epochs: 2}
recover: finetune(epochs=1)
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_a_sweep_on_gpus_is_deterministic_and_shares_them(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    space, uri = load_space(str(tmp_path / "space.yaml"), []), default_uri(tmp_path)
    summary = run_sweep(space, SweepOptions(device="cuda", gpus_per_trial=0.5), uri=uri)
    assert (summary.failed, summary.outcome.failures) == (0, [])
    rows = Tracker(uri, space.name).search("tags.key LIKE '_%'")
    assert len(rows) == 2 + 4
    for row in rows:
        facts = json.loads(Tracker(uri, space.name).read_text(row, "environment.json"))
        assert facts["cuda.cublas_workspace"] == ":4096:8"
        # Ray shows a worker the one GPU that it holds.
        assert [name for name in facts if name.startswith("gpu.")] == ["gpu.0"]
        assert row.params["numerics.device"] == "cuda"
        recorded = find_recorded_run(row.run_id, uri=uri)
        new = rerun(recorded)
        assert new.level.startswith("cuda, deterministic: ")
        if not list(recorded.reproducibility_warnings()):
            assert compare(recorded, new).differences == []
    assert not torch.are_deterministic_algorithms_enabled()
