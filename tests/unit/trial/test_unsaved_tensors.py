"""Networks with tensors that no state dict has: they keep them in training, when stored and when loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from trained import Trained, digits, trained

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.planning.constraints import model_conflict
from orchestrator.space.values import canonical_model
from orchestrator.storage.manifest import LocalFolder
from orchestrator.storage.model_files import load_model_from, save_model
from orchestrator.training.evaluation import evaluate
from orchestrator.trial.run import run_trial
from orchestrator.trial.unsaved_tensors import unsaved_tensors

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.f = nn.Linear(512, classes)
        self.register_buffer("scale", torch.linspace(0.5, 2, 8).view(1, 8, 1, 1), persistent=False)
        self.shift = torch.tensor(0.25)
        self.powers = [torch.tensor(1.0), torch.tensor(2.0)]
    def forward(self, x):
        x = torch.relu(self.a(x)) * self.scale + self.shift
        return self.f(sum(torch.relu(self.b(x)) ** power for power in self.powers).flatten(1))

def net(input_shape, num_classes):
    return Net(input_shape[0], num_classes)

def drawn(input_shape, num_classes):
    net = Net(input_shape[0], num_classes)
    net.shift = torch.rand(1)
    return net
"""


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)


def config(model: str) -> DenseConfig:
    return DenseConfig(model, "digits", 64, 0, Train(epochs=3, lr=0.02), Numerics(micro_batch=4096))


def test_all_that_a_state_dict_leaves_out_is_named() -> None:
    net = models.build(canonical_model("net.py:net"), input_shape=(1, 8, 8), num_classes=10)
    assert set(unsaved_tensors(net)) == {"scale", "shift", "powers"}
    assert unsaved_tensors(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) == {}


def test_it_trains_is_stored_loaded_and_pruned(tmp_path: Path) -> None:
    model = canonical_model("net.py:net")
    dense = trained(config(model)).last
    assert dense.measurement.accuracy > 0.2
    folder = tmp_path / "model"
    folder.mkdir()
    arch = {"model": model, "input_shape": [1, 8, 8], "num_classes": 10, "cut_widths": None}
    saved = load_model_from(LocalFolder(folder), manifest_sha256=save_model(folder, dense.state, arch=arch))
    net = saved.spec.build_network(saved.state().weights)
    assert evaluate(net, digits().test, numerics=Numerics()).accuracy == dense.measurement.accuracy

    prune = Prune("l2", "unit", "layer", "one_shot", 0.5)
    trial = TrialConfig(config(model), prune, "finetune(epochs=1, on='cut')", "x")
    pruned = run_trial(trial, digits(), store=Trained()).last
    assert not any(tensor.is_meta for tensor in unsaved_tensors(pruned.net).values())


def test_what_is_drawn_at_random_is_refused_before_anything_is_trained() -> None:
    reason = model_conflict(canonical_model("net.py:drawn"), "digits")
    assert reason is not None
    assert "shift is drawn at random and not part of the state dict" in reason
    assert "persistent=True" in reason
    assert model_conflict(canonical_model("net.py:net"), "digits") is None
