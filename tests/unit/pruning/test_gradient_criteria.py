"""taylor, snip, fisher, grasp and synflow against numbers worked by hand and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pruning
from pruning import gradient_criteria
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Masks, full_masks, prunable_layers


def scores(
    net: nn.Module, criterion: str, sample: tuple[Tensor, Tensor], masks: Masks | None = None
) -> dict[str, Tensor]:
    masks = masks or full_masks(net, None)
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items()}
    found: Any = criteria.get(criterion)(ScoringContext(net, weights, masks, torch.Generator(), sample))
    return dict(found)


def linear() -> tuple[nn.Module, tuple[Tensor, Tensor], float]:
    """Logits W x = (0, 2) for x = (1, 2), label 0: g = s (-1, 1)^T x^T, s = e^2 / (1 + e^2)."""
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[2.0, -1.0], [1.0, 0.5]])
    return nn.Sequential(net), (torch.tensor([[1.0, 2.0]]), torch.tensor([0])), 1 / (1 + math.exp(-2.0))


def small(bias: bool = True) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double()
    return net, (torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3)


def test_first_order_scores_by_hand() -> None:
    net, sample, s = linear()
    change = s * torch.tensor([[-2.0, 2.0], [1.0, 1.0]], dtype=torch.float64)  # w g
    torch.testing.assert_close(scores(net, "snip", sample)["0.weight"], change.abs())
    torch.testing.assert_close(scores(net, "taylor", sample)["0.weight"], change.square())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 200.0])
def test_grasp_by_hand(temperature: float) -> None:
    """Logits z = W x / T with p = (1 - s, s); H g = 2 (1 - s) s^2 |x|^2 / T^3 (-1, 1)^T x^T, |x|^2 = 5."""
    net, sample, _ = linear()
    s = 1 / (1 + math.exp(-2.0 / temperature))
    products = torch.tensor([[-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    products *= 10 * (1 - s) * s**2 / temperature**3
    expected = net[0].weight.detach().double() * products
    got = scores(net, f"grasp(temperature={temperature})", sample)["0.weight"]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)


def test_grasp_removes_the_highest_of_minus_w_h_g() -> None:
    """w H g is (-2, 2; 1, 1) times a positive number: the first weight is the one that leaves."""
    net, sample, _ = linear()
    masks = pruning.prune(net, amount=0.25, criterion="grasp", sample=sample)
    assert masks["0.weight"].tolist() == [[False, True], [True, True]]


def test_grasp_is_what_a_smaller_weight_does_to_the_gradients_norm() -> None:
    """Finite differences: shrinking w by a part h changes |g|^2 / 2 by -h w (H g)."""
    net, (x, y) = small()
    got = scores(net, "grasp(temperature=1.0)", (x, y))

    def half_norm() -> float:
        loss = functional.cross_entropy(net(x), y)
        gradients = torch.autograd.grad(loss, [net[0].weight, net[2].weight])
        return sum(float(g.square().sum()) for g in gradients) / 2

    for name, index in (("0.weight", (0, 0)), ("0.weight", (3, 2)), ("2.weight", (1, 4))):
        weight, part = dict(net.named_parameters())[name].data, 1e-4
        value = weight[index].item()
        weight[index] = value * (1 + part)
        above = half_norm()
        weight[index] = value * (1 - part)
        below = half_norm()
        weight[index] = value
        assert (above - below) / (2 * part) == pytest.approx(float(got[name][index]), rel=1e-5)


def test_snip_is_the_slope_along_a_weights_own_mask() -> None:
    net, (x, y) = small()
    got = scores(net, "snip", (x, y))["2.weight"]
    weight, part = net[2].weight.data, 1e-5
    value = weight[2, 3].item()
    losses = []
    for gate in (1 + part, 1 - part):
        weight[2, 3] = value * gate
        losses.append(functional.cross_entropy(net(x), y).item())
    assert abs(losses[0] - losses[1]) / (2 * part) == pytest.approx(float(got[2, 3]), rel=1e-6)


def per_image_gradients(net: nn.Module, sample: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    """The gradient of one image's cross-entropy, image by image: a plain loop."""
    result = []
    for image, label in zip(*sample, strict=True):
        net.zero_grad()
        functional.cross_entropy(net(image[None]), label[None]).backward()
        result.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    return result


