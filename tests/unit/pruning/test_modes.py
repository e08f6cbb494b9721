"""Whoever runs a network leaves each of its modules in the mode that it was in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import models
import pruning
from orchestrator.config import Numerics
from orchestrator.data.loading import Split
from orchestrator.latency.measure import NetworkVariants, measure
from orchestrator.model_io.comparison import compare_outputs
from orchestrator.model_io.formats import export_program
from orchestrator.storage.model_files import ModelSpec, TrainingCost
from orchestrator.training.evaluation import evaluate
from orchestrator.trial.macs import profile

SHAPE = (1, 8, 8)
IMAGES = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 10


def network() -> nn.Module:
    """In training mode, but for its first batch norm, which is frozen."""
    torch.manual_seed(0)
    net = models.build("cnn(widths=[4, 6])", input_shape=SHAPE, num_classes=10)
    net.get_submodule("blocks.0.norm").eval()
    return net


def prune(net: nn.Module, **options: str) -> dict[str, Tensor]:
    return pruning.prune(net, amount=0.5, scope="layer", example_input=IMAGES[:2], **options)  # type: ignore[arg-type]


def shrink(net: nn.Module) -> nn.Module:
    return pruning.shrink(net, prune(net, criterion="l2", granularity="channel"), IMAGES[:2])


def refit(net: nn.Module) -> object:
    masks = prune(net, criterion="l2", granularity="channel")
    return pruning.refit(net, masks, pruning.trace(net, IMAGES[:2]), IMAGES, dense=net)


def export(net: nn.Module) -> object:
    spent = TrainingCost(epochs=0, train_seconds=0, train_flops=0, micro_batch=1)
    plan = ModelSpec(model="x", input_shape=SHAPE, num_classes=10, spent=spent, mask_shapes={})
    return export_program(net, plan)


RUNS: dict[str, Callable[[nn.Module], object]] = {
    "profile": lambda net: profile(net, SHAPE),
    "evaluate": lambda net: evaluate(net, Split(IMAGES, LABELS), numerics=Numerics(micro_batch=7)),
    "trace": lambda net: pruning.trace(net, IMAGES[:2]),
    "shrink": shrink,
    "refit": refit,
    "criteria": lambda net: pruning.prune(net, amount=0.5, criterion="snip", sample=(IMAGES, LABELS)),
    "latency": lambda net: measure(NetworkVariants(net, SHAPE), batch=1, seconds=0.01),
    "compare": lambda net: compare_outputs(
        net, lambda images: network_in_eval()(images), SHAPE, tolerance=1e-4
    ),
    "export": export,
}


def network_in_eval() -> nn.Module:
    return network().eval().requires_grad_(False)


@pytest.mark.parametrize("name", RUNS)
def test_every_module_keeps_its_mode_and_every_buffer_its_values(name: str) -> None:
    net = network()
    modes = {path: module.training for path, module in net.named_modules()}
    assert sorted(set(modes.values())) == [False, True]
    before = {path: tensor.clone() for path, tensor in net.state_dict().items()}
    RUNS[name](net)
    assert {path: module.training for path, module in net.named_modules()} == modes
    assert all(torch.equal(before[path], tensor) for path, tensor in net.state_dict().items())


def test_a_network_that_is_cut_keeps_the_modes_too() -> None:
    small = shrink(network())
    assert small.training
    assert not small.get_submodule("blocks.0.norm").training
    assert small.get_submodule("blocks.1.norm").training
