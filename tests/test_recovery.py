"""Recoveries: lengths, rates, and that masks stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from orchestrator import data, stages
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.recovery import epochs_of, recoveries
from orchestrator.stages import Bench, State

RECIPE = Train(epochs=4, optimizer="sgd", lr=0.1, schedule="linear")


def bench(recipe: Train = RECIPE) -> Bench:
    config = DenseConfig("mlp(widths=[16])", "digits", 256, 0, recipe, Numerics(micro_batch=4096))
    return stages.make_bench(config, data.load("digits"))


def pruned(on: Bench, round: int = 1) -> State:
    config = TrialConfig(on.config, Prune("magnitude", "weight", "layer", "one_shot", 0.7), "none", "weight")
    return stages.prune_round(on, config, stages.dense(on), None, round=round)


@pytest.mark.parametrize(
    ("length", "epochs"),
    [(1, 1), (7, 7), ("10%", 2), ("100%", 20), ("1%", 1), (0.5, 10), (1.0, 20), (1e-9, 1), ("12.5%", 2)],
)
def test_lengths(length: float | str, epochs: int) -> None:
    assert epochs_of(length, Train(epochs=20)) == epochs


@pytest.mark.parametrize("length", [0, -1, True, 0.0, 1.5, "0%", "101%", "nan%", "5", "", "%", "x%"])
def test_lengths_that_are_none(length: float | str) -> None:
    with pytest.raises(ValueError, match="whole epochs"):
        epochs_of(length, Train())
    with pytest.raises(ValueError, match="whole epochs"):
        recoveries.get({"method": "finetune", "epochs": length})


def test_options_are_checked_where_they_are_read() -> None:
    with pytest.raises(ValueError, match="did you mean finetune"):
        recoveries.get("finetun")
    with pytest.raises(ValueError, match=r"must be in \(0, 1000\]"):
        recoveries.get("finetune(lr=0.0)")
    with pytest.raises(ValueError, match="did you mean epochs"):
        recoveries.get("finetune(epoch=2)")


def test_none_is_the_state_itself() -> None:
    on = bench()
    state = stages.dense(on)
    assert recoveries.get("none")(on, state, round=1) is state


def test_finetuning_holds_the_last_rate_and_the_masks() -> None:
    on = bench()
    before = pruned(on)
    after = recoveries.get("finetune(epochs=3, lr=2.0)")(on, before, round=1)
    # Linear from 0.1 at epoch 0 to 0 at epoch 4: 0.025 where the last epoch starts.
    assert [record.lr for record in after.history] == pytest.approx([0.05] * 3)
    assert after.epochs == 4 + 3
    assert after.train_flops == before.train_flops * 7 // 4
    assert all(torch.equal(after.masks[name], mask) for name, mask in before.masks.items())
    for name, mask in after.masks.items():
        assert not after.weights[name][~mask].any()
        assert not torch.equal(after.weights[name], before.weights[name])


def test_a_recovery_is_seeded_by_its_round() -> None:
    on = bench()
    state = pruned(on)
    method = recoveries.get("finetune(epochs=1)")
    first, again, second = (method(on, state, round=number) for number in (1, 1, 2))
    name = "output.weight"
    assert torch.equal(first.weights[name], again.weights[name])
    assert not torch.equal(first.weights[name], second.weights[name])


def test_a_percentage_is_of_the_training() -> None:
    on = bench(replace(RECIPE, epochs=1))
    assert recoveries.get("finetune(epochs='50%')")(on, stages.dense(on), round=1).epochs == 2
