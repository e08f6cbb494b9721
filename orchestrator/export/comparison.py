"""Whether a file computes what the network computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.errors import ExportError
from orchestrator.export.form import Run
from pruning.modes import eval_mode

BATCHES = (1, 2, 7)
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """`largest` absolute difference of an output; at most `allowed`, for outputs up to `output`."""

    largest: float
    allowed: float
    output: float
    batches: tuple[int, ...] = BATCHES


def compare(net: nn.Module, run: Run, shape: tuple[int, int, int], *, tolerance: float) -> Comparison:
    """Both on the same random images, in batches of several sizes. ExportError for too large a difference."""
    generator = torch.Generator().manual_seed(SEED)
    largest = output = 0.0
    for size in BATCHES:
        images = torch.randn((size, *shape), generator=generator)
        with torch.no_grad(), eval_mode(net):
            wanted = net(images)
        given = run(images)
        if given.shape != wanted.shape:
            raise ExportError(
                f"batch {size}: it gives {tuple(given.shape)}, the network {tuple(wanted.shape)}"
            )
        if not torch.isfinite(given).all():
            raise ExportError(f"batch {size}: it gives numbers that are not finite")
        largest = max(largest, float((given - wanted).abs().max()))
        output = max(output, float(wanted.abs().max()))
    allowed = tolerance * max(1.0, output)
    if largest > allowed:
        raise ExportError(f"its outputs are off by {largest:.3g} at most, and {allowed:.3g} is allowed")
    return Comparison(largest, allowed, output)
