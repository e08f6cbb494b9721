"""Recoveries that train the network without its removed units: the masked training, in less time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.space.values import canonical_model
from orchestrator.training.evaluation import evaluate
from orchestrator.trial import stages, trained_network
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.distillation import distillations
from orchestrator.trial.measurement import measure
from orchestrator.trial.recovery import network_conflict, recoveries
from orchestrator.trial.run import run_trial
from orchestrator.trial.trained_network import cut_network
from pruning.cutting.layer_widths import layer_widths
from pruning.masking import alive_units, full_masks, mask_units, mask_weights, sum_by_unit

SGD = Train(epochs=3, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="linear")
ADAM = Train(epochs=3, lr=2e-3, augment="crop_flip", mixup=0.2, ema=0.7, channels_last=True)
GENTLE = replace(SGD, lr=0.01)  # at a high rate rounding errors of many layers grow from step to step
CNN, MLP, RESNET = "cnn(widths=[8, 16])", "mlp(widths=[32, 16])", "resnet(depth=8)"
VIT = "vit(dim=16, depth=1, heads=4)"
digits = cache(partial(loading.load_dataset, "digits", samples_per_class=40))
TRAINED = ("finetune", "rewind", "lr_rewind", "reinit")  # those with the option `on`


def prune_options(granularity: str = "channel", amount: float = 0.5, schedule: str = "one_shot") -> Prune:
    return Prune("l2", granularity, "layer", schedule, amount)


@cache
def dense_context(model: str, recipe: Train) -> TrialContext:
    context = make_context(DenseConfig(model, "digits", 50, 0, recipe, Numerics(micro_batch=64)), digits())
    return replace(context, dense_state=stages.dense(context))


def trial_context(model: str = CNN, prune: Prune | None = None, recipe: Train = SGD) -> TrialContext:
    context = dense_context(model, recipe)
    return replace(context, trial=TrialConfig(context.config, prune or prune_options(), "none", "x"))


def pruned(context: TrialContext) -> NetworkState:
    return stages.prune_round(context, context.trained_dense(), round=1)


def recover(context: TrialContext, state: NetworkState, text: str, round: int = 1) -> NetworkState:
    recovered: NetworkState = recoveries.get(text)(context, state, round=round)
    return recovered


def assert_equal_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- what it computes


@pytest.mark.parametrize(
    ("model", "granularity", "recipe"),
    [
        (CNN, "channel", SGD),
        (CNN, "unit", ADAM),
        (MLP, "channel", ADAM),
        ("slp", "unit", SGD),
        (RESNET, "unit", GENTLE),
        (VIT, "head", SGD),
    ],
    ids=["cnn", "cnn-units", "mlp", "slp-inputs", "resnet-units", "vit-heads"],
)
@pytest.mark.filterwarnings("ignore:not pruned")
def test_it_learns_what_the_masked_network_learns(model: str, granularity: str, recipe: Train) -> None:
    context = trial_context(model, prune_options(granularity), recipe)
    state = pruned(context)
    masked = recover(context, state, "finetune(epochs=3)")
    cut = recover(context, state, "finetune(epochs=3, on=cut)")
    for before, after in zip(masked.history, cut.history, strict=True):
        assert after.train_loss == pytest.approx(before.train_loss, rel=1e-4)
        assert after.val_loss == pytest.approx(before.val_loss, rel=1e-4)
        assert (after.train_accuracy, after.val_accuracy, after.lr) == (
            pytest.approx(before.train_accuracy, abs=0.005),
            pytest.approx(before.val_accuracy, abs=0.01),
            before.lr,
        )
    assert measure(context, cut).measurement.accuracy == measure(context, masked).measurement.accuracy
    entries = cut_network(context, cut).entries
    for name, places in entries.items():
        values = [state.weights[name].flatten()[places].double() for state in (masked, cut)]
        assert torch.allclose(*values, rtol=1e-3, atol=1e-4), name


SIGMOID = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.f = nn.Linear(8, classes)
    def forward(self, x):
        return self.f(torch.sigmoid(self.b(torch.relu(self.a(x)))).mean((2, 3)))

def net(input_shape, num_classes):
    return Net(input_shape[0], num_classes)
"""


