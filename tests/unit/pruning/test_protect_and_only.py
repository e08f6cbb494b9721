"""Layers chosen by name or pattern: what `protect` and `only` leave whole, at every granularity."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pruning
from pruning.granularity import unit_groups
from pruning.layer_names import find_protected_layers
from pruning.masking import prunable_layers

IMAGES = torch.zeros(2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1)) if width != out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv2(self.bn1(self.conv1(x)).relu()) + self.downsample(x)).relu()


class Residual(nn.Module):
    """A stem, two blocks in each of four stages, and a classifier, with the names of torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        widths = (4, 4, 6, 8, 10)
        for stage in range(1, 5):
            blocks = (Block(widths[stage - 1], widths[stage]), Block(widths[stage], widths[stage]))
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.conv1(x).relu()))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


torch.manual_seed(0)
NET = Residual()
LAYERS = list(prunable_layers(NET))


class Named(nn.Module):
    """Linear layers of these names, one after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        self.names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x).relu()
        return x


def test_a_star_crosses_dots_and_matches_layers_alone() -> None:
    downsample = {"layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"}
    assert find_protected_layers(NET, ["*.downsample.*"]) == downsample
    layer4 = {f"layer4.{block}.conv{number}" for block in (0, 1) for number in (1, 2)}
    assert find_protected_layers(NET, ["layer4.*"]) == {*layer4, "layer4.0.downsample.0"}
    assert find_protected_layers(NET, "layer4.?.conv[2-9]") == {"layer4.0.conv2", "layer4.1.conv2"}
    assert find_protected_layers(NET, ["LAYER4.0.conv?", "conv1"][1:]) == {"conv1"}


def test_only_is_all_others_protected_and_protect_takes_away_from_it() -> None:
    left_whole = find_protected_layers(
        NET, ["*.conv2", "output"], only=["layer4.*", "fc"], example_input=IMAGES
    )
    assert set(LAYERS) - left_whole == {"layer4.0.conv1", "layer4.1.conv1", "layer4.0.downsample.0"}
    assert set(LAYERS) - find_protected_layers(NET, (), only=["input"], example_input=IMAGES) == {"conv1"}


PATTERNS = st.lists(
    st.sampled_from(["conv1", "layer?.*", "*.conv1", "*.0.*", "fc", "l[ab]*", "*"]), unique=True
)


@given(protect=PATTERNS, only=PATTERNS)
def test_a_layer_is_pruned_that_only_has_and_protect_has_not(protect: list[str], only: list[str]) -> None:
    pruned = set()
    for layer in LAYERS:
        is_chosen = not only or any(fnmatchcase(layer, pattern) for pattern in only)
        if is_chosen and not any(fnmatchcase(layer, pattern) for pattern in protect):
            pruned.add(layer)
    assert set(LAYERS) - find_protected_layers(NET, protect, only=only) == pruned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protect": ["layr4.*"]}, r"protect: pattern 'layr4.\*' matches no layer; there are layer4"),
        ({"only": ["*.bn1"]}, r"only: pattern '\*.bn1' matches no layer; there are"),
        ({"only": ["LAYER4.*"]}, r"only: pattern 'LAYER4.\*' matches no layer"),
        ({"protect": ["layer4"]}, r"protect: no layer 'layer4'; there are layer4\.\*$"),
        ({"only": ["fc9"]}, "only: no layer 'fc9'; there are fc"),
        (
            {"only": ["fc"], "protect": ["f*"]},
            r"only is \['fc'\] and protect is \['f\*'\]: that leaves nothing",
        ),
        ({"only": "fc", "granularity": "unit"}, r"only is \['fc'\]: that leaves nothing to prune"),
    ],
)
def test_a_name_that_chooses_nothing_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(NET, amount=0.5, **options)


def test_a_layers_own_name_is_no_pattern() -> None:
    net = Named("a*", "ab", "c[d]", "cd")
    assert find_protected_layers(net, ["a*"]) == {"a*"}
    assert find_protected_layers(net, ["c[d]"]) == {"c[d]"}
    assert find_protected_layers(net, ["a?", "c[d]"]) == {"a*", "ab", "c[d]"}


def test_a_layer_called_input_that_runs_later_is_left_whole_by_its_alias_alone() -> None:
    net = Named("first", "input", "last")
    assert find_protected_layers(net, ["input"]) == {"first"}
    with pytest.raises(ValueError, match=r"'input' is left whole by a pattern .* stands for first"):
        find_protected_layers(net, ["in*"])
    assert find_protected_layers(Named("input", "output"), ["*put"]) == {"input", "output"}


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "unit"])
def test_weights_of_other_layers_have_no_mask(scope: str) -> None:
    masks = pruning.prune(NET, amount=0.5, scope=scope, only=["layer4.*"], protect=["*.conv2"])
    names = ("layer4.0.conv1.weight", "layer4.0.downsample.0.weight", "layer4.1.conv1.weight")
    assert sorted(masks) == sorted(names)
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(m.numel() // 2 for m in masks.values())


def test_only_is_as_protecting_all_others_for_units_and_channels() -> None:
    others = [name for name in LAYERS if not name.startswith("layer3.")]
    for granularity in ("unit", "channel"):
        options = {"amount": 0.5, "granularity": granularity, "example_input": IMAGES}
        chosen, expected = (
            pruning.prune(NET, **options, **choice)
            for choice in ({"only": ["layer3.*"]}, {"protect": others})
        )
        assert chosen.keys() == expected.keys()
        assert all(torch.equal(chosen[name], expected[name]) for name in expected)
        pruned = {name.rpartition(".")[0] for name, mask in chosen.items() if not mask.all()}
        assert pruned & set(LAYERS)
        assert not pruned & {"conv1", "layer4.0.conv1", "fc"}


def test_a_group_stays_where_one_of_its_makers_is_protected() -> None:
    """The sum after layer2 is made by two conv2 and the downsample layer: one pattern keeps all three."""
    for groups in (None, pruning.trace(NET, IMAGES)):
        masks = pruning.prune(
            NET,
            amount=0.5,
            granularity="channel",
            scope="layer",
            example_input=IMAGES,
            groups=groups,
            protect=["layer2.0.down*"],
        )
        rows = {
            name: bool(masks.get(f"{name}.weight", torch.ones(1, 1)).flatten(1).any(1).all())
            for name in LAYERS
        }
        assert rows["layer2.0.conv2"]
        assert rows["layer2.1.conv2"]
        assert rows["layer2.0.downsample.0"]
        assert not rows["layer2.0.conv1"]
        assert not rows["layer3.0.conv2"]


def test_traces_take_patterns_too() -> None:
    names = {group.name for group in pruning.trace(NET, IMAGES, protect=["layer?.*"])}
    assert names == {group.name for group in pruning.trace(NET, IMAGES)} - {
        n for n in LAYERS if "layer" in n
    } - {"conv1"}
    hidden = [group.name for group in unit_groups(NET, protect=["layer?.*"], example_input=IMAGES)]
    assert hidden == ["conv1"]
