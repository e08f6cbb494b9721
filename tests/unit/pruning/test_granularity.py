"""What is removed together; n:m blocks against a loop over plain lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.granularity import GRANULARITIES, granularities
from pruning.masking import Masks
from pruning.prune import make_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def n_of_m(rows: Tensor, n: int, m: int) -> list[list[bool]]:
    """True for the n largest of every m; of equals the later stays; a short remainder stays."""
    kept = []
    for row in rows.abs().tolist():
        mask = [True] * len(row)
        for start in range(0, len(row) - m + 1, m):
            order = sorted(range(start, start + m), key=lambda i: (row[i], i))
            for index in order[: m - n]:
                mask[index] = False
        kept.append(mask)
    return kept


def rows(masks: Masks, name: str) -> list[list[bool]]:
    found: list[list[bool]] = masks[name].flatten(1).tolist()
    return found


def test_the_names_are_those_registered() -> None:
    assert sorted(GRANULARITIES) == list(granularities)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5), (1, 2), (2, 16)])
@pytest.mark.parametrize("scope", ["global", "layer", "unit"])
def test_n_of_every_m_stay(n: int, m: int, scope: str) -> None:
    net = network()  # rows of 27 (a remainder for most m) and of 16
    masks = pruning.prune(net, amount=1 - n / m, granularity=f"nm(n={n}, m={m})", scope=scope)
    for name in ("0.weight", "3.weight"):
        assert rows(masks, name) == n_of_m(net.get_parameter(name).detach().flatten(1), n, m)


def test_ties_go_by_index_and_small_layers_stay() -> None:
    net = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 3))
    net[0].weight.data = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    masks = pruning.prune(net, amount=0.5, granularity="nm")
    assert rows(masks, "0.weight") == [[False, False, True, True, True]]
    assert rows(masks, "1.weight") == [[True]] * 3


def test_blocks_keep_what_is_dead_and_go_on() -> None:
    net = network()
    masks = pruning.prune(net, amount=0.25, granularity="nm(n=3, m=4)")
    after = pruning.prune(net, amount=0.5, granularity="nm", masks=masks)
    assert not any((after[name] & ~masks[name]).any() for name in masks)
    assert rows(after, "3.weight") == n_of_m(net[3].weight.detach(), 2, 4)


def test_rounds_reach_the_pattern() -> None:
    net, masks = network(), None
    for round, left in ((1, 3), (2, 2)):  # density 0.5^(1/2) = 0.71: one of four, then two
        masks = pruning.prune(
            net, amount=0.5, granularity="nm", schedule="iterative(rounds=2)", round=round, masks=masks
        )
        assert rows(masks, "3.weight") == n_of_m(net[3].weight.detach(), left, 4)


def test_nothing_is_removed_at_amount_zero() -> None:
    assert pruning.sparsity(pruning.prune(network(), amount=0, granularity="nm")) == 0.0


def test_units_and_channels_have_groups_and_weights_none() -> None:
    net = network()
    assert make_groups(net, "weight") is None
    assert make_groups(net, "nm") is None
    (unit,) = make_groups(net, "unit") or ()
    (channel,) = make_groups(net, "channel", example_input=torch.zeros(1, 3, 4, 4)) or ()
    assert (unit.name, unit.size, len(unit.members)) == ("0", 4, 1)
    assert (channel.name, channel.size) == ("0", 4)
    assert {(member.module, member.side) for member in channel.members} == {("0", "out"), ("3", "in")}
    assert make_groups(net, "channel", groups=[channel]) == (channel,)
    assert make_groups(net, "channel", groups=[channel], protect=["0"]) == ()
    assert make_groups(net, "channel", groups=[channel], protect=["output"]) == (channel,)


@pytest.mark.parametrize(
    ("granularity", "amount", "message"),
    [
        ("nm", 0.9, r"amount is 0.9; 2:4 removes 0.5 of every row: give that, or 0"),
        ("nm(n=1)", 1.0, "1:4 removes 0.75"),
        ("nm(n=4, m=4)", 0.5, r"nm\(n\) is 4 and nm\(m\) is 4; n must be below m"),
        ("nm(n=0, m=4)", 0.5, r"nm\(n\) is 0; it must be in \[1, 1024\]"),
        ("wieght", 0.5, "unknown granularity 'wieght'; did you mean weight"),
        ("channel", 0.5, "'channel' needs example_input"),
    ],
)
def test_bad_values_name_the_parameter_and_its_range(granularity: str, amount: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(network(), amount=amount, granularity=granularity)
