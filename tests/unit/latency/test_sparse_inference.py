"""Layers in CSR compute what the masked ones do, and are used where they are faster."""

from __future__ import annotations

from time import sleep

import pytest
import torch
from torch import Tensor, nn

import models
import pruning
from orchestrator.latency.measure import (
    CsrLinear,
    CsrPointwise,
    _time_layer,
    candidates,
    find_faster_layers,
    is_convertible,
    is_supported,
    layer_sparsity,
    to_csr,
    to_sparse,
)
from pruning.cutting.layer_widths import SelectedLinear

pytestmark = pytest.mark.skipif(not is_supported(), reason="this torch has no MKL: CSR is not used")
SHAPE = (1, 8, 8)


def pruned(model: str, amount: float) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = models.build(model, input_shape=SHAPE, num_classes=10)
    masks = pruning.prune(net, amount=amount, criterion="magnitude", granularity="weight", scope="layer")
    return net.eval(), masks


@torch.no_grad()
def thinned(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with about one in ten of its weights, and a row with none."""
    layer.weight.mul_(torch.rand_like(layer.weight) < 0.1)
    layer.weight[0] = 0
    return layer


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 1, 24), (2, 3, 24)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_linear_layer_without_its_zeros(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = thinned(nn.Linear(24, 11, bias=bias))
    assert isinstance(layer, nn.Linear)
    images = torch.rand(shape)
    assert torch.allclose(CsrLinear(layer)(images), layer(images), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (7, 5)])
@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_convolution_of_one_pixel_without_its_zeros(size: tuple[int, int], images: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = thinned(nn.Conv2d(12, 9, 1, bias=bias))
    assert isinstance(layer, nn.Conv2d)
    inputs = torch.rand(images, 12, *size)
    found = CsrPointwise(layer)(inputs)
    assert found.shape == (images, 9, *size)
    assert torch.allclose(found, layer(inputs), atol=1e-5)


def test_only_living_weights_are_kept() -> None:
    matrix = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])
    found = to_csr(matrix)
    assert found.values().tolist() == [2.0, 1.0, -3.0]
    assert found.crow_indices().tolist() == [0, 1, 1, 3]
    assert found.col_indices().tolist() == [1, 0, 2]
    assert found.col_indices().dtype == torch.int32


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(4, 3), True),
        (nn.Conv2d(4, 3, 1), True),
        (nn.Conv2d(4, 3, 1, padding="same"), True),
        (nn.Conv2d(4, 3, 3, padding=1), False),
        (nn.Conv2d(4, 3, 1, stride=2), False),
        (nn.Conv2d(4, 4, 1, groups=2), False),
        (nn.Conv2d(4, 3, 1, padding=1), False),
        (SelectedLinear(nn.Linear(4, 3), torch.tensor([0, 2])), False),
        (nn.BatchNorm2d(4), False),
    ],
)
def test_what_has_a_sparse_form(layer: nn.Module, expected: bool) -> None:
    assert is_convertible(layer) == expected


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("model", ["mlp(widths=[48, 32], bias=True)", "cnn(widths=[8, 16])", "slp"])
@torch.inference_mode()
def test_a_sparse_network_gives_the_masked_outputs(model: str, batch: int) -> None:
    net, masks = pruned(model, 0.9)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    layers = candidates(net, layer_sparsity(masks))
    images = torch.rand(batch, *SHAPE)
    masked, found = to_sparse(net, masks, ()), to_sparse(net, masks, layers)
    assert layers
    assert torch.allclose(found(images), masked(images), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.slow
@torch.inference_mode()
def test_a_sparse_densenet_gives_the_masked_outputs() -> None:
    net, masks = pruned("densenet121", 0.95)
    layers = candidates(net, layer_sparsity(masks))
    assert (
        len(layers) == 58 + 3 + 1
    )  # a bottleneck per dense layer, a transition per block but the last, the output
    images = torch.rand(2, *SHAPE)
    expected = to_sparse(net, masks, ())(images)
    assert torch.allclose(
        to_sparse(net, masks, layers)(images), expected, atol=1e-5 * float(expected.abs().max())
    )


def test_layers_are_tried_with_more_than_half_of_their_weights_dead() -> None:
    net, _ = pruned("cnn(widths=[8, 16])", 0.0)
    assert candidates(net, {"blocks.0.conv": 0.99, "output": 0.51}) == ("output",)
    assert candidates(net, {"output": 0.5}) == ()
    assert candidates(net, {}) == ()


def test_dead_parts_by_hand() -> None:
    masks = {"a.weight": torch.tensor([[True, False], [False, False]]), "a.bias": torch.tensor([True, False])}
    assert layer_sparsity(masks) == {"a": 0.75}


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        sleep(self.seconds)
        return x


@pytest.mark.parametrize(("own", "rival", "won"), [(0.01, 0.001, True), (0.001, 0.01, False)])
def test_a_race_is_won_by_the_faster_one(own: float, rival: float, won: bool) -> None:
    found: list[str] = []
    _time_layer(found, "layer", Slow(rival), Slow(own), (torch.zeros(1),))
    assert found == (["layer"] if won else [])


def test_nothing_is_raced_in_a_whole_network() -> None:
    net, masks = pruned("mlp(widths=[8])", 0.0)
    assert find_faster_layers(net, masks, torch.rand(1, *SHAPE)) == ()


def test_races_leave_no_hooks() -> None:
    net, masks = pruned("mlp(widths=[64, 32])", 0.99)
    found = find_faster_layers(net, masks, torch.rand(4, *SHAPE))
    assert set(found) <= {"hidden.0", "hidden.1", "output"}
    assert not any(layer._forward_pre_hooks for layer in net.modules())
