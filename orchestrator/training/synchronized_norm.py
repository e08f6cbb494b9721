"""Batch norms whose statistics are those of a batch that several devices share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from orchestrator.training.device_group import DeviceGroup
from pruning.masking import Norm


@contextmanager
def synchronized_norms(net: nn.Module, group: DeviceGroup) -> Iterator[None]:
    """Within the block the batch norms of `net` train on the statistics of all devices of the group.

    torch's own SyncBatchNorm is for GPUs alone.
    """
    norms = [module for module in net.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, group)  # type: ignore[method-assign]  # of this one module
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: Norm, group: DeviceGroup, images: Tensor) -> Tensor:
    if not norm.training or not group.shares_batch:  # only the first device evaluates
        own: Tensor = type(norm).forward(norm, images)
        return own
    normalized, mean, variance, count = _NormalizeTogether.apply(images, norm.eps)  # type: ignore[no-untyped-call]
    if norm.running_mean is not None and norm.running_var is not None:
        _update_running(norm, mean, variance * count / (count - 1).clamp_min(1))
    shape = (1, -1, *[1] * (images.dim() - 2))
    if norm.affine:
        normalized = normalized * norm.weight.view(shape) + norm.bias.view(shape)
    output: Tensor = normalized.to(images.dtype)
    return output


@torch.no_grad()
def _update_running(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch's batch norm does, with the unbiased variance."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.momentum is None:  # their plain mean
        factor: Any = 1.0 / norm.num_batches_tracked.to(mean) if norm.num_batches_tracked is not None else 1.0
    else:
        factor = norm.momentum
    for running, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        if running is not None:
            running.copy_((1 - factor) * running + factor * value)


class _NormalizeTogether(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), [N, C, ...], with the statistics of all devices' images.

    Also returns mean and biased variance, [C], and the number of values that each is of. The gradient is that
    of Ioffe & Szegedy (ICML 2015), whose two sums are over all devices, too.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        dims = [0, *range(2, values.dim())]
        own_count = values.new_full((1,), values.numel() // values.shape[1])
        own_variance, own_mean = torch.var_mean(values, dims, correction=0)
        own = torch.cat([own_mean, own_variance, own_count])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([len(own_mean), len(own_mean), 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count
        shape = (1, -1, *[1] * (values.dim() - 2))
        scale = (variance + eps).rsqrt().view(shape)
        normalized = (values - mean.view(shape)) * scale
        ctx.save_for_backward(normalized, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalized, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        normalized, scale, count = ctx.saved_tensors
        dims = [0, *range(2, gradient.dim())]
        sums = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)])
        distributed.all_reduce(sums)
        mean, slope = (sums / count).view(2, *scale.shape)
        return (gradient - mean - normalized * slope) * scale, None