def test_where_removed_units_do_not_give_zeros_it_trains_the_masked_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(SIGMOID)
    monkeypatch.chdir(tmp_path)
    context = trial_context(canonical_model("net.py:net"), prune_options("unit"))
    state = pruned(context)
    masked = recover(context, state, "finetune(epochs=1)")
    cut = recover(context, state, "finetune(epochs=1, on='cut')")
    assert_equal_bits(cut.weights, masked.weights)
    assert cut.train_flops == masked.train_flops


def test_what_removed_is_zero_and_the_state_is_like_any_other() -> None:
    context = trial_context()
    state = pruned(context)
    cut = recover(context, state, "finetune(epochs=1, on='cut')")
    assert_equal_bits(cut.masks, state.masks)
    assert {name: (t.shape, t.dtype) for name, t in cut.weights.items()} == {
        name: (t.shape, t.dtype) for name, t in state.weights.items()
    }
    assert list(cut.weights) == list(state.weights)
    assert all(not cut.weights[name][~mask].any() for name, mask in cut.masks.items())
    # Statistics of norms go back, too: those of dead channels are zero, those of the others have moved.
    (group, *_) = context.groups or ()
    alive = alive_units(group, cut.masks)
    norm = next(member.module for member in group.members if member.side == "norm")
    for name in ("running_mean", "running_var"):
        values = cut.weights[f"{norm}.{name}"]
        assert not values[~alive].any()
        assert not torch.equal(values[alive], state.weights[f"{norm}.{name}"][alive])
    steps = f"{norm}.num_batches_tracked"
    assert cut.weights[steps] == state.weights[steps] + len(digits().train) // 50


def test_columns_that_read_removed_units_are_zero_without_a_mask() -> None:
    context = trial_context(MLP, prune_options("unit"))
    cut = recover(context, pruned(context), "finetune(epochs=1, on='cut')")
    names = [name for name in cut.weights if name.endswith("weight")]
    dead = ~cut.masks[names[0]].any(1)
    assert dead.sum() == 16
    assert cut.masks[names[1]][:, dead].any()
    assert not cut.weights[names[1]][:, dead].any()


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_every_recovery_keeps_masks_repeats_bits_and_measures_as_cut(name: str, granularity: str) -> None:
    context = trial_context(CNN, prune_options(granularity))
    state = pruned(context)
    copies = {key: tensor.clone() for key, tensor in state.weights.items()}
    after = recover(context, state, f"{name}(on='cut')")
    assert_equal_bits(state.weights, copies)
    assert_equal_bits(after.masks, state.masks)
    assert_equal_bits(after.weights, recover(context, state, f"{name}(on='cut')").weights)
    assert after.epochs > state.epochs
    # The law, on the trained weights: whole under masks, or without what is removed.
    measured = measure(context, after)
    assert measured.cut
    whole = evaluate(context.build_module(after), digits().test, numerics=context.config.numerics)
    small = evaluate(measured.net, digits().test, numerics=context.config.numerics)
    assert torch.equal(whole.confusion, small.confusion)
    assert small.loss == pytest.approx(whole.loss, rel=1e-5)
    masked = recover(context, state, name)
    assert after.history[0].train_loss == pytest.approx(masked.history[0].train_loss, rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(recoveries) - set(TRAINED)))
def test_the_others_have_no_such_option(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option of {name} 'on'"):
        recoveries.get(f"{name}(on='cut')")


def test_another_network_than_masked_or_cut_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"finetune\(on\): 'dense' is no network to train on; give masked or"
    ):
        recoveries.get("finetune(on=dense)")


