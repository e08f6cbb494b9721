"""`movement` against sums by hand, over a plain training loop."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pruning
from pruning.accumulation import Accumulator, is_accumulated
from pruning.criteria import criteria
from pruning.masking import full_masks
from pruning.registry import parse_method

IMAGES = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(60) % 3


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))


def train(
    net: nn.Module, steps: int, *, lr: float = 0.1, images: Tensor = IMAGES
) -> tuple[Accumulator, dict[str, Tensor]]:
    """Train by plain SGD; returns the accumulator, and the sums of -w g that a loop by hand makes."""
    accumulator, optimizer = Accumulator(net, "movement"), torch.optim.SGD(net.parameters(), lr=lr)
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in net.named_parameters()}
    for step in range(steps):
        batch = torch.arange(step * 20, step * 20 + 20) % len(IMAGES)
        optimizer.zero_grad()
        functional.cross_entropy(net(images[batch]), LABELS[batch]).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            sums[name] -= parameter.detach().double() * parameter.grad.double()
        accumulator.add()
        optimizer.step()
    return accumulator, sums


def test_one_step_by_hand() -> None:
    """L = (w x - y)^2 / 2 with w = (2, -1), x = (1, 3), y = 1: the output is -1, g = -2 x, -w g = (4, -6)."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[2.0, -1.0]])
    accumulator = Accumulator(net, "movement")
    ((net(torch.tensor([[1.0, 3.0]])) - 1.0).square() / 2).sum().backward()
    accumulator.add()
    assert accumulator.sums["0.weight"].tolist() == [[4.0, -6.0]]
    accumulator.add()
    assert accumulator.sums["0.weight"].tolist() == [[8.0, -12.0]]
    masks = pruning.prune(net, amount=0.5, criterion="movement", accumulated=accumulator.sums)
    # The step moves 2 to more, and -1 towards 0.
    assert masks["0.weight"].tolist() == [[True, False]]


def test_it_is_the_definition_over_a_training() -> None:
    net = network()
    accumulator, expected = train(net, 12)
    assert list(accumulator.sums) == ["0.weight", "2.weight"]
    for name, total in accumulator.sums.items():
        assert total.dtype == torch.float64
        assert torch.equal(total, expected[name])
    masks = pruning.prune(net, amount=0.4, criterion="movement", accumulated=accumulator.sums)
    flat = torch.cat([expected[name].flatten() for name in masks])
    lowest = flat.argsort(stable=True)[: int(0.4 * len(flat) + 0.5)]
    assert torch.cat(
        [mask.flatten() for mask in masks.values()]
    ).logical_not().nonzero().flatten().tolist() == (lowest.sort().values.tolist())


def test_it_says_which_weights_have_moved_away_from_zero() -> None:
    """Of gradient descent in small steps, (w_T^2 - w_0^2) / 2 is the rate times the sum, to first order."""
    net, rate = network().double(), 1e-4
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    accumulator, _ = train(net, 30, lr=rate, images=IMAGES.double())
    for name, total in accumulator.sums.items():
        moved = (net.get_parameter(name).detach().square() - before[name].square()) / 2
        torch.testing.assert_close(rate * total, moved, rtol=0.05, atol=1e-7)


@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_a_unit_has_the_sum_over_its_weights(granularity: str) -> None:
    net = network(bias=False)
    accumulator, expected = train(net, 6)
    options = {"granularity": granularity, "example_input": IMAGES[:2], "accumulated": accumulator.sums}
    masks = pruning.prune(net, amount=0.5, criterion="movement", **options)  # type: ignore[arg-type]
    total = expected["0.weight"].sum(1)
    if granularity == "channel":
        total = total + expected["2.weight"].sum(0)
    assert (~masks["0.weight"].any(1)).nonzero().flatten().tolist() == total.argsort()[
        :3
    ].sort().values.tolist()


def test_the_state_is_a_copy_from_which_it_continues() -> None:
    net = network()
    accumulator, expected = train(net, 3)
    saved = accumulator.state_dict()
    accumulator.add()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    again = Accumulator(net, "movement")
    again.load_state_dict(saved)
    again.add()
    assert all(torch.equal(again.sums[name], total) for name, total in accumulator.sums.items())
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    again.reset()
    assert not any(total.any() for total in again.sums.values())


def test_a_weight_without_a_gradient_adds_nothing() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    functional.cross_entropy(net(IMAGES), LABELS).backward()
    accumulator = Accumulator(net, "movement")
    accumulator.add()
    assert not accumulator.sums["0.weight"].any()
    assert accumulator.sums["2.weight"].all()


@pytest.mark.parametrize("names", [["0.weight"], []])
def test_only_the_named_are_summed(names: list[str]) -> None:
    assert list(Accumulator(network(), "movement", names=names).sums) == names


@pytest.mark.parametrize(
    ("accumulated", "message"),
    [
        (None, r"'movement' sums over the steps of a training, and there was none: use it with when: during"),
        ({"0.weight": torch.zeros(6, 5)}, r"no sums of '2.weight' in the shape \(3, 6\)"),
        ({"0.weight": torch.zeros(5, 6), "2.weight": torch.zeros(3, 6)}, r"no sums of '0.weight'"),
        ({"0.weight": torch.full((6, 5), torch.nan), "2.weight": torch.zeros(3, 6)}, "contain NaN"),
    ],
)
def test_sums_that_are_missing_or_unusable_are_refused(
    accumulated: Mapping[str, Tensor] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(network(), amount=0.5, criterion="movement", accumulated=accumulated)


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(ValueError, match="criterion 'snip' sums over no steps; those that do: movement"):
        Accumulator(network(), "snip")
    with pytest.raises(ValueError, match=r"no parameter '1.weight' to sum over"):
        Accumulator(network(), "movement", names=["1.weight"])
    with pytest.raises(ValueError, match=r"of another network: none of '2.weight' fits"):
        Accumulator(network(), "movement").load_state_dict({"0.weight": torch.zeros(6, 5)})
    assert [name for name in criteria if is_accumulated(criteria.get(name))] == ["movement"]


def test_another_criterion_can_sum_over_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decorator with `accumulates` gets: here the sum of |g|."""
    monkeypatch.setattr(criteria, "_functions", dict(criteria._functions))

    @criteria.register(summary="sum of |g|", accumulates=lambda weight, gradient: gradient.abs())
    def restless(context: object) -> Mapping[str, Tensor]:
        return context.require_accumulated("restless")  # type: ignore[attr-defined,no-any-return]

    assert parse_method("restless") == ("restless", {})
    net = network()
    accumulator = Accumulator(net, "restless")
    functional.cross_entropy(net(IMAGES), LABELS).backward()
    accumulator.add()
    assert set(accumulator.sums) == set(full_masks(net, None))
    for name, total in accumulator.sums.items():
        gradient = net.get_parameter(name).grad
        assert gradient is not None
        assert torch.equal(total, gradient.double().abs())
    masks = pruning.prune(net, amount=0.5, criterion="restless", accumulated=accumulator.sums)
    assert sum(int(mask.sum()) for mask in masks.values()) == 24
