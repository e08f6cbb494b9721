"""Latency of networks of one's own file: a process that has not their code takes it as `export` does."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_sweep import record_sweep

from models.own_builders import find_own_builder
from orchestrator.errors import StoreError
from orchestrator.latency import recorded_networks
from orchestrator.latency.recorded_networks import LatencyOptions, measure_named
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from pruning.user_code import own_code

NET = """\
from torch import nn


def small(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""
AXES = "axes: {model: ['net.py:small'], dataset: [digits], technique: [weight], amount: [0.5]}\n"
OPTIONS = LatencyOptions(batches=(1,), seconds=0.01)


@pytest.mark.parametrize("is_at_hand", [True, False])
def test_a_network_whose_code_this_process_has_not(
    is_at_hand: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(f"# {tmp_path}\n{NET}")
    (tmp_path / "own.yaml").write_text(f"{AXES}train: {{epochs: 1}}\n")
    uri = default_uri(tmp_path)
    record_sweep(uri, tmp_path / "state", load_space("own.yaml"))
    monkeypatch.setattr(own_code, "_CODES", {})
    find_own_builder.cache_clear()
    recorded_networks._convertible_layers.cache_clear()
    if is_at_hand:
        (row,) = measure_named(["own"], OPTIONS, uri=uri)
        assert row.metrics["final/latency_ms_p50"] > 0
        return
    (tmp_path / "net.py").unlink()
    with pytest.raises(StoreError, match=r"net\.py:small needs its file .* --trust-code"):
        measure_named(["own"], OPTIONS, uri=uri)