def test_single_weights_are_refused_in_one_line() -> None:
    context = trial_context(MLP, Prune("magnitude", "weight", "layer", "one_shot", 0.5))
    context = replace(context, trial=replace(context.pruned_trial, recover="finetune(on='cut')"))
    with pytest.raises(ValueError, match=r"recover finetune\(on='cut'\) trains the network without") as error:
        recover(context, pruned(context), "finetune(on='cut')")
    assert str(error.value) == network_conflict("finetune(epochs=1, lr=1.0, on='cut')", "weight")
    assert "\n" not in str(error.value)
    assert network_conflict("finetune(on='cut')", "nm(n=2, m=4)") is not None
    assert network_conflict("finetune(on='cut')", "unit") is None
    assert network_conflict("finetune(on='masked')", "weight") is None
    assert network_conflict("none", "weight") is None


# ---- what cannot be cut


def test_a_group_that_is_removed_as_a_whole_keeps_one_unit_of_zeros() -> None:
    context = trial_context()
    group, second = context.groups or ()
    net = context.view_module(context.trained_dense())
    alive = torch.zeros(group.size, dtype=torch.bool)
    masks = mask_units(group, alive, full_masks(net, (group, second)))
    weights = mask_weights(context.trained_dense().weights, masks)
    state = replace(context.trained_dense(), weights=weights, masks=masks)
    network = cut_network(context, state)
    assert layer_widths(network.net)[group.name][0] == 1
    after = recover(context, state, "finetune(epochs=1, on='cut')")
    assert not after.weights[f"{group.name}.weight"].any()
    masked = recover(context, state, "finetune(epochs=1)")
    assert after.history[0].train_loss == pytest.approx(masked.history[0].train_loss, rel=1e-4)


def test_units_that_a_sum_ties_to_living_ones_stay_masked() -> None:
    """Units of a residual network are chosen layer by layer: a sum keeps what one of its layers makes."""
    context = trial_context(RESNET, prune_options("unit"), GENTLE)
    state = pruned(context)
    network = cut_network(context, state)
    masked_rows = [name for name, mask in network.masks.items() if mask.dim() > 1 and not mask.all()]
    assert masked_rows
    parameters = sum(p.numel() for p in context.view_module(state).parameters())
    assert sum(p.numel() for p in network.net.parameters()) < parameters
    after = recover(context, state, "finetune(epochs=1, on='cut')")
    assert all(not after.weights[name][~mask].any() for name, mask in after.masks.items())


def test_where_nothing_is_removed_the_whole_network_is_trained() -> None:
    context = trial_context(CNN, prune_options(amount=0.0))
    state = pruned(context)
    masked, cut = (recover(context, state, f"finetune(epochs=1, on={on})") for on in ("masked", "cut"))
    assert_equal_bits(masked.weights, cut.weights)
    assert cut.train_flops == masked.train_flops


# ---- what it costs


def step_flops(net: nn.Module, images: int) -> int:
    with FlopCounterMode(display=False) as counter:
        batch = torch.zeros(images, 1, 8, 8)
        functional.cross_entropy(net(batch), torch.zeros(images, dtype=torch.int64)).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("model", "granularity"), [(CNN, "channel"), (MLP, "unit")])
def test_training_flops_are_those_of_the_cut_network(model: str, granularity: str) -> None:
    context = trial_context(model, prune_options(granularity))
    state = pruned(context)
    after = recover(context, state, "finetune(epochs=2, on='cut')")
    flops = step_flops(cut_network(context, state).net, 2) // 2 * 2 * len(digits().train)
    assert after.train_flops - state.train_flops == flops
    assert after.train_flops_effective - state.train_flops_effective == flops
    masked = recover(context, state, "finetune(epochs=2)")
    assert after.train_flops < masked.train_flops
    assert after.train_flops_effective <= masked.train_flops_effective


