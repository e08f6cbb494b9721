"""What layers answer in a probe: noise, with some units perturbed; and what has changed of what is read.

The copies of an image lie side by side along one dimension of every tensor; the first is not perturbed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CHANGE = 1e-12  # of the largest value that is read; float64 itself is off by 1e-16 or so
PUSHES = ("both", "up", "down", "low")
AGAIN = tuple(f"both {number}" for number in range(1, 17))  # other draws of "both"


def batch_dim(first: Tensor, second: Tensor | None, both: Tensor | None) -> int | None:
    """Return the dimension along which two images lie one after the other; None where there is none."""
    if second is None or both is None or first.shape != second.shape or first.dim() != both.dim():
        return None
    for dim in range(first.dim()):
        shape = list(first.shape)
        shape[dim] *= 2
        if shape == list(both.shape):
            scale = float(both.abs().max())
            if not math.isfinite(scale):  # weights of NaN: the check of removals refuses the network
                return None
            if torch.allclose(torch.cat([first, second], dim), both, rtol=1e-6, atol=1e-9 * scale):
                return dim
    return None


def reader_dim(module: nn.Module | None, read: Tensor) -> int:
    """Return where the columns of a reader lie, counted from the end: the batch may be split in front."""
    if module is None or isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.modules.conv._ConvNd):
        return -len(module.kernel_size) - 1
    return 1 - read.dim()


def split_copies(read: Tensor, batch: int | None, copies: int) -> Tensor | None:
    """Return [copies, ...]: the copies of a batch one by one; None where they do not lie side by side."""
    if batch is None:
        return None
    stacked: Tensor = read.movedim(batch, 0).unflatten(0, (copies, -1)).movedim(1, batch + 1)
    return stacked


def find_changes(copies: Tensor | None, dim: int, columns: int, passes: int) -> Tensor:
    """Return bool [passes, columns]: where a copy differs from the first."""
    if copies is None:
        return torch.zeros(passes, columns, dtype=torch.bool)
    base = copies[:1]
    differences = (copies[1:] - base).abs_().nan_to_num_(nan=float("inf"), posinf=float("inf"))
    per_column = differences.movedim(dim, 1).flatten(2).amax(2)
    finite = base[torch.isfinite(base)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return (per_column > CHANGE * scale).cpu()


def perturbed_answer(
    answer: Tensor, batch: int | None, copies: int, codes: Tensor | None, push: str, dim: int
) -> Tensor:
    """Return the answer once for each copy, each but the first with its own units perturbed."""
    if batch is None:
        return (
            answer.clone() if codes is None else answer + _push(answer, push) * _along(codes[0], dim, answer)
        )
    stacked = answer[None].expand(copies, *answer.shape).clone()
    if codes is not None:
        pushed = _push(answer, push)
        for number, code in enumerate(codes, start=1):
            stacked[number].add_(pushed * _along(code, dim, answer))
    # One image after the other along the dimension of the batch, as the network itself lays them.
    return stacked.movedim(0, batch).flatten(batch, batch + 1)


def noise_like(recorded: Tensor, push: str, *, seed: int) -> Tensor:
    """Return noise of deviation 1 in the shape of a layer's answer: little is closed or saturated then.

    It is positive where units are pushed up or down: a gate or ReLU that is closed hides what it would pass
    on. "low" is for what acts on negative values alone, the slopes of a PReLU.
    """
    generator = torch.Generator().manual_seed(1000 * (*PUSHES, *AGAIN).index(push) + seed)
    noise = torch.randn(recorded.shape, generator=generator, dtype=torch.float64).to(recorded)
    if push.startswith("both"):
        return noise
    return noise.abs_().add_(0.1).mul_(-1.0 if push == "low" else 1.0)


def _push(answer: Tensor, push: str) -> Tensor:
    """Return what is added to perturbed units: upwards or downwards beyond zero, or both ways by less."""
    generator = torch.Generator().manual_seed(answer.numel() + (push in AGAIN and AGAIN.index(push) + 1))
    size = torch.rand(answer.shape, generator=generator, dtype=torch.float64).add_(0.5).to(answer)
    largest = float(answer.abs().max())
    if push.startswith("both"):
        sign = torch.rand(answer.shape, generator=generator, dtype=torch.float64).to(answer).sub_(0.5).sign_()
        return size.mul_(sign).mul_((3.0 if push in AGAIN else 0.5) * largest)
    return size.mul_((3.0 if push == "up" else -3.0) * largest)


def _along(code: Tensor, dim: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return code.to(like).reshape(shape)
