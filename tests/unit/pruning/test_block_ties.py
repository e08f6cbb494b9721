"""Channels that go in blocks: equal numbers from each half that is split off, each row that is shuffled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pruning
from pruning.channels import find_channels

IMAGES = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions of 16 channels, what is done with them, and a head."""

    def __init__(self, middle: Callable[[Net, Tensor, Tensor], Tensor], readers: dict[str, int]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.readers = nn.ModuleDict({name: nn.Conv2d(width, 10, 3) for name, width in readers.items()})
        self.head, self.middle = nn.Linear(10, 5), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.a(x).relu(), self.b(x).relu()).relu().mean((2, 3)))


def halves(net: Net, a: Tensor, b: Tensor) -> Tensor:
    first, second = a.chunk(2, 1)
    return net.readers["first"](first) + net.readers["second"](second) + net.readers["b"](b)


def quarter(net: Net, a: Tensor, b: Tensor) -> Tensor:
    width = a.shape[1] // 4
    return net.readers["first"](a[:, :width]) + net.readers["rest"](a[:, width:]) + net.readers["b"](b)


def strided(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["first"](a[:, ::2]) + net.readers["second"](a[:, 1::2]) + net.readers["b"](b)


def shuffled(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["all"](functional.channel_shuffle(a, 4)) + net.readers["b"](b)


def interleaved(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["both"](torch.stack([a, b], 2).flatten(1, 2))


def joined_and_shuffled(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["both"](functional.channel_shuffle(torch.cat([a, b], 1), 2))


def joined_and_shuffled_in_fours(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["both"](functional.channel_shuffle(torch.cat([a, b], 1), 4))


def fixed_half(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.readers["first"](a[:, :8]) + net.readers["second"](a[:, 8:]) + net.readers["b"](b)


HALVES = {"first": 8, "second": 8, "b": 16}
CASES = [  # what is done, widths of the readers, the blocks of `a`: the channels that go together
    (halves, HALVES, [{i, i + 8} for i in range(8)]),
    (quarter, {"first": 4, "rest": 12, "b": 16}, [{i, i + 4, i + 8, i + 12} for i in range(4)]),
    (strided, HALVES, [{2 * i, 2 * i + 1} for i in range(8)]),
    (shuffled, {"all": 16, "b": 16}, [{i, i + 4, i + 8, i + 12} for i in range(4)]),
    (interleaved, {"both": 32}, [{i} for i in range(16)]),
    (joined_and_shuffled, {"both": 32}, [{i} for i in range(16)]),
    (joined_and_shuffled_in_fours, {"both": 32}, [{i, i + 8} for i in range(8)]),
]


def built(middle: Callable[[Net, Tensor, Tensor], Tensor], readers: dict[str, int]) -> Net:
    torch.manual_seed(0)
    return Net(middle, readers).eval()


@pytest.mark.parametrize(("middle", "readers", "blocks"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_blocks_are_those_that_a_reader_of_the_code_finds(
    middle: Callable[[Net, Tensor, Tensor], Tensor], readers: dict[str, int], blocks: list[set[int]]
) -> None:
    channels = find_channels(built(middle, readers), IMAGES)
    group = next(group for group in channels.groups if group.name == "a")
    makers = [member for member in group.members if member.side == "out"]
    assert {member.module for member in makers} == ({"a"} if "b" in readers else {"a", "b"})
    for member in makers:
        own = [set(member.index[member.root == unit].tolist()) for unit in range(group.size)]
        assert own == blocks
    assert "a" not in channels.whole
    assert "b" not in channels.whole


@pytest.mark.parametrize("amount", [0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize(("middle", "readers", "blocks"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_cut_equals_masked_at_every_amount(
    middle: Callable[[Net, Tensor, Tensor], Tensor],
    readers: dict[str, int],
    blocks: list[set[int]],
    amount: float,
) -> None:
    net = built(middle, readers)
    options = {"criterion": "l2", "scope": "layer", "granularity": "channel", "example_input": IMAGES}
    masks = pruning.prune(net, amount=amount, **options)
    dead = set((~masks["a.weight"].flatten(1).any(1)).nonzero().flatten().tolist())
    count = min(int(amount * len(blocks) + 0.5), len(blocks) - (amount < 1))  # prune n means n blocks
    assert len(dead) == count * len(blocks[0])
    assert all(block <= dead or not block & dead for block in blocks)
    small = pruning.shrink(net, masks, IMAGES)
    masked = deepcopy(net)
    for name, parameter in masked.named_parameters():
        parameter.data.mul_(masks.get(name, torch.ones(())))
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = small.double()(images), masked.double()(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert small.a.out_channels == max(16 - len(dead), len(blocks[0]))


def test_what_is_split_at_a_fixed_channel_is_left_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channels = find_channels(built(fixed_half, HALVES), IMAGES)
    assert "a" in channels.whole
    assert [group.name for group in channels.groups] == ["b", "readers.first"]
