"""`wanda` by hand and against the definition as a plain loop, for every kind of layer."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pruning
from pruning import activation_criteria
from pruning.activation_criteria import squares_by_weight
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Masks, full_masks, prunable_layers

LABELS = torch.zeros(1, dtype=torch.int64)


def scores(net: nn.Module, images: Tensor, masks: Masks | None = None) -> dict[str, Tensor]:
    masks = masks or full_masks(net, None)
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items()}
    context = ScoringContext(net, weights, masks, torch.Generator(), (images, LABELS))
    result: Any = criteria.get("wanda")(context)
    return dict(result)


def definition(weight: Tensor, features: Tensor) -> Tensor:
    """S_ij = |W_ij| |X_j|_2, with X [rows, in] what the layer reads: the paper's words."""
    result = torch.zeros_like(weight, dtype=torch.float64)
    for i, j in product(range(weight.shape[0]), range(weight.shape[1])):
        norm = math.sqrt(sum(float(row[j]) ** 2 for row in features))
        result[i, j] = abs(float(weight[i, j])) * norm
    return result


def patches(features: Tensor, layer: nn.Conv2d) -> Tensor:
    """What a convolution reads of every position, [rows, in x height x width]."""
    options = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return functional.unfold(features, *options).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Norms of the two features over two images: |(3, 4)| = 5 and |(0, 1)| = 1."""
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].weight.data = torch.tensor([[1.0, -4.0], [-0.5, 6.0]])
    images = torch.tensor([[3.0, 0.0], [4.0, -1.0]])
    assert scores(net, images)["0.weight"].tolist() == [[5.0, 4.0], [2.5, 6.0]]
    sample = (images, torch.tensor([0, 1]))
    masks = pruning.prune(net, amount=0.5, criterion="wanda", scope="unit", sample=sample)
    assert masks["0.weight"].tolist() == [[True, False], [False, True]]
    by_size = pruning.prune(net, amount=0.5, criterion="magnitude", scope="unit")
    assert by_size["0.weight"].tolist() == [[False, True], [False, True]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 2, dilation=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    net[1].running_mean.normal_()
    return net


IMAGES = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_is_the_definition_for_linear_layers_and_convolutions() -> None:
    """20 images, and so two chunks; the network is in training mode, and scored in eval mode."""
    net = network()
    got = scores(net, IMAGES)
    assert net.training
    net.double().eval()
    reads = IMAGES.double()
    for index, layer in enumerate(net):
        if isinstance(layer, nn.Conv2d):
            expected = definition(layer.weight.detach().flatten(1), patches(reads, layer))
        elif isinstance(layer, nn.Linear):
            expected = definition(layer.weight.detach(), reads)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            score = got[f"{index}.weight"].flatten(1)
            torch.testing.assert_close(score, expected, rtol=1e-12, atol=0)
        reads = layer(reads.clone()).detach()


LAYERS = {
    "linear": (nn.Linear(3, 4), (5, 3)),
    "linear over positions": (nn.Linear(3, 2), (2, 4, 3)),
    "without bias": (nn.Linear(3, 4, bias=False), (5, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, stride=2), (2, 3, 7, 7)),
    "reflected": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    "circular": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 6)),
    "same": (nn.Conv2d(2, 2, 4, padding="same", dilation=2), (1, 2, 6, 6)),
    "one dimension": (nn.Conv1d(2, 3, 3, stride=2), (2, 2, 9)),
    "three dimensions": (nn.Conv3d(2, 2, 2, padding=1), (1, 2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 2, 4, 4)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2, padding=1), (2, 4, 5)),
    "transposed, three dimensions": (nn.ConvTranspose3d(2, 2, 2, padding=1), (1, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_is_what_one_weight_alone_passes_on(name: str) -> None:
    """With a single weight of 1 every output is the one value that this weight multiplies, or 0."""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer = layer.double()
    features = torch.randn(shape, dtype=torch.float64)
    got = squares_by_weight(name, layer, features.square(), (), {})
    assert got.shape == layer.weight.shape
    alone = {key: torch.zeros_like(value) for key, value in layer.named_parameters()}
    for place in range(layer.weight.numel()):
        alone["weight"].zero_().view(-1)[place] = 1.0
        outputs = torch.func.functional_call(layer, alone, (features,))
        assert float(got.flatten()[place]) == pytest.approx(float(outputs.square().sum()), rel=1e-12)


def test_the_masked_network_is_scored() -> None:
    net = network()
    masks = full_masks(net, None)
    masks["0.weight"][1:3] = False
    got = scores(net, IMAGES, masks)
    pruning.apply_masks(net, masks)
    for name, expected in scores(net, IMAGES).items():
        torch.testing.assert_close(got[name], expected)
    assert not got["0.weight"][1:3].any()


def test_scores_do_not_depend_on_how_the_sample_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = scores(network(), IMAGES)
    monkeypatch.setattr(activation_criteria, "CHUNK_SIZE", 1000)
    for name, whole in scores(network(), IMAGES).items():
        torch.testing.assert_close(cut[name], whole, rtol=1e-12, atol=0)


def test_layers_that_share_a_weight_and_a_layer_that_runs_twice_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(input=self.one(self.one(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, images = Twice(), torch.randn(4, 3)
    weight, x = net.one.weight.detach().double(), images.double()
    reads = torch.cat([x, x @ weight.T, x @ weight.T @ weight.T])
    got = scores(net, images)
    assert list(got) == ["one.weight"]
    torch.testing.assert_close(got["one.weight"], definition(weight, reads), rtol=1e-10, atol=0)


def test_a_layer_of_torchs_transformer_is_seen_in_eval_mode_too() -> None:
    """Without gradients its fast path would run past `linear1`, and no input be seen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2))
    masks = full_masks(net, None, protect=["0.self_attn.out_proj"])
    got = scores(net, torch.randn(3, 3, 4), masks)
    assert {"0.linear1.weight", "0.linear2.weight", "2.weight"} <= set(got)
    assert all(score.all() for score in got.values())