def test_fisher_by_hand() -> None:
    """Logits (0, 2) of both images: g = s (-1, 1)^T x^T for label 0, (1 - s) (1, -1)^T x^T for label 1."""
    net, (x, _), s = linear()
    sample = (x.expand(2, 2), torch.tensor([0, 1]))
    information = torch.tensor([[1.0, 4.0], [1.0, 4.0]], dtype=torch.float64) * (s**2 + (1 - s) ** 2) / 2
    expected = information * net[0].weight.detach().double().square() / 2
    torch.testing.assert_close(scores(net, "fisher", sample)["0.weight"], expected)


def test_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean() -> None:
    net, sample = small()
    got = scores(net, "fisher", sample)
    gradients = per_image_gradients(net, sample)
    for name, score in got.items():
        weight = net.get_parameter(name).detach()
        squares = sum(g[name].square() for g in gradients) / len(gradients)
        torch.testing.assert_close(score, squares * weight.square() / 2, rtol=1e-9, atol=0)
        mean = sum(g[name] for g in gradients) / len(gradients)
        assert ((mean * weight).square() / 2 <= score).all()  # Jensen
        assert not torch.allclose((mean * weight).square() / 2, score)


def test_fisher_of_one_image_is_half_of_taylor() -> None:
    net, (x, y) = small()
    one = (x[:1], y[:1])
    for name, score in scores(net, "taylor", one).items():
        torch.testing.assert_close(scores(net, "fisher", one)[name], score / 2, rtol=1e-9, atol=0)


def test_fisher_is_the_curvature_where_the_network_has_learned_the_labels_distribution() -> None:
    """Labels drawn as the network predicts: then F is the Hessian's diagonal, of a linear network exactly.

    Here every image comes ten times, with labels in the ratio of its probabilities (0.2, 0.3, 0.5).
    """
    net = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    net[0].weight.data = (
        torch.tensor([[0.2, 0.3, 0.5]]).log().double().T @ torch.tensor([[0.5, 0.5]]).double()
    )
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64).expand(10, 2)
    y = torch.tensor([0] * 2 + [1] * 3 + [2] * 5)

    def loss(flat: Tensor) -> Tensor:
        return functional.cross_entropy(x @ flat.reshape(3, 2).T, y)

    weight = net[0].weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight.flatten()).diagonal().reshape(3, 2)
    expected = hessian * weight.square() / 2
    torch.testing.assert_close(scores(net, "fisher", (x, y))["0.weight"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "grasp"])
def test_scores_do_not_depend_on_how_the_sample_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, sample = small()
    cut = scores(net, name, sample)
    monkeypatch.setattr(gradient_criteria, "CHUNK_SIZE", 1000)
    for key, whole in scores(net, name, sample).items():
        torch.testing.assert_close(cut[key], whole, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "grasp", "synflow"])
def test_scores_are_those_of_the_masked_network(name: str) -> None:
    net, sample = small()
    masks = full_masks(net, None)
    masks["0.weight"][1:4] = False
    got = scores(net, name, sample, masks)
    pruning.apply_masks(net, masks)
    for key, expected in scores(net, name, sample).items():
        torch.testing.assert_close(got[key], expected)
    assert not got["0.weight"][1:4].any()


def test_synflow_by_hand() -> None:
    """|W1| = (1 2; 0 3), |W2| = (2 1): ones flow to (3, 3), so R = 9, w dR/dw = |w| * out * in."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    net[0].weight.data = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    net[2].weight.data = torch.tensor([[-2.0, 1.0]])
    got = scores(net, "synflow", (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
    assert got["0.weight"].tolist() == [[2.0, 4.0], [0.0, 3.0]]
    assert got["2.weight"].tolist() == [[6.0, 3.0]]


def conv() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    net[1].weight.data.uniform_(-1, 1)
    net[1].bias.data.normal_()
    net[1].running_mean.normal_()
    return net


@pytest.mark.parametrize("dead", [0.0, 0.6])
def test_synflow_is_conserved_by_every_layer(dead: float) -> None:
    net = conv()
    masks = {
        name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) >= dead
        for name, mask in full_masks(net, None).items()
    }
    sums = [
        float(score.sum())
        for score in scores(
            net, "synflow", (torch.zeros(1, 2, 8, 8), torch.zeros(1, dtype=torch.int64)), masks
        ).values()
    ]
    assert len(sums) == 3
    assert sums[0] > 0
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-12)


def test_synflow_keeps_every_layer_alive_where_one_pass_does_not() -> None:
    """40 of 6240 weights are left, and the middle layer is a thousand times smaller than the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4))
    net[2].weight.data *= 1e-3
    sample = (torch.zeros(1, 40), torch.zeros(1, dtype=torch.int64))
    amount = 1 - 40 / 6240
    for criterion, collapsed in (("magnitude", True), ("synflow(rounds=1)", True), ("synflow", False)):
        masks = pruning.prune(net, amount=amount, criterion=criterion, sample=sample)
        left = [int(masks[f"{name}.weight"].sum()) for name in prunable_layers(net)]
        assert sum(left) == 40
        assert (min(left) == 0) == collapsed, (criterion, left)


