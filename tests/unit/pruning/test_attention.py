"""Attention: heads, and the width inside of them, cut to what the masked network computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
import pruning
from models.torchvision_compat import models as torchvision_models
from orchestrator.trial.metrics import profile
from pruning.channels import find_channels
from pruning.cutting.attention import HeadAttention
from pruning.cutting.layer_widths import layer_widths, resize
from pruning.cutting.narrow_attention import KINDS, NarrowAttention

WIDTH = 12  # of a token
HEAD = 4  # width of a head


class Attention(nn.Module):
    """Attention whose heads of queries share those of keys and values in groups."""

    def __init__(self, heads: int, key_heads: int, query: nn.Module | None = None) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.scale = heads, key_heads, HEAD**-0.5
        self.q = query or nn.Linear(WIDTH, heads * HEAD)
        self.k, self.v = (nn.Linear(WIDTH, key_heads * HEAD) for _ in "kv")
        self.proj = nn.Linear(heads * HEAD, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        q = self.q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        served = self.num_heads // self.num_kv_heads
        k, v = (
            layer(tokens).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2).repeat_interleave(served, 1)
            for layer in (self.k, self.v)
        )
        scores = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        out: Tensor = self.proj((scores @ v).transpose(1, 2).flatten(2))
        return out


class UnscaledAttention(Attention):
    """The same, with a scale by the width that is left."""

    def forward(self, tokens: Tensor) -> Tensor:
        self.scale = (self.q.weight.shape[0] // self.num_heads) ** -0.5
        return super().forward(tokens)


class Transformer(nn.Module):
    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.norm = nn.LayerNorm(WIDTH)
        self.attentions = nn.ModuleList(attentions)
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        for attention in self.attentions:
            tokens = tokens + attention(self.norm(tokens))
        logits: Tensor = self.out(tokens.mean(1))
        return logits


class Own(nn.Module):
    """torch's attention, called with one argument."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(tokens, tokens, tokens, need_weights=False)[0]
        return out


def shared() -> nn.Module:
    query = nn.Linear(WIDTH, 3 * HEAD)
    return Transformer(Attention(3, 3, query), Attention(3, 3, query))