def test_what_is_not_called_as_a_layer_is_refused_by_name() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"'0.self_attn.out_proj' is not called as a layer: protect it"):
        scores(net, torch.randn(3, 3, 4))


def test_a_layer_that_changes_its_weight_is_refused_by_name() -> None:
    class Standardized(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            centred = self.weight - self.weight.mean(1, keepdim=True)
            return functional.linear(input, centred / centred.norm(), self.bias)

    torch.manual_seed(0)
    net = nn.Sequential(Standardized(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"and '0' \(Standardized\) does not: protect it"):
        scores(net, torch.randn(3, 3))
    assert list(prunable_layers(net)) == ["0", "2"]


def test_overflow_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with pytest.raises(ValueError, match=r"'wanda' gives scores of '0.weight' that are not finite"):
        scores(net, torch.full((1, 2), 1e200, dtype=torch.float64))


TRANSPOSED = {
    "plain": nn.ConvTranspose2d(6, 4, 3, padding=1),
    "grouped": nn.ConvTranspose2d(6, 4, 3, padding=1, groups=2),
    "one dimension": nn.ConvTranspose1d(6, 4, 2),
}


@pytest.mark.parametrize("criterion", ["wanda", "magnitude"])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_weights_of_a_transposed_convolution_compete_within_their_output(name: str, criterion: str) -> None:
    """Its weight is [in, out of a group, ...]: an output reads a column of the inputs of its group."""
    layer = TRANSPOSED[name]
    images = torch.randn(4, 6, *[5] * len(layer.kernel_size), generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(layer)
    masks = pruning.prune(
        net, amount=0.25, criterion=criterion, scope="unit", sample=(images, LABELS.expand(4))
    )
    score = scores(net, images)["0.weight"] if criterion == "wanda" else layer.weight.detach().abs()
    outs, ins = 4 // layer.groups, 6 // layer.groups
    for output in range(4):
        inputs = slice(output // outs * ins, (output // outs + 1) * ins)
        row, mask = (t[inputs, output % outs].flatten() for t in (score, masks["0.weight"]))
        gone = int(0.25 * len(row) + 0.5)
        assert int((~mask).sum()) == gone
        assert set((~mask).nonzero().flatten().tolist()) == set(row.argsort()[:gone].tolist())


def test_blocks_of_a_transposed_convolution_are_those_of_its_outputs() -> None:
    layer = nn.ConvTranspose2d(8, 3, 1)
    masks = pruning.prune(nn.Sequential(layer), amount=0.5, granularity="nm")
    # Four inputs of an output are a block.
    assert (masks["0.weight"].flatten(1).T.reshape(3, 2, 4).sum(2) == 2).all()
