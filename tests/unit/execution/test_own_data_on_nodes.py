"""A node of a cluster checks the data of one's own function: with the code that came along, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data import paths
from orchestrator.data.sources import own_data
from orchestrator.execution import ray_cluster
from orchestrator.execution.ray_cluster import NodeRequirements, find_problem
from orchestrator.space.values import canonical_dataset
from pruning.user_code import own_code, stored_code

CODE = """\
import numpy as np


def load(count=30):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4)), np.arange(count) % 3
"""


def test_a_node_gets_the_code_and_reads_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.py").write_text(CODE)
    good, bad = canonical_dataset("data.py:load"), canonical_dataset("data.py:load(count=2)")
    code = stored_code.dump(stored_code.codes_in(good), with_base=True)
    monkeypatch.setattr(own_code, "_CODES", {})  # another process
    monkeypatch.setattr(own_data, "_steady", set())
    monkeypatch.setattr(paths, "_workers_folder", None)
    monkeypatch.setattr(ray_cluster, "check_code", lambda code: None)
    monkeypatch.setattr(ray_cluster, "store_exists", lambda uri: True)
    monkeypatch.setattr(ray_cluster.tracking, "initialise", lambda uri: None)

    def problem_of(text: str, own: str) -> str:
        return find_problem(NodeRequirements("", "uri", "", (text,), None, str(tmp_path), own))

    assert "data.py:load: the code with the digest" in problem_of(good, "")
    assert problem_of(good, code) == ""
    assert problem_of(bad, code).startswith("data.py:load(count=2): ")