def test_a_teacher_is_dense() -> None:
    context = trial_context()
    state = pruned(context)
    alone = recover(context, state, "finetune(epochs=1, on='cut')")
    loss = distillations.get("soft_labels")(context.build_module(context.trained_dense()))
    taught_context = replace(context, loss=loss, has_teacher=True)
    taught = recover(taught_context, state, "finetune(epochs=1, on='cut')")
    forward = 2 * context.cost.total_macs * len(digits().train)
    assert taught.train_flops - alone.train_flops == forward
    assert taught.train_flops_effective - alone.train_flops_effective == forward
    masked = recover(taught_context, state, "finetune(epochs=1)")
    assert taught.history[0].train_loss == pytest.approx(masked.history[0].train_loss, rel=1e-4)
    assert taught.history[0].train_loss != alone.history[0].train_loss


# ---- round by round


def test_iterative_schedules_train_smaller_and_smaller_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 and 16 channels 75% go in two rounds: a half is left, then a half of that."""
    widths = []

    def noted(context: TrialContext, state: NetworkState) -> trained_network.TrainedNetwork:
        network = cut_network(context, state)
        widths.append([layer_widths(network.net)[group.name][0] for group in context.groups or ()])
        return network

    monkeypatch.setattr(stages, "cut_network", noted)
    context = trial_context(CNN, prune_options(amount=0.75, schedule="iterative(rounds=2)"))
    config = replace(context.pruned_trial, recover="rewind(to=1, on='cut')")

    class Store:
        def dense(self, config: DenseConfig) -> NetworkState:
            return context.trained_dense()

    cut = run_trial(config, digits(), store=Store())
    assert widths == [[4, 8], [2, 4]]
    masked = run_trial(replace(config, recover="rewind(to=1)"), digits(), store=Store())
    assert len(widths) == 2
    assert_equal_bits(cut.last.state.masks, masked.last.state.masks)
    for a, b in zip(cut.rounds, masked.rounds, strict=True):
        assert a.measurement.accuracy == b.measurement.accuracy
        assert a.measurement.macs_physical == b.measurement.macs_physical
        assert a.measurement.train_flops < b.measurement.train_flops


@pytest.mark.parametrize("criterion", ["l2", "taylor"])
@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_the_next_round_chooses_alike_in_the_whole_and_in_the_cut_network(
    criterion: str, granularity: str
) -> None:
    context = trial_context(CNN, prune_options(granularity))
    after = recover(context, pruned(context), "finetune(epochs=1, on='cut')")
    network, image = cut_network(context, after), torch.zeros(2, 1, 8, 8)
    sample = (digits().train.images[:50], digits().train.labels[:50])
    choose = partial(
        pruning.prune, criterion=criterion, granularity=granularity, scope="layer", sample=sample
    )
    whole = choose(context.build_module(after), masks=after.masks, groups=context.groups, amount=0.75)
    small = choose(network.net, amount=0.5, example_input=image)
    for name, mask in small.items():
        assert torch.equal(whole[name].flatten()[network.entries[name]].flatten(), mask.flatten()), name


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_norms_of_units_are_those_of_the_cut_network(granularity: str) -> None:
    context = trial_context(CNN, prune_options(granularity))
    after = recover(context, pruned(context), "finetune(epochs=1, on='cut')")
    small = cut_network(context, after).net
    groups = pruning.trace(small, torch.zeros(2, 1, 8, 8))
    whole_squares, squares = (
        {name: tensor.detach().double().square() for name, tensor in weights}
        for weights in (after.weights.items(), small.named_parameters())
    )
    whole_groups = pruning.trace(context.build_module(after), torch.zeros(2, 1, 8, 8))
    for group, whole_group in zip(groups, whole_groups, strict=True):
        norms = sum_by_unit(whole_group, whole_squares)[alive_units(whole_group, after.masks)]
        assert torch.allclose(sum_by_unit(group, squares), norms, rtol=1e-12)