# Of a head: 4 rows of 12 weights and a bias in q, k and v each, 4 columns of 12 weights in the projection.
ROWS, COLUMNS = HEAD * (WIDTH + 1), HEAD * WIDTH
OWN: list[tuple[str, Callable[[], nn.Module], str, int, int]] = [
    ("4 heads", lambda: Transformer(Attention(4, 4)), "head", 4, 2 * (3 * ROWS + COLUMNS)),
    ("4 heads", lambda: Transformer(Attention(4, 4)), "channel", 4, 2 * (3 * ROWS + COLUMNS)),
    # One of two heads of keys goes, with its two heads of queries.
    ("2 of keys", lambda: Transformer(Attention(4, 2)), "head", 2, 4 * ROWS + 2 * COLUMNS),
    ("2 of keys", lambda: Transformer(Attention(4, 2)), "channel", 4, 4 * ROWS + 2 * COLUMNS),
    # Two of four heads of queries; the keys and values that they share stay.
    ("1 of keys", lambda: Transformer(Attention(4, 1)), "head", 4, 2 * (ROWS + COLUMNS)),
    ("1 of keys", lambda: Transformer(Attention(4, 1)), "channel", 4, 3 * ROWS + 2 * COLUMNS),
    ("1 head", lambda: Transformer(Attention(1, 1)), "channel", 4, (3 * ROWS + COLUMNS) // 2),
    # Of three heads two go (a half of 3, rounded up): q once, k, v and the projection twice.
    ("shared queries", shared, "head", 3, 2 * (5 * ROWS + 2 * COLUMNS)),
    ("shared queries", shared, "channel", 4, 3 * (5 * ROWS + 2 * COLUMNS) // 2),
    ("torch's", lambda: Transformer(Own(3)), "head", 3, 2 * (3 * ROWS + COLUMNS)),
    ("torch's", lambda: Transformer(Own(3)), "channel", 4, 3 * (3 * ROWS + COLUMNS) // 2),
    ("torch's of 1 head", lambda: Transformer(Own(1)), "channel", 12, 3 * (3 * ROWS + COLUMNS) // 2),
]


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def randomized(net: nn.Module) -> nn.Module:
    """With no parameter at zero: a zero hides what it multiplies."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def cut(make: Callable[[], nn.Module], granularity: str, side: int) -> tuple[nn.Module, nn.Module, list[int]]:
    """Cut half, and hold it against the masked network, the counter and what is rebuilt from the widths."""
    torch.manual_seed(3)
    net, example = randomized(make()), torch.zeros(2, 3, side, side)
    channels = find_channels(net, example)
    groups = channels.groups if granularity == "channel" else channels.heads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not pruned
        masks = pruning.prune(
            net, amount=0.5, criterion="l2", granularity=granularity, scope="layer", groups=groups
        )
    small = pruning.shrink(net, masks, example, groups=groups)
    masked = deepcopy(net)
    pruning.apply_masks(masked, masks)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = deepcopy(small).double()(images), masked.double()(images)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-9
    fresh = resize(make().eval(), layer_widths(small))
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(images.float()), small(images.float()))
    assert layer_widths(fresh) == layer_widths(small)
    return net, small, [group.size for group in groups]


@pytest.mark.parametrize(
    ("make", "granularity", "size", "removed"), [c[1:] for c in OWN], ids=[f"{c[0]}, {c[2]}" for c in OWN]
)
def test_attention_is_cut_to_what_the_masked_network_computes(
    make: Callable[[], nn.Module], granularity: str, size: int, removed: int
) -> None:
    net, small, sizes = cut(make, granularity, side=8)
    assert sizes == [size]
    assert count(net) - count(small) == removed


def test_the_scale_stays_that_of_the_whole_head() -> None:
    _, small, _ = cut(lambda: Transformer(Own(3)), "channel", side=8)
    attention = small.get_submodule("attentions.0.layer")
    assert isinstance(attention, HeadAttention)
    assert (attention.num_heads, attention.head_dim, attention.scale) == (3, 2, HEAD**-0.5)
    assert attention.in_proj_weight.shape == (3 * 3 * 2, WIDTH)
    assert attention.out_proj.weight.shape == (WIDTH, 3 * 2)


def test_heads_and_the_width_inside_of_them_are_cut_one_after_the_other() -> None:
    torch.manual_seed(3)
    net, example = randomized(Transformer(Own(4))), torch.zeros(2, 3, 8, 8)
    for granularity in ("head", "channel"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is not pruned
            masks = pruning.prune(net, amount=0.5, granularity=granularity, example_input=example)
        net = pruning.shrink(net, masks, example)
    attention = net.get_submodule("attentions.0.layer")
    assert isinstance(attention, HeadAttention)
    assert (attention.num_heads, attention.scale) == (2, 3**-0.5)
    assert attention.in_proj_weight.shape == (3 * 2 * attention.head_dim, WIDTH)


def test_a_scale_by_the_width_that_is_left_keeps_the_width_whole_and_named() -> None:
    net = randomized(Transformer(UnscaledAttention(3, 3)))
    channels = find_channels(net, torch.zeros(2, 3, 8, 8))
    assert channels.groups == ()
    assert [group.size for group in channels.heads] == [3]
    assert {name for name in channels.whole if name.startswith("attentions.0")} >= {
        f"attentions.0.{leaf}" for leaf in "qkv"
    }
    assert any(text.startswith("attentions.0.q (left whole: ") for text in channels.left_whole)


def test_heads_that_are_mixed_are_whole_and_named() -> None:
    """Queries of head h are those of head h + 1, too: all heads are one part, and no width is inside."""

    class Rolled(Attention):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + self.proj(self.q(tokens).roll(1, -1).softmax(-1))

    channels = find_channels(randomized(Transformer(Rolled(3, 3), nn.Linear(WIDTH, WIDTH), Mlp())), EXAMPLE)
    assert channels.heads == ()
    assert [group.name for group in channels.groups] == ["attentions.2.a"]
    assert {"attentions.0.q", "attentions.0.k", "attentions.0.v"} <= channels.whole.keys()


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.b(functional.relu(self.a(tokens)))
        return out


EXAMPLE = torch.zeros(2, 3, 8, 8)


def swin(version: int, *, sides: tuple[int, int] = (4, 4)) -> nn.Module:
    module = torchvision_models.swin_transformer
    blocks = {
        1: {},
        2: {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2},
    }[version]
    return module.SwinTransformer([4, 4], 16, [2], [2], [*sides], num_classes=5, **blocks)


def maxvit() -> nn.Module:
    net: nn.Module = torchvision_models.maxvit.MaxVit((16, 16), 8, 4, [8], [1], 4, 0.0, num_classes=5)
    return net


def torchvision_vit() -> nn.Module:
    module = torchvision_models.vision_transformer
    net: nn.Module = module.VisionTransformer(16, 8, 1, 3, 12, 20, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net


def own_vit() -> nn.Module:
    return models.build("vit(dim=12, depth=1, heads=3, patch=8)", input_shape=(3, 16, 16), num_classes=5)


def timm_network(name: str, **options: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    net: nn.Module = timm.create_model(name, num_classes=5, **options)
    return net


SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3}
WINDOWS = {"img_size": 32, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "window_size": 4}
# Parameters that half of the heads of every attention take with them, worked by hand: of Swin in two blocks
# 8 of 16 rows of q, k and v each, with biases, 8 columns of 16 in the projection, and a column of 49 in the
# table; v2 has a scale and a row of 512 in place of that column.
SWIN = 2 * (3 * 8 * 17 + 8 * 16)
FAMILIES: list[tuple[str, Callable[[], nn.Module], int, int, str]] = [
    ("torchvision's ViT", torchvision_vit, 16, 2 * (3 * 4 * 13 + 4 * 12), "HeadAttention"),
    ("vit", own_vit, 16, 2 * (3 * 4 * 13 + 4 * 12), "Attention"),
    ("torchvision's Swin", lambda: swin(1), 32, SWIN + 2 * 49, "ShiftedWindows"),
    ("torchvision's Swin v2", lambda: swin(2), 32, SWIN + 2 * (1 + 512), "ShiftedWindows"),
    # Two attentions of two heads: 4 of 8 rows and columns, and a column of 49 in the table.
    ("torchvision's MaxViT", maxvit, 16, 2 * (3 * 4 * 9 + 4 * 8 + 49), "GridAttention"),
    (
        "timm's ViT",
        lambda: timm_network("vit_tiny_patch16_224", **SMALL),
        16,
        2 * (3 * 4 * 13 + 4 * 12),
        "TimmAttention",
    ),
    (
        "timm's BEiT",  # keys have no bias; 3 + 9 positions in the table
        lambda: timm_network("beit_base_patch16_224", **SMALL),
        16,
        2 * (3 * 4 * 12 + 2 * 4 + 4 * 12 + 12),
        "BiasedAttention",
    ),
    (
        "timm's Swin",
        lambda: timm_network("swin_tiny_patch4_window7_224", **WINDOWS),
        32,
        SWIN + 2 * 49,
        "WindowAttention",
    ),
    (
        "timm's Swin v2",  # keys have no bias
        lambda: timm_network("swinv2_tiny_window8_256", **WINDOWS),
        32,
        SWIN - 2 * 8 + 2 * (1 + 512),
        "CosineWindows",
    ),
    (
        "timm's relative positions",  # no biases; a row of 128 weights and a bias makes a head's table
        lambda: timm_network("vit_relpos_small_patch16_224", **SMALL),
        16,
        2 * (3 * 4 * 12 + 4 * 12 + 128 + 1),
        "BiasedAttention",
    ),
]


@pytest.mark.parametrize(
    ("make", "side", "removed", "kind"), [c[1:] for c in FAMILIES], ids=[c[0] for c in FAMILIES]
)
def test_heads_of_the_libraries_attentions_are_cut(
    make: Callable[[], nn.Module], side: int, removed: int, kind: str
) -> None:
    net, small, _ = cut(make, "head", side)
    assert count(net) - count(small) == removed
    assert kind in {type(module).__name__ for module in small.modules()}
    macs, least = (profile(each, (3, side, side)).total_macs for each in (net, small))
    assert least < macs


@pytest.mark.parametrize(
    ("make", "side", "kind"), [(c[1], c[2], c[4]) for c in FAMILIES], ids=[c[0] for c in FAMILIES]
)
def test_the_width_inside_heads_of_the_libraries_attentions_is_cut(
    make: Callable[[], nn.Module], side: int, kind: str
) -> None:
    net, small, _ = cut(make, "channel", side)
    projections = ("qkv", "to_qkv", "q", "k", "v")
    widths, before = layer_widths(small), layer_widths(net)
    inner = [n for n in widths if n.rpartition(".")[2] in projections or n.endswith("in_proj_weight")]
    assert inner
    assert all(2 * widths[name][0] == before[name][0] for name in inner)


@pytest.mark.parametrize("sides", [(4, 4), (3, 5), (8, 8)], ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_an_attention_that_takes_the_place_of_torchvisions_computes_what_it_does(
    version: int, sides: tuple[int, int]
) -> None:
    """Windows that pad the map, that are not square, and as large as the map: nothing is shifted then."""
    torch.manual_seed(3)
    net = randomized(swin(version, sides=sides)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = net(images)
        narrow = [replace(net, name) for name, module in net.named_modules() if kind_of(module)]
        assert len(narrow) == 2
        torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-12)


def kind_of(module: nn.Module) -> Callable[[nn.Module], NarrowAttention] | None:
    return KINDS.get(f"{type(module).__module__}.{type(module).__qualname__}")


def replace(net: nn.Module, name: str) -> nn.Module:
    module = net.get_submodule(name)
    kind = kind_of(module)
    assert kind is not None
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, kind(module))
    return net