def test_synflow_passes_are_those_of_a_loop_by_hand() -> None:
    """Score, keep the best density^(k / n), mask, again: with a plain sort over all layers."""
    net = conv()
    sample = (torch.zeros(1, 2, 8, 8), torch.zeros(1, dtype=torch.int64))
    masks = pruning.prune(net, amount=0.8, criterion="synflow(rounds=5)", sample=sample)
    alive, total = full_masks(net, None), sum(mask.numel() for mask in full_masks(net, None).values())
    left = total - int(0.8 * total + 0.5)
    for k in range(1, 6):
        flat = torch.cat([s.flatten() for s in scores(net, "synflow", sample, alive).values()])
        flat[~torch.cat([mask.flatten() for mask in alive.values()])] = -1.0
        keep = int(total * (left / total) ** (k / 5) + 0.5)
        kept = torch.zeros(total, dtype=torch.bool)
        kept[flat.argsort(descending=True)[:keep]] = True
        parts = kept.split([mask.numel() for mask in alive.values()])
        alive = {name: part.reshape(alive[name].shape) for name, part in zip(alive, parts, strict=True)}
    assert all(torch.equal(masks[name], alive[name]) for name in alive)


@pytest.mark.parametrize(("bent", "slope"), [(nn.ReLU6, 1.0), (nn.GELU, 0.5), (nn.SiLU, 0.5), (nn.Tanh, 1.0)])
def test_synflow_where_an_activation_bends_is_that_of_its_slope(bent: type[nn.Module], slope: float) -> None:
    """Of an image of ones, ReLU6 passes no gradient on in a network whose flow is above 6."""

    def network(activation: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 40), activation, nn.Linear(40, 40), activation, nn.Linear(40, 3))
        net[0].weight.data *= 10  # a flow above 6
        return net

    sample = (torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))
    got, straight = (scores(network(a), "synflow", sample) for a in (bent(), nn.ReLU()))
    for name, score in got.items():
        expected = gradient_criteria.DARK * slope**2 * straight[name]
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=0.0)
    masks = [
        pruning.prune(network(a), amount=0.5, criterion="synflow(rounds=3)", sample=sample)
        for a in (bent(), nn.ReLU())
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.Softmax(1)])
def test_synflow_needs_a_flow(norm: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 3))
    sample = (torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(
        ValueError, match="'synflow' needs a network that passes a flow on, and Sequential does not"
    ):
        pruning.prune(net, amount=0.5, criterion="synflow", sample=sample)


class Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.output = (nn.Linear(6, 6) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(6), 2) @ v
        return self.output(mixed.mean(1))


def test_grasp_of_fused_attention_is_that_of_its_definition() -> None:
    sample = (torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 6)
    fused, plain = (scores(Attention(fused=fused), "grasp", sample) for fused in (True, False))
    for name, score in plain.items():
        assert score.abs().max() > 0
        torch.testing.assert_close(fused[name], score, rtol=1e-6, atol=1e-9 * float(score.abs().max()))


def test_synflow_survives_what_overflows_float32() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(30, 30) for _ in range(40)])
    for layer in net:
        layer.weight.data.fill_(1.0)
    got = scores(net, "synflow", (torch.zeros(1, 30), torch.zeros(1, dtype=torch.int64)))
    # R = 30^41; every one of the 900 weights of a layer carries an equal share.
    torch.testing.assert_close(got["7.weight"], torch.full((30, 30), 30.0**41 / 900, dtype=torch.float64))


def test_an_overflow_is_an_error_and_no_mask() -> None:
    net = nn.Sequential(*[nn.Linear(30, 30) for _ in range(250)])
    for layer in net:
        layer.weight.data.fill_(1.0)
    with pytest.raises(ValueError, match=r"'synflow' gives scores of '0.weight' that are not finite"):
        pruning.prune(
            net,
            amount=0.5,
            criterion="synflow",
            sample=(torch.zeros(1, 30), torch.zeros(1, dtype=torch.int64)),
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("grasp(temperature=0.0)", r"grasp\(temperature\) is 0.0; it must be in \(0, inf\)"),
        ("synflow(rounds=0)", r"synflow\(rounds\) is 0; it must be in \[1, 10000\]"),
        ("snipp", "did you mean snip"),
    ],
)
def test_bad_values_name_the_parameter_and_its_range(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.get(spec)
