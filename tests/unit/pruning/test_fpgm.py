"""`fpgm` by hand, against the definition as a plain loop, PyTorch's pruner and Torch-Pruning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.ao.pruning._experimental.pruner.FPGM_pruner import FPGMPruner

import pruning
from pruning.criteria import ScoringContext, criteria
from pruning.fpgm_criterion import sum_distances
from pruning.granularity import unit_groups
from pruning.masking import Group, Masks, Member, full_masks
from pruning.passes import _unit_scores


def scores(net: nn.Module, groups: tuple[Group, ...], masks: Masks | None = None) -> dict[str, Tensor]:
    masks = masks or full_masks(net, groups)
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items() if mask.dim() > 1}
    context = ScoringContext(net, weights, masks, torch.Generator(), groups=groups)
    result: Any = criteria.get("fpgm")(context)
    return dict(result)


def hidden(*rows: list[float]) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(len(rows[0]), len(rows)), nn.ReLU(), nn.Linear(len(rows), 2))
    net[0].weight.data = torch.tensor(rows)
    return net


def definition(filters: Tensor) -> list[float]:
    """g(x) = sum over j of |x - F_j|_2 at every filter x of the layer: the paper's words."""
    rows = [row.flatten().tolist() for row in filters]
    return [
        sum(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 for other in rows)
        for one in rows
    ]


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


IMAGES = torch.zeros(2, 1, 8, 8)


def test_by_hand() -> None:
    """Corners (0, 0), (3, 4), (0, 8): sides 5, 5 and 8, and (0, 4), the nearest to the median."""
    net = hidden([0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [0.0, 4.0])
    got = scores(net, unit_groups(net))["0.weight"]
    assert got[:, 0].tolist() == [5 + 8 + 4, 5 + 5 + 3, 8 + 5 + 4, 4 + 3 + 4]
    assert torch.equal(got, got[:, :1].expand(4, 2))
    masks = pruning.prune(net, amount=0.25, criterion="fpgm", granularity="unit")
    assert masks["0.weight"].any(1).tolist() == [True, True, True, False]
    # Nothing but the smallest norm is what l2 removes.
    by_norm = pruning.prune(net, amount=0.25, criterion="l2", granularity="unit")
    assert by_norm["0.weight"].any(1).tolist() == [False, True, True, True]


def test_it_is_the_definition() -> None:
    net = convolutions()
    got = scores(net, unit_groups(net))
    for name in ("0.weight", "3.weight"):
        filters = dict(net.named_parameters())[name].detach().double()
        expected = torch.tensor(definition(filters), dtype=torch.float64)
        torch.testing.assert_close(got[name].flatten(1)[:, 0], expected, rtol=1e-12, atol=0)


def test_only_the_alive_are_compared() -> None:
    net = hidden([0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [0.0, 4.0])
    masks = pruning.prune(net, amount=0.25, criterion="fpgm", granularity="unit")
    got = scores(net, unit_groups(net), masks)["0.weight"][:, 0]
    assert got.tolist() == [13.0, 10.0, 13.0, 0.0]
    after = pruning.prune(net, amount=0.5, criterion="fpgm", granularity="unit", masks=masks)
    assert after["0.weight"].any(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("granularity", ["unit", "channel"])
@pytest.mark.parametrize(("scope", "amount"), [("layer", 0.5), ("global", 0.25)])
def test_the_lowest_sums_leave(granularity: str, scope: str, amount: float) -> None:
    net = convolutions()
    masks = pruning.prune(
        net, amount=amount, criterion="fpgm", granularity=granularity, scope=scope, example_input=IMAGES
    )
    sums = {name: definition(net.get_parameter(name).detach().double()) for name in ("0.weight", "3.weight")}
    ranked = [(value, name, row) for name, values in sums.items() for row, value in enumerate(values)]
    pools = [ranked] if scope == "global" else [[r for r in ranked if r[1] == name] for name in sums]
    dead = {(name, row) for pool in pools for _, name, row in sorted(pool)[: int(amount * len(pool) + 0.5)]}
    for name in sums:
        rows = (~masks[name].flatten(1).any(1)).nonzero().flatten().tolist()
        assert rows == sorted(row for other, row in dead if other == name)


def test_pytorchs_own_pruner_removes_the_same_filters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 36, 2))
    masks = pruning.prune(
        net, amount=0.5, criterion="fpgm", granularity="unit", example_input=torch.zeros(1, 3, 8, 8)
    )
    pruner = FPGMPruner(0.5)
    pruner.prepare(net, [{"tensor_fqn": "0.weight"}])
    pruner.enable_mask_update = True
    pruner.step()
    theirs = net[0].parametrizations.weight[0].mask.bool()
    assert torch.equal(masks["0.weight"].flatten(1).any(1), theirs)


def test_torch_prunings_importance_is_the_same_of_positive_weights() -> None:
    """It takes the distances of |w|^p, and not of w: with p = 1 these are the same without signs."""
    net = convolutions()
    net[3].weight.data.abs_()
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=IMAGES)
    group = graph.get_pruning_group(net[3], torch_pruning.prune_conv_out_channels, idxs=list(range(5)))
    importance = torch_pruning.importance.FPGMImportance(p=1, group_reduction="first", normalizer=None)
    theirs = importance(group)
    got = scores(net, unit_groups(net))["3.weight"].flatten(1)[:, 0]
    torch.testing.assert_close(theirs.double(), got, rtol=1e-5, atol=0)


def test_a_channel_of_two_layers_has_the_sum_over_both() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 5)
            self.output = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.output(x + self.two(torch.relu(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = Residual()
    (group,) = pruning.trace(net, torch.zeros(2, 4))
    got = scores(net, (group,))
    expected = [
        a + b
        for a, b in zip(
            definition(net.one.weight.detach().double()),
            definition(net.two.weight.detach().double()),
            strict=True,
        )
    ]
    for name in ("one.weight", "two.weight"):
        torch.testing.assert_close(
            got[name][:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
        )


def test_input_features_are_columns() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    net[1].weight.data = torch.tensor([[0.0, 3.0, 0.0], [0.0, 4.0, 1.0]])
    got = scores(net, unit_groups(net))["1.weight"]
    expected = torch.tensor([5.0 + 1.0, 5.0 + 18**0.5, 1.0 + 18**0.5], dtype=torch.float64)
    torch.testing.assert_close(got, expected.expand(2, 3), rtol=1e-12, atol=0)


def test_near_filters_keep_their_distance() -> None:
    """By |a|^2 - 2ab + |b|^2, which torch takes for more than 25 rows, this would be 0 or far off."""
    filters = torch.full((40, 3), 1e4, dtype=torch.float64)
    filters[0, 0] += 1e-5
    got = sum_distances(filters)
    assert float(got[0]) == pytest.approx(39e-5, rel=1e-6)
    assert float(got[1]) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("granularity", ["weight", "nm"])
def test_single_weights_are_refused(granularity: str) -> None:
    with pytest.raises(ValueError, match=f"'fpgm' ranks whole units or channels.*'{granularity}'"):
        pruning.prune(convolutions(), amount=0.5, criterion="fpgm", granularity=granularity)
    net = convolutions()
    context = ScoringContext(net, {}, {}, torch.Generator())
    with pytest.raises(ValueError, match="'fpgm' needs groups"):
        criteria.get("fpgm")(context)


def test_units_of_unequal_size_are_refused() -> None:
    net = hidden([0.0], [1.0], [2.0])
    member = Member("0", "out", torch.arange(3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"some of 'odd, in 0.weight' have more rows"):
        scores(net, (Group("odd", 2, (member,)),))


def test_of_a_layer_that_makes_some_of_the_units_these_are_compared() -> None:
    """As where two layers are put side by side, and a third is added to both."""
    net = nn.ModuleDict({name: nn.Linear(2, rows) for name, rows in (("a", 2), ("b", 2), ("sum", 4))})
    rows = {
        "a": [[0.0, 0.0], [3.0, 4.0]],
        "b": [[0.0, 0.0], [6.0, 8.0]],
        "sum": [[0.0, 0.0]] * 3 + [[0.0, 1.0]],
    }
    roots = {"a": torch.arange(2), "b": torch.arange(2, 4), "sum": torch.arange(4)}
    for name, values in rows.items():
        net[name].weight.data = torch.tensor(values)
    members = [Member(name, "out", torch.arange(len(root)), root) for name, root in roots.items()]
    group = Group("all", 4, tuple(members))
    got = scores(net, (group,))
    expected = [5.0 + 1.0, 5.0 + 1.0, 10.0 + 1.0, 10.0 + 3.0]
    for name, root in roots.items():
        assert got[f"{name}.weight"][:, 0].tolist() == [expected[unit] for unit in root]
    # And the first layer, which makes two of the four, is not asked for the scores of the others.
    by_unit = _unit_scores(group, got, criteria.get("fpgm"))
    assert by_unit.tolist() == expected


def test_a_unit_of_several_rows_has_them_side_by_side() -> None:
    net = hidden([0.0], [0.0], [3.0], [4.0])
    member = Member("0", "out", torch.arange(4), torch.tensor([0, 0, 1, 1]))
    assert scores(net, (Group("pairs", 2, (member,)),))["0.weight"].tolist() == [[5.0]] * 4
