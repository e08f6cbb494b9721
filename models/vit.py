"""Vision transformers (Dosovitskiy et al., ICLR 2021) for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.options import check_integer

MLP_RATIO = 4
STD = 0.02  # of the initial positions and class token


class Attention(nn.Module):
    """Self-attention of `num_heads` heads.

    Queries, keys and values are layers of their own, so that heads, and the width inside of them, can be cut
    out: the width follows the tensors, and the scale stays what it was.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.k, self.v))
        heads = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=self.scale
        )
        out: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Patches, a class token and learned positions; blocks; LayerNorm; the class token's logits."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + (height // patch) * (width // patch), dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.output = nn.Linear(dim, num_classes)
        self._draw()

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        logits: Tensor = self.output(self.norm(self.blocks(x))[:, 0])
        return logits

    def _draw(self) -> None:
        for tensor in (self.token, self.positions):
            nn.init.trunc_normal_(tensor, std=STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # As in the authors' code, which starts from an output layer of zeros: its gradients would be
                # all that criteria see at init.
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # LeCun: a patch is a linear layer's input.
        nn.init.kaiming_normal_(self.patches.weight, nonlinearity="linear")
        if self.patches.bias is not None:
            nn.init.zeros_(self.patches.bias)


def vit(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    patch: int = 4,
) -> nn.Module:
    """A vision transformer with a class token; the sizes are those of ViT-Tiny with patches of 4x4.

    `dim` is the width of a token, a multiple of `heads`; `depth` the number of blocks; `patch` the side of a
    patch in pixels, which has to divide the sides of the images.
    """
    for name, value in {"dim": dim, "depth": depth, "heads": heads, "patch": patch}.items():
        check_integer(name, value)
    if dim % heads:
        raise ValueError(f"dim is {dim} and heads is {heads}; give a multiple of heads")
    if input_shape[1] % patch or input_shape[2] % patch:
        raise ValueError(
            f"vit(patch={patch}) takes images whose sides are multiples of {patch}, "
            f"not {input_shape[1]}x{input_shape[2]}; give a patch that divides them"
        )
    return ViT(input_shape, num_classes, dim=dim, depth=depth, heads=heads, patch=patch)
