"""Attentions of torchvision and timm that may be narrower inside than outside, with the tensors of theirs.

Theirs take the width inside heads, or the scale of the scores, from what they read. Each of these takes the
place of one of them where heads or widths inside heads are cut out: same parameters, buffers and attributes.
`scale` stays that of the attention whose place it takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_LOGIT_SCALE = math.log(100.0)  # of Swin v2, in both libraries


class NarrowAttention(nn.Module):
    """An attention with the tensors, layers and attributes of another one. Its heads share one `qkv`."""

    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear
    if TYPE_CHECKING:  # attributes of the libraries' attentions, which have no types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        for name, value in vars(attention).items():
            vars(self)[name] = value.copy() if isinstance(value, (dict, set)) else value
        self.is_traced = False  # a layer is seen in a trace where it is called, and not where its weight is
        self.source: Any = type(attention)

    def split_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens [N, length, width]: [N, heads, length, head width]."""
        bias = None if self.is_traced else self.joint_bias()
        qkv = self.qkv(tokens) if bias is None else functional.linear(tokens, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def joint_bias(self) -> Tensor | None:
        """Return the bias of queries, keys and values where it is not that of `qkv`."""
        if getattr(self, "q_bias", None) is None:
            return None
        return torch.cat([self.q_bias, self.k_bias, self.v_bias])

    def join_heads(self, values: Tensor) -> Tensor:
        """Return what the output projection makes of the heads, [N, heads, length, head width]."""
        joined: Tensor = self.proj(values.transpose(1, 2).flatten(2))
        return joined


class TimmAttention(NarrowAttention):
    """The attention of timm's vision transformers, with `scale` in place of one by its head's width."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.split_heads(x)
        heads = functional.scaled_dot_product_attention(
            self.q_norm(q),
            self.k_norm(k),
            v,
            attn_mask=attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,
        )
        joined = self.norm(heads.transpose(1, 2).flatten(2))
        out: Tensor = self.proj_drop(self.proj(joined if gate is None else joined * gate))
        return out


class BiasedAttention(NarrowAttention):
    """The attentions of timm's BEiT and of its vision transformers with relative positions."""

    def forward(self, x: Tensor, shared: Tensor | None = None, **named: Tensor | None) -> Tensor:
        (shared,) = [*named.values()] or [shared]  # the libraries' names for it differ
        q, k, v = self.split_heads(x)
        bias = self.position_bias()
        bias = shared if bias is None else bias if shared is None or self.is_exclusive() else bias + shared
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.training else 0.0
        heads = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale
        )
        out: Tensor = self.proj_drop(self.join_heads(heads))
        return out

    def is_exclusive(self) -> bool:
        """Return whether a shared bias counts only where the attention has none of its own."""
        return hasattr(self, "rel_pos")

    def position_bias(self) -> Tensor | None:
        """Return what is added to the scores, [1 or heads, length, length]; None for nothing."""
        if self.is_exclusive():
            return None if self.rel_pos is None else self.rel_pos.get_bias()
        if self.relative_position_bias_table is None:
            return None
        bias: Tensor = self.source._get_rel_pos_bias(self)
        return bias


class CosineWindows(NarrowAttention):
    """The attention of timm's Swin v2, on tokens of windows."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split_heads(x)
        scores = cosine_scores(q, k, self.logit_scale) + self.position_bias()
        out: Tensor = self.proj_drop(self.join_heads(self.attn_drop(masked_softmax(scores, mask)) @ v))
        return out

    def position_bias(self) -> Tensor:
        """Return the continuous bias of relative positions, [heads, length, length]."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        length = self.window_size[0] * self.window_size[1]
        bias = table[self.relative_position_index.flatten()].unflatten(0, (length, length))
        return 16 * torch.sigmoid(bias.permute(2, 0, 1).contiguous())


