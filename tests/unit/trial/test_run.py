"""Whole walks over `when`, `control`, recoveries and rounds: counts by hand, and what must not change."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from trained import Trained, digits, trained

from orchestrator.config import Control, DenseConfig, Numerics, Prune, Train, TrialConfig, When
from orchestrator.planning.estimate import trial_epochs
from orchestrator.trial import stages
from orchestrator.trial.context import make_context
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.run import TrialResult, run_trial
from pruning.mask_selection import target_count
from pruning.masking import Masks

EPOCHS = 2
MLP, CNN, DEEP = "mlp(widths=[32, 16])", "cnn(widths=[8, 16])", "mlp(widths=[8, 8, 8, 8, 8])"
LAYERS = {"hidden.0.weight": 2048, "hidden.1.weight": 512, "output.weight": 160}


def dense_config(model: str, seed: int = 0) -> DenseConfig:
    return DenseConfig(model, "digits", 64, seed, Train(epochs=EPOCHS, lr=1e-2), Numerics(micro_batch=4096))


def dense(model: str, seed: int = 0) -> TrialResult:
    return trained(dense_config(model, seed))


def walk(
    prune: Prune,
    recover: str = "none",
    *,
    model: str = MLP,
    when: When = "after",
    seed: int = 0,
    prepare: str = "none",
) -> TrialResult:
    config = TrialConfig(dense_config(model, seed), prune, recover, "x", when=when, prepare=prepare)
    return run_trial(config, digits(), store=Trained())


def weights(
    amount: float, schedule: str = "one_shot", scope: str = "layer", control: Control = "none"
) -> Prune:
    return Prune("magnitude", "weight", scope, schedule, amount, control=control)


def dead(masks: Masks) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}


def equal(a: Masks, b: Masks) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def asked(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "asked for" in note]


# ---- every recovery at every moment


@pytest.mark.parametrize("when", ["after", "init", "during"])
@pytest.mark.parametrize("recover", list(recoveries))
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_any_recovery_at_any_moment(recover: str, when: When, granularity: str) -> None:
    if granularity == "channel" and recoveries.get(recover).traits.get("regrows"):
        pytest.skip("it is for single weights")
    criterion = "magnitude" if granularity == "weight" else "l2"
    prune = Prune(criterion, granularity, "layer", "cubic(rounds=2)", 0.5)
    before = {name: tensor.clone() for name, tensor in dense(CNN).last.state.weights.items()}
    result = walk(prune, recover, model=CNN, when=when)
    last = result.last
    assert last.measurement.amount == 0.5
    assert all(math.isfinite(value) for value in last.measurement.metrics("final").values())
    assert not any(last.state.weights[name][~mask].any() for name, mask in last.state.masks.items())
    # What the plan says that it takes, and for each epoch the same.
    config = TrialConfig(dense_config(CNN), prune, recover, "x", when=when)
    assert last.measurement.epochs == trial_epochs(config) + (EPOCHS if when == "after" else 0)
    assert last.measurement.train_flops * EPOCHS == result.ipa.train_flops * last.measurement.epochs
    # Every walk starts from the same dense network, which it leaves as it was.
    assert result.ipa.metrics("ipa").items() >= {
        (name, value) for name, value in dense(CNN).ipa.metrics("ipa").items() if not name.endswith("seconds")
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in dense(CNN).last.state.weights.items())


# ---- before the training


@pytest.mark.parametrize("recover", ["rewind", "lr_rewind", "reinit"])
@pytest.mark.parametrize("schedule", ["one_shot", "iterative(rounds=3)", "cubic(rounds=5)"])
def test_what_is_pruned_at_init_is_trained_once(recover: str, schedule: str) -> None:
    result = walk(weights(0.8, schedule), recover, when="init")
    (measured,) = result.rounds
    assert (measured.measurement.epochs, measured.measurement.train_flops) == (EPOCHS, result.ipa.train_flops)
    assert [record.lr for record in measured.state.history] == [
        record.lr for record in dense(MLP).last.state.history
    ]
    assert dead(measured.state.masks) == {name: target_count(0.8, size) for name, size in LAYERS.items()}


def test_masks_at_init_are_of_the_initial_weights() -> None:
    state = walk(weights(0.5), "rewind", when="init").last.state
    start = stages.initial(make_context(dense_config(MLP), digits())).weights
    for name, size in LAYERS.items():
        magnitude = start[name].abs()
        assert int((~state.masks[name]).sum()) == size // 2
        assert magnitude[~state.masks[name]].max() <= magnitude[state.masks[name]].min()


def test_without_recovery_nothing_is_trained() -> None:
    result = walk(weights(0.5), "none", when="init")
    assert (result.last.measurement.epochs, result.last.measurement.train_flops) == (0, 0)
    start = stages.initial(make_context(dense_config(MLP), digits())).weights
    for name, mask in result.last.state.masks.items():
        assert torch.equal(result.last.state.weights[name], torch.where(mask, start[name], 0.0))


# ---- rounds


@pytest.mark.parametrize("recover", ["none", "finetune(epochs=1)", "rewind", "lr_rewind", "reinit"])
def test_three_rounds_are_measured_and_geometric(recover: str) -> None:
    result = walk(weights(0.875, "iterative(rounds=3)"), recover)
    assert [measured.measurement.sparsity for measured in result.rounds] == [0.5, 0.75, 0.875]
    a_round = {"none": 0, "finetune(epochs=1)": 1}.get(recover, EPOCHS)
    assert [m.measurement.epochs for m in result.rounds] == [EPOCHS + n * a_round for n in (1, 2, 3)]
    for earlier, later in pairwise(result.rounds):
        for name, mask in later.state.masks.items():
            assert not (mask & ~earlier.state.masks[name]).any()


@pytest.mark.parametrize("granularity", ["unit", "channel"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rounds_of_units(granularity: str, scope: str) -> None:
    prune = Prune("l2", granularity, scope, "iterative(rounds=3)", 0.875)
    result = walk(prune, "finetune(epochs=1)")
    # Of 32 and 16 units, 24, 36 and 42 are gone; below 1, one of each layer stays.
    assert [measured.measurement.amount for measured in result.rounds] == [0.5, 0.75, 0.875]
    macs = [measured.measurement.macs_physical for measured in result.rounds]
    if granularity == "channel" and scope == "layer":
        assert macs == [64 * 16 + 16 * 8 + 80, 64 * 8 + 8 * 4 + 40, 64 * 4 + 4 * 2 + 20]
    assert macs == sorted(macs, reverse=True)


def test_rounds_that_are_not_whole_numbers_are_rounded_to_the_nearest() -> None:
    result = walk(weights(0.9, "iterative(rounds=4)"))
    for number, measured in enumerate(result.rounds, start=1):
        amount = 0.9 if number == 4 else 1 - 0.1 ** (number / 4)
        assert dead(measured.state.masks) == {
            name: math.floor(amount * size + 0.5) for name, size in LAYERS.items()
        }


def test_the_control_walks_along_the_masks_of_the_lottery_ticket() -> None:
    schedule = weights(0.875, "iterative(rounds=3)")
    ticket, control = (walk(schedule, recover) for recover in ("rewind", "reinit"))
    for one, other in zip(ticket.rounds, control.rounds, strict=True):
        assert equal(one.state.masks, other.state.masks)
        name = "hidden.0.weight"
        assert not torch.equal(one.state.weights[name], other.state.weights[name])


def test_a_preparation_comes_once_before_the_rounds() -> None:
    result = walk(weights(0.75, "iterative(rounds=2)"), "finetune(epochs=1)", prepare="group_lasso(epochs=3)")
    assert [measured.measurement.epochs for measured in result.rounds] == [EPOCHS + 3 + 1, EPOCHS + 3 + 2]


def test_a_walk_is_the_same_again_and_another_with_another_seed() -> None:
    prune = Prune("random", "weight", "global", "iterative(rounds=2)", 0.5)
    first, again, other = (walk(prune, "finetune(epochs=1)", seed=seed).last.state for seed in (0, 0, 1))
    assert equal(first.masks, again.masks)
    assert all(torch.equal(first.weights[name], weight) for name, weight in again.weights.items())
    assert not equal(first.masks, other.masks)


# ---- controls


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("when", ["after", "init"])
def test_shuffling_keeps_the_density_of_each_layer(scope: str, when: When) -> None:
    plain, shuffled, again = (
        walk(weights(0.7, scope=scope, control=control), when=when).last.state
        for control in ("none", "shuffle", "shuffle")
    )
    assert dead(plain.masks) == dead(shuffled.masks)
    assert not any(torch.equal(mask, plain.masks[name]) for name, mask in shuffled.masks.items())
    assert equal(shuffled.masks, again.masks)
    assert not any(shuffled.weights[name][~mask].any() for name, mask in shuffled.masks.items())


def test_inverting_removes_the_largest() -> None:
    state = walk(weights(0.5, control="invert")).last.state
    for name, mask in state.masks.items():
        magnitude = dense(MLP).last.state.weights[name].abs()
        assert int((~mask).sum()) == LAYERS[name] // 2
        assert magnitude[~mask].min() >= magnitude[mask].max()


@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_inverting_removes_the_largest_units(granularity: str) -> None:
    plain, inverted = (
        walk(Prune("l2", granularity, "layer", "one_shot", 0.5, control=control)).last.state.masks
        for control in ("none", "invert")
    )
    # Half of the units each: what one removes the other keeps.
    rows = [masks["hidden.0.weight"].any(1) for masks in (plain, inverted)]
    assert torch.equal(rows[0], ~rows[1])


def test_controls_cost_nothing_more() -> None:
    costs = {
        control: walk(weights(0.5, control=control), "finetune(epochs=1)").last.measurement.train_flops
        for control in ("none", "shuffle", "invert")
    }
    assert len(set(costs.values())) == 1


# ---- collapse


def test_a_collapse_is_noted_with_its_round_and_layers() -> None:
    prune = Prune("magnitude", "weight", "layer", "cubic(rounds=2)", 1.0, protect=("hidden.0", "output"))
    first, second = walk(prune).rounds
    # amount (1 - (1 - 1/2)^3) after the first round.
    assert (first.measurement.sparsity, second.measurement.sparsity) == (0.875, 1.0)
    assert not any("no living weight" in note for note in first.notes)
    assert "round 2: no living weight in hidden.1" in second.notes
    (chance,) = (note for note in second.notes if "at chance" in note)
    assert chance == "round 2: at chance on validation images"


def test_of_many_dead_layers_three_are_named() -> None:
    notes = walk(weights(1.0), model=DEEP).last.notes
    assert "round 1: no living weight in hidden.0, hidden.1, hidden.2 and 3 more" in notes


# ---- what decides by itself how much goes


@pytest.mark.parametrize("scope", ["unit", "layer", "global"])
def test_the_pq_index_prunes_in_every_scope_and_brings_nothing_back(scope: str) -> None:
    result = walk(weights(1.0, "pq_index(rounds=4)", scope), "finetune(epochs=1)")
    sparsity = [measured.measurement.sparsity for measured in result.rounds]
    assert len(sparsity) == 4
    assert 0 < sparsity[0] < sparsity[-1] < 1
    assert sparsity == sorted(sparsity)
    for earlier, later in pairwise(result.rounds):
        for name, mask in later.state.masks.items():
            assert not (mask & ~earlier.state.masks[name]).any()
    assert not any(asked(measured.notes) for measured in result.rounds)


@pytest.mark.parametrize("scope", ["unit", "layer", "global"])
def test_the_amount_is_a_ceiling_for_the_pq_index(scope: str) -> None:
    free = walk(weights(1.0, "pq_index(rounds=3)", scope)).last
    capped = walk(weights(0.1, "pq_index(rounds=3)", scope)).last
    rows = {"hidden.0.weight": 64, "hidden.1.weight": 32, "output.weight": 16}
    most = {
        "unit": sum(target_count(0.1, width) * LAYERS[name] // width for name, width in rows.items()),
        "layer": sum(target_count(0.1, size) for size in LAYERS.values()),
        "global": target_count(0.1, 2720),
    }[scope]
    gone = sum(dead(capped.state.masks).values())
    assert sum(dead(free.state.masks).values()) > most
    assert 0 < gone <= most
    assert not asked(capped.notes)


@pytest.mark.parametrize("granularity", ["unit", "channel"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_pq_index_of_units_leaves_one_of_each_layer(granularity: str, scope: str) -> None:
    result = walk(Prune("l2", granularity, scope, "pq_index(rounds=10, eta=0.5)", 1.0))
    assert len(result.rounds) == 10
    amounts = [measured.measurement.amount for measured in result.rounds]
    assert amounts == sorted(amounts)
    for name, size in (("hidden.0", 32), ("hidden.1", 16)):
        living = int(result.last.state.masks[f"{name}.weight"].any(1).sum())
        assert 1 <= living < size
