"""What one forward pass shows: who makes the logits, which norm reads whom, wherever they are registered."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from adversarial import CASES, Graph, SamePadding, Standardised, conv, pooled
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import pruning
from pruning.checks import check_stored_weights
from pruning.dataflow import find_data_flow, find_unprunable
from pruning.granularity import unit_groups
from pruning.layer_names import find_protected_layers

IMAGES = torch.zeros(2, 1, 6, 6)
MAKERS = {case.name: case.make for case in CASES}


def head_first() -> nn.Module:
    return MAKERS["head_first"]()


def members(net: nn.Module, **options: Any) -> dict[str, list[str]]:
    return {group.name: [m.module for m in group.members] for group in unit_groups(net, **options)}


def test_the_output_layer_is_the_one_that_makes_the_logits() -> None:
    flow = find_data_flow(head_first(), IMAGES)
    assert flow.layers == ("a", "b", "out")
    assert flow.outputs == ("out",)
    assert find_protected_layers(head_first(), ["output"]) == {"out"}
    assert find_protected_layers(head_first(), ["input"]) == {"a"}


def test_no_class_is_removed_and_the_right_layer_is_protected() -> None:
    """0.6 of 8 and of 6 units: 5 and 4 leave (4.8 and 3.6, rounded), and every class stays."""
    masks = pruning.prune(head_first(), amount=0.6, granularity="unit", scope="layer", criterion="l2")
    assert sorted(masks) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert [int((~masks[f"{name}.bias"]).sum()) for name in "ab"] == [5, 4]
    weights = pruning.prune(head_first(), amount=0.6, protect=["output"])
    assert sorted(weights) == ["a.weight", "b.weight"]


def test_both_layers_that_are_added_to_the_logits_are_outputs() -> None:
    flow = find_data_flow(MAKERS["two_heads_added"](), IMAGES)
    assert set(flow.outputs) == {"one", "two"}


def test_the_norm_of_a_unit_is_the_one_that_reads_it() -> None:
    net = MAKERS["convolutions_in_one_list_and_norms_in_another"]()
    assert members(net) == {f"convs.{i}": [f"convs.{i}", f"norms.{i}"] for i in range(3)}
    net = MAKERS["head_in_the_middle_and_norms_behind"]()
    assert members(net, example_input=IMAGES) == {"a": ["a", "bn_a"], "b": ["b", "bn_b"]}


def test_a_norm_behind_an_activation_belongs_to_the_unit_too() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    assert members(net) == {"0": ["0", "2"]}


@pytest.mark.parametrize("middle", [lambda h: h.flip(1), lambda h: h.softmax(1), lambda h: h.cumsum(1)])
def test_a_norm_that_reads_moved_or_mixed_units_belongs_to_none(middle: Any) -> None:
    net = Graph(
        lambda s, x: s.out(s.norm(middle(s.a(x.flatten(1))))),
        a=nn.Linear(36, 6), norm=nn.BatchNorm1d(6), out=nn.Linear(6, 2),
    )  # fmt: skip
    assert members(net, example_input=IMAGES) == {"a": ["a"]}


def test_a_norm_of_a_sum_belongs_to_neither() -> None:
    net = Graph(
        lambda s, x: s.out(s.norm(s.a(x.flatten(1)) + s.b(x.flatten(1)))),
        a=nn.Linear(36, 6), b=nn.Linear(36, 6), norm=nn.BatchNorm1d(6), out=nn.Linear(6, 2),
    )  # fmt: skip
    assert members(net) == {"a": ["a"], "b": ["b"]}


def test_layers_with_one_weight_share_their_units() -> None:
    net = MAKERS["tied_in_parallel"]()
    assert members(net, example_input=IMAGES)["c"] == ["c", "d"]
    options = {"granularity": "channel", "criterion": "l2", "protect": ["a"]}  # a is never called
    masks = pruning.prune(net, amount=0.5, example_input=IMAGES, **options)
    small = pruning.shrink(net, masks, IMAGES)
    assert small.c.weight is small.d.weight
    assert small.c.weight.shape[0] < net.c.weight.shape[0]


def test_what_has_weights_and_is_not_pruned_is_named() -> None:
    net = Graph(
        lambda s, x: s.out(s.bi(x.flatten(1), x.flatten(1)) + s.lstm(x.flatten(2))[0][:, -1]) + s.table[0],
        bi=nn.Bilinear(36, 36, 4), lstm=nn.LSTM(36, 4, batch_first=True), out=nn.Linear(4, 5),
        spare=nn.Linear(3, 3), table=nn.Parameter(torch.zeros(2, 5)), scale=nn.Parameter(torch.ones(1, 8, 1)),
        deconv=nn.ConvTranspose2d(1, 1, 1), line=nn.Conv1d(2, 1, 1), cube=nn.Conv3d(1, 1, 1),
        norm=nn.LayerNorm(4),
    )  # fmt: skip
    assert set(find_unprunable(net, find_data_flow(net, IMAGES))) == {
        "the network itself (Graph)",
        "bi (Bilinear)",
        "lstm (LSTM)",
        "spare (never called as a layer)",
        "deconv (never called as a layer)",
        "line (never called as a layer)",
        "cube (never called as a layer)",
    }


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(conv(8, 6)),
        lambda: parametrizations.spectral_norm(conv(8, 6)),
        lambda: torch_prune.l1_unstructured(conv(8, 6), "weight", 0.5),
        lambda: Standardised(8, 6, 3, padding=1),
    ],
)
def test_a_weight_that_is_computed_is_refused_at_every_granularity(granularity: str, make: Any) -> None:
    net = Graph(lambda s, x: s.out(pooled(s.b(s.a(x).relu()))), a=conv(1, 8), b=make(), out=nn.Linear(6, 5))
    for _ in range(2):  # a forward pass leaves a computed weight behind
        with pytest.raises(ValueError, match=r"^b: .*protect"):
            pruning.prune(net, amount=0.5, granularity=granularity, example_input=IMAGES)
        net(IMAGES)
    if granularity == "weight":
        assert set(pruning.prune(net, amount=0.5, protect=["b"])) == {"a.weight", "out.weight"}


def test_a_forward_of_ones_own_that_uses_the_weight_as_it_is_is_taken() -> None:
    net = nn.Sequential(SamePadding(1, 4, 3), nn.Conv2d(4, 2, 1))
    check_stored_weights(net, {"0", "1"})


class Hooked(nn.Linear):
    """Recomputes its weight before every call, as old forms of weight norm do."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.direction = nn.Parameter(torch.randn(self.weight.shape))
        self.register_forward_pre_hook(self.renew)

    @staticmethod
    def renew(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.weight.data.copy_(layer.direction / layer.direction.norm())


def test_a_weight_that_a_hook_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="0: Hooked computes with another weight"):
        pruning.prune(nn.Sequential(Hooked(4, 3), nn.ReLU(), nn.Linear(3, 2)), amount=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example_input": np.zeros((2, 1, 6, 6))}, "example_input is of type ndarray"),
        ({"example_input": torch.zeros(2, 1, 6, 6, dtype=torch.int64)}, "floating-point images"),
        ({"example_input": torch.zeros(2, 3, 9, 9)}, r"does not run on .*\(2, 3, 9, 9\)"),
        ({"example_input": torch.zeros(0, 1, 6, 6)}, "example_input is a float32 tensor"),
        ({"example_input": IMAGES, "sample": (IMAGES, torch.zeros(2))}, "labels are needed as int64"),
        (
            {"example_input": IMAGES, "sample": (IMAGES, torch.zeros(3).long())},
            "one for each of the 2 images",
        ),
        ({"example_input": IMAGES, "sample": IMAGES}, "sample"),
        ({"example_input": IMAGES, "masks": {"b.wieght": torch.ones(6, 8).bool()}}, "'b.wieght'"),
        ({"example_input": IMAGES, "masks": {"b.weight": torch.ones(6, 8)}}, "'b.weight' is of type"),
        ({"example_input": IMAGES, "masks": {"b.weight": torch.ones(8, 6).bool()}}, "'b.weight' of shape"),
    ],
)
@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_what_is_given_is_checked(options: dict[str, Any], message: str, granularity: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(head_first(), amount=0.5, granularity=granularity, criterion="snip", **options)


def test_labels_that_the_network_has_no_class_for_are_refused() -> None:
    sample = (torch.rand(2, 1, 6, 6), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"criterion 'snip' cannot score Graph with this sample"):
        pruning.prune(head_first(), amount=0.5, criterion="snip", sample=sample)


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("without_layers", "has no Linear or convolution layer"),
        ("on_meta", "a.weight is on the meta device"),
        ("lazy", "a.weight has no shape yet"),
    ],
)
def test_a_network_without_weights_to_prune_is_refused(granularity: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(MAKERS[name](), amount=0.5, granularity=granularity, example_input=IMAGES)


def test_masks_of_a_name_that_is_not_there_are_refused_by_the_cut() -> None:
    net = head_first()
    with pytest.raises(ValueError, match=r"'c\.weight'"):
        pruning.shrink(net, {"c.weight": torch.ones(3, 3).bool()}, IMAGES)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c1, self.c2 = conv(1, 8), conv(8, 8), conv(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        logits: Tensor = self.fc(pooled((h + self.c2(self.c1(h).relu())).relu()))
        return logits


@pytest.mark.parametrize("name", ["input", "stem", "c1", "c2"])
def test_one_layer_of_a_residual_group_is_protected_and_the_rest_is_cut(name: str) -> None:
    groups = pruning.trace(Residual(), IMAGES, protect=[name])
    makers = {member.module for group in groups for member in group.members if member.side == "out"}
    assert makers == ({"stem", "c2"} if name == "c1" else {"c1"})


@pytest.mark.parametrize("amount", [0.02, 0.05, 0.1, 0.2])
def test_few_units_of_a_residual_network_can_be_cut_out(amount: float) -> None:
    net = Residual()
    masks = pruning.prune(net, amount=amount, granularity="unit", criterion="l2", example_input=IMAGES)
    pruning.shrink(net, masks, IMAGES)


def test_layers_that_answer_alike_keep_their_own_norms() -> None:
    net = MAKERS["convolutions_that_start_alike"]()
    assert members(net, example_input=IMAGES) == {
        "left.0": ["left.0", "left.1"],
        "right.0": ["right.0", "right.1"],
    }
    assert members(MAKERS["called_by_keyword"](), example_input=IMAGES)["c"] == ["c", "norm"]


def test_a_head_whose_weight_is_used_by_a_function_is_the_output() -> None:
    net = Graph(
        lambda s, x: 10 * nn.functional.linear(s.b(s.a(x.flatten(1)).relu()), s.out.weight),
        a=nn.Linear(36, 8), b=nn.Linear(8, 6), out=nn.Linear(6, 5),
    )  # fmt: skip
    assert find_data_flow(net, IMAGES).outputs == ("out",)
    assert sorted(pruning.prune(net, amount=0.5, protect=["output"], example_input=IMAGES)) == [
        "a.weight",
        "b.weight",
    ]


def test_the_example_is_left_as_it_is_and_its_shape_counts_alone() -> None:
    net, example = MAKERS["changes_its_images_in_place"](), torch.ones(2, 1, 6, 6, dtype=torch.float64)
    groups = pruning.trace(net, example)
    assert (example == 1).all()
    assert [group.name for group in pruning.trace(net, example.to("meta"))] == [g.name for g in groups]


def test_a_protected_layer_with_a_computed_weight_is_refused_where_it_reads_channels() -> None:
    layers = (
        conv(1, 8),
        nn.ReLU(),
        parametrizations.weight_norm(conv(8, 6)),
        nn.Flatten(),
        nn.Linear(216, 5),
    )
    with pytest.raises(ValueError, match=r"2: its weight is computed"):
        pruning.trace(nn.Sequential(*layers), IMAGES, protect=["2"])
    assert pruning.trace(nn.Sequential(*layers), IMAGES, protect=["0", "2"]) == ()


def test_groups_of_another_network_are_refused() -> None:
    narrow, wide = (nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)) for width in (6, 9))
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    images, masks = torch.zeros(2, 4), {"0.weight": torch.zeros(6, 4).bool()}
    for net in (wide, other):
        groups = pruning.trace(net, images)
        for call in (
            lambda groups=groups: pruning.prune(narrow, amount=0.5, granularity="channel", groups=groups),
            lambda groups=groups: pruning.prune(narrow, amount=0.5, granularity="unit", groups=groups),
            lambda groups=groups: pruning.shrink(narrow, masks, images, groups=groups),
            lambda groups=groups: pruning.refit(narrow, masks, groups, images, dense=narrow),
        ):
            with pytest.raises(ValueError, match="does not fit this network"):
                call()


@pytest.mark.parametrize("net", [None, "resnet18", [nn.Linear(2, 2)], nn.Linear, nn.Linear(4, 3)])
def test_what_is_no_network_is_refused(net: Any) -> None:
    for call in (
        lambda: pruning.prune(net, amount=0.5),
        lambda: pruning.trace(net, IMAGES),
        lambda: pruning.shrink(net, {}, IMAGES),
    ):
        with pytest.raises(ValueError, match="net is"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protect": 3}, "protect is 3"),
        ({"protect": [None]}, "protect is "),
        ({"only": [None]}, "only is "),
        ({"masks": ["a.weight"]}, "masks of type list"),
        ({"masks": {1: torch.ones(2).bool()}}, "mask 1 fits"),
        ({"groups": "abc"}, "groups is of type str"),
        ({"groups": 5}, "groups is of type int"),
        ({"seed": None}, "seed is None"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 2**70}, "seed is "),
    ],
)
def test_arguments_of_other_kinds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(head_first(), amount=0.5, granularity="unit", **options)


def test_one_name_may_be_protected_as_it_is() -> None:
    assert "out.weight" not in pruning.prune(head_first(), amount=0.5, protect="output")


def test_a_layer_whose_weight_a_function_uses_has_weights_to_prune_and_no_units() -> None:
    net = Graph(
        lambda s, x: s.out(nn.functional.linear(x.flatten(1), s.a.weight).relu()),
        a=nn.Linear(36, 8), spare=nn.Linear(3, 3), b=nn.Linear(8, 8), out=nn.Linear(8, 5),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "a.weight" in pruning.prune(net, amount=0.5)
    net = Graph(
        lambda s, x: s.out(s.b(nn.functional.linear(x.flatten(1), s.a.weight).relu()).relu()),
        a=nn.Linear(36, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 5),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"not pruned: a \(never called as a layer\)"):
        masks = pruning.prune(net, amount=0.5, granularity="unit", example_input=IMAGES)
    assert sorted(masks) == ["b.bias", "b.weight"]
