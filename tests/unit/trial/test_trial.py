"""The walk, on the digits: every technique with numbers by hand, the ends 0 and 1, and its notes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from trained import Empty, Trained, digits, trained

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import DivergedError
from orchestrator.space.techniques import TECHNIQUES, resolve
from orchestrator.training.evaluation import evaluate
from orchestrator.trial.context import make_context
from orchestrator.trial.measurement import MeasuredRound, measure
from orchestrator.trial.metrics import profile
from orchestrator.trial.run import TrialResult, run_dense, run_trial

MODELS = ("slp", "mlp(widths=[32, 16])", "cnn(widths=[8, 16])")
SLP, MLP, CNN = MODELS
NUMERICS = Numerics(micro_batch=4096)


def dense_config(model: str, epochs: int = 2) -> DenseConfig:
    return DenseConfig(model, "digits", 64, 0, Train(epochs=epochs), NUMERICS)


def dense(model: str) -> TrialResult:
    return trained(dense_config(model))


def walk(model: str, prune: Prune, recover: str = "none") -> TrialResult:
    return run_trial(TrialConfig(dense_config(model), prune, recover, "x"), digits(), store=Trained())


def technique(name: str, amount: float, schedule: str = "one_shot") -> Prune:
    known = resolve(name, {})
    return Prune(known.criterion, known.granularity, known.scope, schedule, amount)


def met(measured: MeasuredRound) -> tuple[str, ...]:
    """The notes but for those on networks that have collapsed."""
    return tuple(note for note in measured.notes if not note.startswith("round"))


def pruned(model: str, name: str, amount: float, recover: str = "none") -> MeasuredRound:
    return walk(model, technique(name, amount), recover).last


# ---- amounts between the ends

# Half of the prunable weights, units or channels; living weights of those that compete, and of all.
WEIGHTS = {SLP: 640, MLP: 64 * 32 + 32 * 16 + 16 * 10, CNN: 8 * 9 + 16 * 8 * 9 + 16 * 10}
REST = {SLP: 10, MLP: 0, CNN: 2 * (8 + 16) + 10}  # biases and norms
UNITS = {SLP: (320, 640), MLP: ((1024 + 256), (2048 + 512)), CNN: ((36 + 576), (72 + 1152))}
CUT = {SLP: 320, MLP: 64 * 16 + 16 * 8 + 8 * 10, CNN: 4 * 9 + 8 * 4 * 9 + 8 * 10}
# All of them: one is left of each, and it is zero.
EMPTY = {SLP: "output", MLP: "hidden.0, hidden.1", CNN: "blocks.0.conv, blocks.1.conv"}
LEAST = {SLP: 10 + 10, MLP: 64 + 1 + 10, CNN: 9 + 9 + 10 + 2 * (1 + 1) + 10}
LEAST_MACS = {SLP: 10, MLP: 64 + 1 + 10, CNN: 9 * 64 + 9 * 16 + 10}
STATISTICS = {SLP: 8, MLP: 0, CNN: 2 * (4 + 4 + 8)}  # the input's index; means, variances, batches seen
CUT_MACS = {SLP: 320, MLP: CUT[MLP], CNN: 4 * 9 * 64 + 8 * 4 * 9 * 16 + 80}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["weight", "unstructured", "random"])
def test_half_of_the_weights(model: str, name: str) -> None:
    measured = pruned(model, name, 0.5)
    found = measured.measurement
    living = WEIGHTS[model] // 2
    assert (found.sparsity, found.amount) == (0.5, 0.5)
    assert found.parameters_nonzero == living + REST[model]
    assert found.compression == pytest.approx((WEIGHTS[model] + REST[model]) / (living + REST[model]))
    assert found.parameters_physical == found.parameters_dense == WEIGHTS[model] + REST[model]
    assert found.macs_physical == found.macs_dense
    assert (measured.cut, met(measured)) == (False, ())
    assert sum(row.living for row in measured.layers) == living


@pytest.mark.parametrize("model", MODELS)
def test_half_of_the_units(model: str) -> None:
    found = pruned(model, "neuron", 0.5).measurement
    living, competing = UNITS[model]
    assert found.amount == 0.5
    assert found.sparsity_chosen == pytest.approx((competing - living) / WEIGHTS[model])
    # What reads a dead unit is dead as well, and is cut out: as small as with channels.
    assert found.sparsity == pytest.approx(1 - CUT[model] / WEIGHTS[model])
    assert found.parameters_nonzero == found.parameters_physical
    assert found.parameters_physical == CUT[model] + {SLP: 10, MLP: 0, CNN: 2 * (4 + 8) + 10}[model]
    assert found.macs_effective == found.macs_physical == CUT_MACS[model]
    assert found.macs_effective_chosen >= found.macs_effective


@pytest.mark.parametrize("model", MODELS)
def test_half_of_the_channels_are_cut_out(model: str) -> None:
    measured = pruned(model, "structured", 0.5)
    found = measured.measurement
    rest = {SLP: 10, MLP: 0, CNN: 2 * (4 + 8) + 10}[model]
    assert measured.cut
    assert found.amount == 0.5
    assert found.sparsity == pytest.approx(1 - CUT[model] / WEIGHTS[model])
    assert found.parameters_nonzero == found.parameters_physical == CUT[model] + rest
    assert found.macs_effective == found.macs_physical == CUT_MACS[model]
    assert found.bytes_physical < found.bytes_dense
    again = evaluate(measured.net, digits().test, numerics=NUMERICS)
    assert again.accuracy == found.accuracy
    assert again.loss == pytest.approx(found.loss, abs=1e-5)
    assert profile(measured.net, digits().input_shape).parameters == found.parameters_physical


@pytest.mark.parametrize("model", MODELS)
def test_recovery_keeps_the_sparsity(model: str) -> None:
    before, after = (pruned(model, "structured", 0.5, recover) for recover in ("none", "finetune(epochs=3)"))
    assert after.measurement.sparsity == before.measurement.sparsity
    assert after.measurement.macs_physical == before.measurement.macs_physical
    assert after.measurement.epochs == before.measurement.epochs + 3
    assert after.measurement.loss < before.measurement.loss


# ---- the ends


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_amount_0_is_the_dense_network_bit_for_bit(model: str, name: str) -> None:
    reference, measured = dense(model).last, pruned(model, name, 0.0)
    for tensor, weight in reference.state.weights.items():
        assert torch.equal(measured.state.weights[tensor], weight)
    a, b = reference.measurement, measured.measurement
    assert replace(b, test_seconds=0.0) == replace(a, test_seconds=0.0)
    assert (measured.cut, measured.notes) == (False, ())
    assert torch.equal(measured.confusion, reference.confusion)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_amount_1_leaves_chance(model: str, name: str) -> None:
    measured = pruned(model, name, 1.0)
    found = measured.measurement
    assert all(math.isfinite(value) for value in found.metrics("final").values())
    # The same logits for every image: one class is said of all.
    shares = torch.bincount(digits().test.labels) / len(digits().test)
    assert min(abs(float(share) - found.accuracy) for share in shares) < 1e-6
    assert int((measured.confusion.sum(0) > 0).sum()) == 1
    assert (found.sparsity, found.amount) == (1.0, 1.0)
    grouped = name in ("neuron", "structured")
    assert measured.cut is grouped
    assert met(measured) == ()
    *cut, dead, chance = measured.notes
    kind = "unit" if name == "neuron" else "channel"
    left = f"round 1: nothing is left of {EMPTY[model]}: cut out, it keeps one {kind} of zeros in each"
    assert cut == ([left] if grouped else [])
    if grouped:  # one zero in the place of each layer's units
        assert (found.macs_physical, found.parameters_physical) == (LEAST_MACS[model], LEAST[model])
        assert found.bytes_physical == 4 * LEAST[model] + STATISTICS[model]
        assert found.macs_effective == 0
        assert sum(parameter.numel() for parameter in measured.net.parameters()) == LEAST[model]
        assert profile(measured.net, (1, 8, 8)).total_macs == LEAST_MACS[model]
        weights = [weight for weight in measured.net.parameters() if weight.dim() > 1]
        assert not any(weight.any() for weight in (weights[:-1] if name == "neuron" else weights))
    else:
        assert found.macs_physical == found.macs_dense
    assert dead.startswith("round 1: no living weight in ")
    assert chance.startswith("round 1: at chance")
    if model == MLP:
        assert found.loss == pytest.approx(math.log(10), rel=1e-6)


def test_a_dense_network_at_chance_says_so() -> None:
    untrained = DenseConfig(SLP, "digits", 64, 0, Train(epochs=1, lr=1e-12), NUMERICS)
    assert run_dense(untrained, digits()).last.notes == ("round 0: at chance on validation images",)
    assert dense(MLP).last.notes == ()


@pytest.mark.parametrize("model", [MLP, CNN])
def test_one_channel_of_each_group_stays_below_1(model: str) -> None:
    found = pruned(model, "structured", 0.999).measurement
    assert found.macs_physical == {MLP: 64 + 1 + 10, CNN: 9 * 64 + 9 * 16 + 10}[model]


def test_a_protected_layer_is_whole_and_no_part_of_the_sparsity() -> None:
    prune = replace(technique("weight", 0.5), protect=("output",))
    rows = {row.layer: row for row in walk(MLP, prune).last.layers}
    assert [row.sparsity for row in rows.values()] == [0.5, 0.5, 0.0]
    assert walk(MLP, prune).last.measurement.sparsity == 0.5


# ---- from a store or computed


@pytest.mark.parametrize("recover", ["none", "finetune(epochs=1)"])
def test_a_stored_dense_network_and_one_just_computed_give_the_same_bits(recover: str) -> None:
    config = TrialConfig(dense_config(CNN), technique("random", 0.5), recover, "random")
    stored = walk(CNN, config.prune, recover)
    computed = run_trial(config, digits(), store=Empty())
    for name, weight in stored.last.state.weights.items():
        assert torch.equal(weight, computed.last.state.weights[name])
    a, b = stored.last.measurement, computed.last.measurement
    same = {"train_seconds": 0.0, "test_seconds": 0.0}
    assert replace(a, **same) == replace(b, **same)  # type: ignore[arg-type]
    assert stored.ipa.accuracy == dense(CNN).ipa.accuracy


# ---- rounds


def test_rounds_add_up() -> None:
    prune = technique("unstructured", 0.875, "iterative(rounds=3)")
    result = walk(MLP, prune, "finetune(epochs=2)")
    assert len(result.rounds) == 3
    # Half of the survivors at every round: 2720 -> 1360 -> 680 -> 340.
    assert [round.measurement.sparsity for round in result.rounds] == [0.5, 0.75, 0.875]
    assert [round.measurement.epochs for round in result.rounds] == [4, 6, 8]
    assert [len(round.state.history) for round in result.rounds] == [2, 2, 2]
    flops = [round.measurement.train_flops for round in result.rounds]
    assert [value * 2 for value in flops] == [result.ipa.train_flops * epochs for epochs in (4, 6, 8)]
    for earlier, later in zip(result.rounds, result.rounds[1:], strict=False):
        for name, mask in later.state.masks.items():
            assert not (mask & ~earlier.state.masks[name]).any()  # nothing comes back


# ---- notes and failures


@pytest.mark.parametrize("name", [*TECHNIQUES, "erk"])
@pytest.mark.parametrize("amount", [0.1, 0.333, 0.9])
def test_no_note_where_the_amount_was_met(name: str, amount: float) -> None:
    erk = Prune("magnitude", "weight", "erk", "one_shot", amount)
    assert met(walk(MLP, erk if name == "erk" else technique(name, amount)).last) == ()


def test_a_note_where_a_row_is_rounded_is_not_made() -> None:
    # 10% of rows of 64, 32 and 16 weights: 6, 3 and 2 go.
    assert met(walk(MLP, Prune("magnitude", "weight", "unit", "one_shot", 0.1)).last) == ()


def test_the_amount_of_an_adaptive_schedule_is_a_ceiling_and_no_wish() -> None:
    prune = Prune("magnitude", "weight", "layer", "threshold(value=0.01, unit='std')", 0.9)
    measured = walk(MLP, prune).last
    assert 0 < measured.measurement.amount < 0.1
    assert measured.notes == ()


def test_a_note_where_one_unit_of_each_layer_had_to_stay() -> None:
    prune = Prune("l2", "unit", "global", "one_shot", 0.99)
    measured = walk("mlp(widths=[8, 8, 8, 8, 8, 8, 8, 8])", prune).last
    # 64 units, 63 were to go, 8 stay.
    assert measured.measurement.amount == 1 - 8 / 64
    assert met(measured) == ("asked for 0.99, achieved: the network 0.8750",)


def test_a_network_that_gives_no_number_has_diverged() -> None:
    context = make_context(dense_config(MLP), digits())
    state = dense(MLP).last.state
    broken = {name: tensor * float("nan") for name, tensor in state.weights.items()}
    with pytest.raises(DivergedError, match="not finite"):
        measure(context, replace(state, weights=broken))
