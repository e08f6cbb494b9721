"""Batches by index, and balanced samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from orchestrator.data.loading import Split
from orchestrator.data.scaled_images import read_images
from orchestrator.data.splits import first_per_class
from orchestrator.errors import SpaceError


def iter_batches(
    size: int, batch_size: int, generator: Generator, *, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Return batches of indices that cover 0 .. size-1 once, shuffled; the last batch may be short.

    A last image on its own joins the batch before it: batch norm has no statistics of one image. All
    of the order is drawn by the call itself, on the generator's device, and moved to `device` at once.
    ValueError for a size below 1.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"size={size}, batch_size={batch_size}: both are 1 or more")
    order = torch.randperm(size, generator=generator, device=generator.device)
    batches = list(torch.split(order.to(device or generator.device), batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return iter(batches)


def count_batches(size: int, batch_size: int) -> int:
    """Return how many batches `iter_batches` returns."""
    full, remainder = divmod(size, batch_size)
    joins = remainder == 1 and batch_size > 1 and full > 0
    return full + (remainder > 0 and not joins)


def balanced_sample(split: Split, *, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return (images, labels) by class, exactly `per_class` of every class. SpaceError if one has fewer."""
    labels = split.labels.cpu().numpy()
    counts = torch.bincount(split.labels.cpu())
    fewest = int(counts[counts > 0].min())
    if not 1 <= per_class <= fewest:
        raise SpaceError(f"{per_class} samples per class; give 1 to {fewest}, the size of the smallest class")
    index = torch.from_numpy(first_per_class(labels, per_class, seed=seed))
    index = index[torch.argsort(split.labels.cpu()[index], stable=True)].to(split.labels.device)
    return read_images(split.images, index), split.labels[index]
