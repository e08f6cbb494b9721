"""Costs by hand, and against torch's own FLOP counter."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from traced import channel_groups

import models
import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.training import loop
from orchestrator.training.evaluation import Evaluation, evaluate
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.metrics import (
    ClassRow,
    Measurement,
    class_metrics,
    class_rows,
    compressed_bytes,
    dense_bytes,
    effective_macs,
    layer_rows,
    nonzero_parameters,
    profile,
    remaining_weights,
    sparse_bytes,
    sparse_form,
    train_flops,
    worst,
)
from orchestrator.trial.recovery import epochs_per_round
from orchestrator.trial.run import run_trial

SMALL = (1, 8, 8)
NETWORKS = [
    ("slp", (1, 28, 28)),
    ("mlp(widths=[32, 16], bias=True)", SMALL),
    ("cnn(widths=[8, 16])", SMALL),
    ("cnn(widths=[8, 16, 4])", (3, 12, 10)),
    pytest.param("densenet121", (3, 32, 32), marks=[pytest.mark.slow, pytest.mark.long]),
]
Shape = tuple[int, int, int]


def network(name: str, shape: Shape = SMALL) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=10)


def test_macs_by_hand() -> None:
    linear = profile(network("slp", (1, 28, 28)), (1, 28, 28))
    assert (dict(linear.macs), linear.parameters) == ({"output": 7840}, 7850)
    cnn = profile(network("cnn(widths=[8, 16])"), SMALL)
    assert cnn.macs == {"blocks.0.conv": 8 * 9 * 64, "blocks.1.conv": 16 * 8 * 9 * 16, "output": 160}
    assert cnn.total_macs == 4608 + 18432 + 160
    assert cnn.parameters == 72 + 16 + 1152 + 32 + 170
    assert cnn.other_ops["batch_norm"] > 0
    assert cnn.unsupported["aten::max_pool2d"] == 2


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_macs_are_half_of_torchs_flops(name: str, shape: Shape) -> None:
    net = network(name, shape).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    assert 2 * profile(net, shape).total_macs == counter.get_total_flops()


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_training_flops_are_torchs(name: str, shape: Shape) -> None:
    net = network(name, shape)
    cost = profile(net, shape)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(3, *shape)).sum().backward()
    assert train_flops(cost, 3) == counter.get_total_flops()


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_effective_macs_of_channels_are_those_of_the_cut_network(
    name: str, shape: Shape, amount: float
) -> None:
    net, images = network(name, shape), torch.rand(2, *shape)
    groups = channel_groups(name, shape)
    masks = pruning.prune(
        net, amount=amount, criterion="l2", granularity="channel", scope="layer", groups=groups
    )
    pruning.apply_masks(net, masks)
    small = profile(pruning.shrink(net, masks, images, groups=groups), shape)
    dense = profile(net, shape)
    assert effective_macs(dense, masks) == small.total_macs
    assert (small.total_macs < dense.total_macs) == (amount > 0)


@pytest.mark.parametrize("training", [True, False])
def test_profile_leaves_the_mode_and_the_statistics(training: bool) -> None:
    net = network("cnn(widths=[8])").train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    profile(net, SMALL)
    assert all(module.training == training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_living_parameters_are_told_by_masks_alone() -> None:
    net = network("slp")
    nn.init.zeros_(net.get_parameter("output.weight"))
    cost = profile(net, SMALL)
    mask = torch.ones(10, 64, dtype=torch.bool)
    mask[:3] = False
    assert nonzero_parameters(cost, {}) == 650
    assert nonzero_parameters(cost, {"output.weight": mask}) == 650 - 3 * 64
    assert effective_macs(cost, {"output.weight": mask}) == 7 * 64


def test_bytes_by_hand() -> None:
    net = network("slp")
    half = torch.arange(640).reshape(10, 64) % 2 == 0
    assert dense_bytes(net) == (640 + 10) * 4
    assert sparse_bytes(net, {"output.weight": half}) == (320 + 10) * 4 + 640 // 8
    assert sparse_bytes(net, {"output.weight": torch.ones_like(half)}) == dense_bytes(net)
    odd = network("mlp(widths=[3])", (1, 1, 3))  # 9 and 30 weights: 2 bytes of bits, and no mask
    one = torch.ones(3, 3, dtype=torch.bool)
    one[0, 0] = False
    assert sparse_bytes(odd, {"hidden.0.weight": one}) == (8 + 30) * 4 + 2


def test_dense_bytes_are_those_of_a_safetensors_file(tmp_path: Path) -> None:
    net = network("cnn(widths=[8])")
    save_file(net.state_dict(), tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    assert dense_bytes(net) == len(content) - 8 - int.from_bytes(content[:8], "little")


def test_layer_rows_by_hand() -> None:
    net = network("cnn(widths=[8])")
    mask = torch.ones(8, 1, 3, 3, dtype=torch.bool)
    mask[:2] = False
    cost, masks = profile(net, SMALL), {"blocks.0.conv.weight": mask}
    first, last = layer_rows(net, cost, remaining_weights(net, cost, masks), {})
    assert (first.sparsity_chosen, last.sparsity_chosen) == (0.0, 0.0)
    assert (first.layer, first.weights, first.living, first.sparsity) == ("blocks.0.conv", 72, 54, 0.25)
    assert (first.macs_dense, first.macs_effective) == (4608, 3456)
    assert (last.layer, last.living, last.sparsity, last.macs_effective) == ("output", 80, 0.0, 80)


PRUNED = Prune("magnitude", "weight", "layer", "iterative(rounds=2)", 0.8)


@pytest.mark.parametrize(
    ("distill", "prepare"), [("none", "none"), ("soft_labels", "group_lasso(kind='filter', epochs=1)")]
)
@pytest.mark.parametrize("recover", ["finetune(epochs=1)", "rewind", "reinit", "lr_rewind(epochs=1)"])
def test_training_flops_are_all_that_torch_counts_but_for_evaluation(
    recover: str, distill: str, prepare: str
) -> None:
    """Preparations, a teacher, and every round: of a control those of its trunk, and its own last one."""
    dense = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
    images, context = loading.load_dataset("digits"), make_context(dense, loading.load_dataset("digits"))
    state = stages.dense(context)
    config = TrialConfig(dense, PRUNED, recover, "x", prepare=prepare, distill=distill)
    run_trial(config, images, store=Shelf(state))  # what is done once in a process is done now
    with FlopCounterMode(display=False) as counter:
        result = run_trial(config, images, store=Shelf(state))
    last, prepared, trained = result.last.state, prepare != "none", epochs_per_round(recover, dense.train)
    rounds = 2
    assert last.epochs == dense.train.epochs + prepared + rounds * trained
    unrecorded = trained if recover == "reinit" else 0  # its own first round leads nowhere
    phases = prepared + rounds * trained + unrecorded
    evaluated = len(images.validation) * (phases + rounds) + len(images.test) * rounds
    forward = 2 * context.cost.total_macs
    lost = train_flops(context.cost, len(images.train) * unrecorded, has_teacher=distill != "none")
    assert counter.get_total_flops() == last.train_flops - state.train_flops + lost + forward * evaluated


def test_training_seconds_leave_evaluation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(net: nn.Module, split: loading.Split, *, numerics: Numerics) -> Evaluation:
        clock[0] += 1000.0
        return evaluate(net, split, numerics=numerics)

    def tick() -> float:
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(loop, "evaluate", slow)
    monkeypatch.setattr(loop, "perf_counter", tick)
    dense = DenseConfig("slp", "digits", 64, 0, Train(epochs=3), Numerics(micro_batch=4096))
    assert stages.dense(make_context(dense, loading.load_dataset("digits"))).train_seconds == 3 * 0.5


def test_refitting_takes_training_seconds_and_no_flops() -> None:
    dense = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
    state = stages.dense(make_context(dense, loading.load_dataset("digits")))
    prune = Prune("l2", "unit", "layer", "one_shot", 0.5)
    refitted = run_trial(
        TrialConfig(dense, prune, "refit", "x"), loading.load_dataset("digits"), store=Shelf(state)
    )
    assert refitted.last.state.train_seconds > state.train_seconds
    assert refitted.last.state.train_flops == state.train_flops


class Shelf:
    """A store with one dense network."""

    def __init__(self, state: NetworkState) -> None:
        self.state = state

    def dense(self, config: DenseConfig) -> NetworkState:
        return self.state


def test_metrics_are_finite_floats_under_a_prefix() -> None:
    names = list(Measurement.__dataclass_fields__)
    found = Measurement(*range(len(names))).metrics("final")  # type: ignore[arg-type]
    assert found == {f"final/{name}": float(n) for n, name in enumerate(names)}
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


# What was forgotten, by hand.
CLASSES = ("cat", "dog", "owl", "none")
DENSE_CONFUSION = torch.tensor([[8, 2, 0, 0], [1, 9, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
PRUNED_CONFUSION = torch.tensor([[7, 3, 0, 0], [0, 10, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
CLASS_ROWS = class_rows(CLASSES, dense=DENSE_CONFUSION, pruned=PRUNED_CONFUSION)


def test_a_row_per_class_that_has_images() -> None:
    expected = (("cat", 10, 0.8, 0.7), ("dog", 10, 0.9, 1.0), ("owl", 4, 0.75, 0.25))
    assert tuple(ClassRow(*values) for values in expected) == CLASS_ROWS
    assert [row.drop for row in CLASS_ROWS] == pytest.approx([0.1, -0.1, 0.5])


def test_the_class_that_has_lost_most() -> None:
    assert worst(CLASS_ROWS).label == "owl"
    assert class_metrics(CLASS_ROWS) == {"worst_class_accuracy": 0.25, "worst_class_drop": 0.5}


def test_the_worst_class_and_the_one_that_lost_most_may_differ() -> None:
    rows = (ClassRow("hard", 10, 0.3, 0.3), ClassRow("lost", 10, 1.0, 0.6))
    assert class_metrics(rows) == {"worst_class_accuracy": 0.3, "worst_class_drop": pytest.approx(0.4)}
    assert worst(rows).label == "lost"


def test_where_every_class_has_gained_the_drop_is_below_zero() -> None:
    rows = (ClassRow("a", 10, 0.5, 0.7), ClassRow("b", 10, 0.5, 0.6))
    assert class_metrics(rows)["worst_class_drop"] == pytest.approx(-0.1)


def test_the_sparse_form_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    bias = torch.tensor([7.0])
    found = b"".join(sparse_form({"w": weight, "b": bias}, {"w": mask, "b": torch.tensor([True])}))
    living = torch.tensor([1.0, 3.0, 6.0]).numpy().tobytes()
    assert found == torch.tensor([7.0]).numpy().tobytes() + bytes([0b10100100]) + living


@pytest.mark.parametrize("amount", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("model", ["mlp(widths=[32, 16])", "cnn(widths=[8])"])
def test_what_is_compressed_has_the_sparse_size_and_comes_back(model: str, amount: float) -> None:
    torch.manual_seed(0)
    net = models.build(model, input_shape=(1, 8, 8), num_classes=10)
    masks = pruning.prune(net, amount=amount, criterion="magnitude", granularity="weight", scope="layer")
    whole = b"".join(sparse_form(net.state_dict(), masks))
    assert len(whole) == sparse_bytes(net, masks)
    size = compressed_bytes(net.state_dict(), masks)
    assert size == compressed_bytes(net.state_dict(), masks) < len(whole)
    packed = pyarrow.Codec("zstd", compression_level=3).compress(whole, asbytes=True)
    assert (len(packed), pyarrow.decompress(packed, len(whole), "zstd", asbytes=True)) == (size, whole)


def test_order_is_worth_something() -> None:
    """A mask of whole rows takes next to nothing; one of the same sparsity at random takes its entropy."""
    torch.manual_seed(0)
    weight = {"w": torch.zeros(1000, 800)}
    rows = torch.zeros(1000, 800, dtype=torch.bool)
    rows[:500] = True
    random = torch.rand(1000, 800) < 0.5
    assert compressed_bytes(weight, {"w": rows}) < 1000
    assert compressed_bytes(weight, {"w": random}) > 0.99 * 800_000 / 8
