"""Hold the outputs of a file against those of its network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.errors import ExportError
from orchestrator.model_io.formats import Predict, interface_of
from pruning.eval_mode import eval_mode

BATCHES = (1, 2, 7)  # several, as a file may be fixed to one batch size
SEED = 0


@dataclass(frozen=True)
class OutputComparison:
    """`largest` absolute difference of an output; `allowed` is the limit, for outputs up to `output`."""

    largest: float
    allowed: float
    output: float
    batches: tuple[int, ...] = BATCHES


def compare_outputs(
    net: nn.Module, predict: Predict, shape: tuple[int, int, int], *, tolerance: float
) -> OutputComparison:
    """Run a network and its file on the same random images, in batches of several sizes.

    The images are those that the network takes: normal numbers for a bare one, or pixels. Raises ExportError
    where outputs differ by more than `tolerance` times the largest output (at least 1).
    """
    generator, interface = torch.Generator().manual_seed(SEED), interface_of(net)
    largest = output = 0.0
    for size in BATCHES:
        images = interface.random_images(size, shape, generator)
        with torch.no_grad(), eval_mode(net):
            expected = net(images)
        actual = predict(images)
        if actual.shape != expected.shape:
            shapes = f"it gives {tuple(actual.shape)}, the network {tuple(expected.shape)}"
            raise ExportError(f"batch {size}: {shapes}")
        if not torch.isfinite(actual).all():
            raise ExportError(f"batch {size}: it gives numbers that are not finite")
        largest = max(largest, float((actual - expected).abs().max()))
        output = max(output, float(expected.abs().max()))
    allowed = tolerance * max(1.0, output)
    if largest > allowed:
        raise ExportError(f"its outputs are off by {largest:.3g} at most, and {allowed:.3g} is allowed")
    return OutputComparison(largest, allowed, output)
