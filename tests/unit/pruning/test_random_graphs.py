"""Random networks of residual, concatenated, split, shuffled and grouped blocks under the law of cutting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_law_of_cutting import EXAMPLE, cut, largest_difference
from torch import Tensor, nn

Block = tuple[str, int]
# What the tracer knows: networks of these alone must be cut.
PLAIN = ("conv", "norm", "residual", "two branches", "pool")
OTHERS = ("keep and add", "split", "shuffle", "grouped", "flip", "image", "gate", "scale", "softmax")


class RandomGraph(nn.Module):
    """A stem of 8 channels, blocks one after the other, an average and a head, which is registered first."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = blocks
        self.parts = nn.ModuleDict()
        channels = 8
        self.head_width = self.widths(channels)
        self.head = nn.Linear(self.head_width, 5)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        for number, (kind, width) in enumerate(blocks):
            channels = self.add(str(number), kind, channels, width)

    def widths(self, channels: int) -> int:
        """How many channels come out at the end."""
        for kind, width in self.blocks:
            channels = {
                "conv": width,
                "two branches": 2 * width,
                "keep and add": channels + width,
                "image": channels + 1,
            }.get(kind, channels)
        return channels

    def add(self, name: str, kind: str, channels: int, width: int) -> int:
        """Register what a block needs; how many channels come out of it."""
        conv = lambda ins, outs, groups=1: nn.Conv2d(ins, outs, 3, padding=1, groups=groups)  # noqa: E731
        if kind == "conv":
            self.parts[name] = conv(channels, width)
            return width
        if kind == "two branches":
            self.parts[name] = nn.ModuleList([conv(channels, width), conv(channels, width)])
            return 2 * width
        if kind == "keep and add":
            self.parts[name] = conv(channels, width)
            return channels + width
        if kind in ("residual", "gate"):
            self.parts[name] = conv(channels, channels)
        if kind == "split":
            self.parts[name] = conv(channels // 2, channels // 2)
        if kind == "grouped":
            self.parts[name] = conv(channels, channels, 2)
        if kind == "norm":
            norm = nn.BatchNorm2d(channels)
            nn.init.normal_(norm.running_mean)
            nn.init.normal_(norm.bias)
            self.parts[name] = norm
        if kind == "scale":
            self.register_buffer(f"scale{name}", torch.rand(channels, 1, 1) + 0.5)
        return channels + 1 if kind == "image" else channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        for number, (kind, _) in enumerate(self.blocks):
            h = self.run(str(number), kind, h, x)
        logits: Tensor = self.head(h.mean((2, 3)))
        return logits

    def run(self, name: str, kind: str, h: Tensor, x: Tensor) -> Tensor:
        part = self.parts[name] if name in self.parts else None  # noqa: SIM401  a ModuleDict has no get
        if kind in ("conv", "norm", "grouped"):
            return part(h).relu()
        if kind == "residual":
            return h + part(h).relu()
        if kind == "two branches":
            return torch.cat([part[0](h), part[1](h)], 1).relu()
        if kind == "keep and add":
            return torch.cat([part(h).relu(), h], 1)
        if kind == "split":
            one, two = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 : h.shape[1] // 2 * 2]
            return torch.cat([part(one).relu(), two, h[:, h.shape[1] // 2 * 2 :]], 1)
        if kind == "gate":
            return h * part(h).sigmoid()
        return {
            "pool": lambda: nn.functional.avg_pool2d(h, 2) if h.shape[-1] > 1 else h,
            "shuffle": lambda: nn.functional.channel_shuffle(h, 2) if h.shape[1] % 2 == 0 else h,
            "flip": lambda: h.flip(1),
            "image": lambda: torch.cat([nn.functional.adaptive_avg_pool2d(x, h.shape[-1]), h], 1),
            "scale": lambda: h * getattr(self, f"scale{name}", 1.0),
            "softmax": lambda: h.softmax(1),
        }[kind]()


def blocks_of(kinds: Sequence[str]) -> st.SearchStrategy[list[Block]]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.sampled_from([4, 6])), min_size=1, max_size=5)


def built(blocks: Sequence[Block], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return RandomGraph(blocks).eval()


@given(
    blocks=blocks_of((*PLAIN, *OTHERS)),
    seed=st.integers(0, 99),
    granularity=st.sampled_from(["channel", "unit"]),
)
def test_any_graph_is_cut_with_equal_outputs_or_refused(
    blocks: list[Block], seed: int, granularity: str
) -> None:
    channels, fits = 8, True
    for kind, width in blocks:
        fits &= kind != "grouped" or channels % 2 == 0
        channels = {"conv": width, "two branches": 2 * width, "keep and add": channels + width}.get(
            kind, channels + (kind == "image")
        )
    if not fits:
        return
    net = built(blocks, seed)
    result = cut(net, granularity)
    if isinstance(result, str):
        assert result
        assert "\n" not in result
    else:
        masks, small = result
        assert not all(mask.all() for mask in masks.values())
        assert largest_difference(net, masks, small) < 1e-9


@given(blocks=blocks_of(PLAIN), seed=st.integers(0, 99))
def test_graphs_of_plain_blocks_are_cut(blocks: list[Block], seed: int) -> None:
    net = built(blocks, seed)
    result = cut(net, "channel")
    assert not isinstance(result, str), result
    masks, small = result
    assert small(EXAMPLE).shape == (2, 5)
    assert largest_difference(net, masks, small) < 1e-9
