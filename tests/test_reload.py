"""Recorded networks come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
import orchestrator
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import load as load_data
from orchestrator.errors import StoreError
from orchestrator.evaluation import evaluate
from orchestrator.point import Point, Settings
from orchestrator.tracking import Tracker, initialise
from orchestrator.worker import run_point

NUMERICS = Numerics(micro_batch=512)


DENSE = DenseConfig("cnn(widths=[8, 16])", "digits", 64, 0, Train(epochs=2), NUMERICS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a dense network."""
    place = tmp_path_factory.mktemp("store")
    initialise(address(place))
    run_point(Point(DENSE.key(), "dense", DENSE), settings(place))
    return place


def address(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def settings(folder: Path) -> Settings:
    return Settings(address(folder), "reload", "0" * 32, None, models.__file__)


def recorded(folder: Path, granularity: str, recover: str) -> str:
    """The run id of the network, pruned by half."""
    config = TrialConfig(DENSE, Prune("l2()", granularity, "layer", "one_shot()", 0.5), recover, "x")
    tracker = Tracker(address(folder), "reload")
    if tracker.finished_one(config.key()) is None:
        run_point(Point(config.key(), "trial", config, parent=DENSE.key()), settings(folder))
    found = tracker.finished_one(config.key())
    assert found is not None
    return found.run_id


@pytest.mark.parametrize("recover", ["none", "finetune(epochs=1)"])
@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_a_loaded_network_has_the_recorded_accuracy(folder: Path, granularity: str, recover: str) -> None:
    uri = address(folder)
    net, record = orchestrator.load(f"runs:/{recorded(folder, granularity, recover)}", uri=uri)
    again = evaluate(net, load_data("digits").test, numerics=NUMERICS)
    assert again.accuracy == record.metrics["final/accuracy"]
    assert sum(p.numel() for p in net.parameters()) == record.metrics["final/parameters_physical"]
    whole, _ = orchestrator.load(record.run_id, cut=False, uri=uri)
    images = load_data("digits").test.images[:32]
    assert torch.allclose(whole(images), net(images), atol=1e-5)


def test_a_changed_file_is_refused(folder: Path) -> None:
    run_id = recorded(folder, "weight", "finetune(epochs=2)")
    weights = next(folder.rglob(f"{run_id}/artifacts/model/weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"weights\.safetensors is not as it was written"):
        orchestrator.load(run_id, uri=address(folder))


def test_an_unknown_run_is_one_line(folder: Path) -> None:
    with pytest.raises(StoreError, match="no run 'nothing'"):
        orchestrator.load("nothing", uri=address(folder))