class ShiftedWindows(NarrowAttention):
    """The attention of torchvision's Swin, v1 and v2, on maps [N, height, width, channels]."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.scale: float = (self.qkv.out_features // 3 // self.num_heads) ** -0.5

    def joint_bias(self) -> Tensor | None:
        if not hasattr(self, "logit_scale") or self.qkv.bias is None:
            return None
        q, k, v = self.qkv.bias.chunk(3)  # keys of v2 have none
        return torch.cat([q, torch.zeros_like(k), v])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window = self.window_size
        x = functional.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        sides = x.shape[1:3]
        # A window as large as the map is not shifted.
        shift = [s if w < side else 0 for s, w, side in zip(self.shift_size, window, sides, strict=True)]
        tokens = to_windows(x.roll([-s for s in shift], (1, 2)), window)
        q, k, v = self.split_heads(tokens)
        if hasattr(self, "logit_scale"):
            scores = cosine_scores(q, k, self.logit_scale)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = scores + self.source.get_relative_position_bias(self)
        mask = shift_mask(sides, window, shift, like=x) if any(shift) else None
        weights = functional.dropout(masked_softmax(scores, mask), self.attention_dropout, self.training)
        tokens = functional.dropout(self.join_heads(weights @ v), self.dropout, self.training)
        x = from_windows(tokens, sides, window).roll(shift, (1, 2))
        return x[:, :height, :width].contiguous()


class GridAttention(NarrowAttention):
    """The attention of torchvision's MaxViT, on tokens of windows or grids, [N, windows, length, width]."""

    def forward(self, x: Tensor) -> Tensor:
        heads = self.to_qkv(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = q @ (k * self.scale_factor).transpose(-2, -1)
        weights = (scores + self.source.get_relative_positional_bias(self)).softmax(-1)
        out: Tensor = self.merge((weights @ v).transpose(2, 3).flatten(3))
        return out


def cosine_scores(q: Tensor, k: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the scores of Swin v2 (Liu et al., CVPR 2022): cosines, times a scale for each head."""
    cosines = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
    return cosines * logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax of scores [N windows, heads, length, length] plus a mask of windows, if any."""
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return scores.softmax(-1)


def to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Return the tokens of each window, [N windows, length, channels], of maps [N, H, W, channels]."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(tokens: Tensor, sides: Sequence[int], window: Sequence[int]) -> Tensor:
    """Return the maps [N, H, W, channels] of the tokens of windows."""
    counts = (sides[0] // window[0], sides[1] // window[1])
    x = tokens.unflatten(1, tuple(window)).unflatten(0, (-1, *counts))
    maps: Tensor = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return maps


def shift_mask(sides: Sequence[int], window: Sequence[int], shift: Sequence[int], *, like: Tensor) -> Tensor:
    """Return [windows, length, length]: -100 between tokens that are no neighbours but for the shift."""
    regions = like.new_zeros(sides)
    parts = [(slice(0, -w), slice(-w, -s), slice(-s, None)) for w, s in zip(window, shift, strict=True)]
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts[0] for columns in parts[1]):
        regions[rows, columns] = number
    tokens = to_windows(regions[None, :, :, None], window)[:, :, 0]
    is_apart = tokens[:, None] != tokens[:, :, None]
    return is_apart.to(like) * -100.0


SWIN = "torchvision.models.swin_transformer.ShiftedWindowAttention"
KINDS: dict[str, type[NarrowAttention]] = {
    SWIN: ShiftedWindows,
    f"{SWIN}V2": ShiftedWindows,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": GridAttention,
    "timm.layers.attention.Attention": TimmAttention,
    "timm.models.swin_transformer_v2.WindowAttention": CosineWindows,
    "timm.models.beit.Attention": BiasedAttention,
    "timm.models.vision_transformer_relpos.RelPosAttention": BiasedAttention,
}
# In a trace these call their layers as they are.
UNTRACEABLE = (ShiftedWindows, CosineWindows, BiasedAttention)


def find_narrow(module: nn.Module) -> type[NarrowAttention] | None:
    """Return the class that takes the place of a module when it is cut; None for a module without one."""
    return KINDS.get(f"{type(module).__module__}.{type(module).__qualname__}")
