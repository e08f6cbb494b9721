"""Multi-head attention of fewer or narrower heads: torch's own module cannot be narrower inside than outside.

`HeadAttention` takes the place of an `nn.MultiheadAttention` of which heads, or widths inside heads, are cut
out; parameters have the same names. `SplitAttention` takes its place while a network is traced: query, key
and value are layers of their own there, so that each can be perturbed. `narrow_attention` has those of other
libraries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = ("query", "key", "value")


class HeadAttention(nn.Module):
    """Attention with `num_heads` heads of `head_dim`, whatever the width of what it reads.

    Takes what `nn.MultiheadAttention.forward` takes, batches only, and returns the same. `in_proj_weight`,
    [3 num_heads head_dim, width], has the rows of queries, keys and values. `scale` of the scores stays that
    of the attention whose place it takes.
    """

    num_heads: int
    head_dim: int
    scale: float
    batch_first: bool
    dropout: float
    in_proj_weight: nn.Parameter
    out_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention | HeadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.scale = attention.scale if isinstance(attention, HeadAttention) else attention.head_dim**-0.5
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self._qkv_same_embed_dim = False  # keeps torch's encoder layers from their fused path
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias: nn.Parameter | None = attention.in_proj_bias
        # Not torch's own subclass of Linear, which its attention never calls.
        out = attention.out_proj
        self.out_proj = nn.Linear(out.in_features, out.out_features, bias=out.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = out.weight, out.bias
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.dim() != 3:
            raise ValueError(f"a query of shape {tuple(query.shape)}; batches of sequences are needed")
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        heads = [
            self.project(number, each).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for number, each in enumerate((query, key, value))
        ]
        scores = heads[0] @ heads[1].transpose(-2, -1) * self.scale
        for mask in _additive(attn_mask, key_padding_mask, query, scores):
            scores = scores + mask
        weights = functional.dropout(scores.softmax(-1), self.dropout, self.training)
        out: Tensor = self.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(1) if average_attn_weights else weights

    def project(self, number: int, features: Tensor) -> Tensor:
        """Return queries, keys or values, [N, length, num_heads head_dim]."""
        weight = self.in_proj_weight.chunk(3)[number]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[number]
        return functional.linear(features, weight, bias)


def _additive(attn_mask: Tensor | None, padding: Tensor | None, like: Tensor, scores: Tensor) -> list[Tensor]:
    """Return the masks as numbers to add to the scores [N, heads, length, length]."""
    masks = []
    for mask in (attn_mask, None if padding is None else padding[:, None, None, :]):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
        masks.append(mask.reshape(scores.shape) if mask.dim() == 3 else mask)
    return masks


class SplitAttention(HeadAttention):
    """The same with a layer for each projection."""

    def __init__(self, attention: nn.MultiheadAttention | HeadAttention) -> None:
        super().__init__(attention)
        weights = self.in_proj_weight.detach().chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.clone())
            if bias is not None:
                layer.bias = nn.Parameter(bias.clone())
            setattr(self, name, layer)
        # None and not deleted: torch's encoder layers look at the bias to choose their path.
        del self.in_proj_weight
        self.in_proj_bias = None
        self.train(attention.training)

    def project(self, number: int, features: Tensor) -> Tensor:
        projected: Tensor = getattr(self, PROJECTIONS[number])(features)
        return projected


def is_splittable(module: nn.Module) -> bool:
    """Return whether heads of a module can be cut out: a self-attention as torch's own transformers have."""
    return type(module) is HeadAttention or (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )
