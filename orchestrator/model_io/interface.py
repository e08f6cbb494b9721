"""What an exported network takes and gives: pixels or scaled floats, logits or probabilities."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.loading import Scaling
from orchestrator.errors import ExportError, UsageError, unknown_name

INPUTS = {"float32": torch.float32, "uint8": torch.uint8}
OUTPUTS = ("logits", "probabilities")
FORMULA = "(pixel / divide_by - mean) / deviation"
Json = Any  # what json can write


@dataclass(frozen=True)
class Interface:
    """The input and the output of a file.

    With `scaling` the network scales its images itself: it takes pixels, as whole numbers from 0 to
    `scaling.levels` (uint8) or divided by that number (float32, in [0, 1]). Without, it is bare: it takes
    floats that are scaled already.
    """

    scaling: Scaling | None = None
    input: str = "float32"
    output: str = "logits"

    @property
    def dtype(self) -> torch.dtype:
        return INPUTS[self.input]

    @property
    def shifts(self) -> bool:
        """Whether scaling does more than to divide by the number of levels."""
        scale = self.scaling
        return scale is not None and (set(scale.mean) != {0.0} or set(scale.deviation) != {1.0})

    @property
    def is_plain(self) -> bool:
        """Whether the network itself takes and gives this, so that nothing is put around it."""
        return self.input == "float32" and self.output == "logits" and not self.shifts

    @property
    def range(self) -> list[float] | None:
        """The lowest and the highest number of an image; None for a bare network."""
        if self.scaling is None:
            return None
        return [0, self.scaling.levels] if self.input == "uint8" else [0, 1]

    def feed(self, images: Tensor) -> Tensor:
        """Return float32 images [N, C, H, W], scaled as their data set does, as this file takes them."""
        if self.scaling is None:
            return images
        mean, deviation = (_by_channel(values) for values in (self.scaling.mean, self.scaling.deviation))
        # Pixels are whole numbers, which rounding brings back exactly.
        pixels = ((images * deviation + mean) * self.scaling.levels).round()
        return pixels.to(torch.uint8) if self.input == "uint8" else pixels / self.scaling.levels

    def random_images(self, size: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Return random images [size, C, H, W] from the whole range of the input."""
        if self.scaling is None:
            return torch.randn((size, *shape), generator=generator)
        if self.input == "uint8":
            levels = self.scaling.levels + 1
            return torch.randint(levels, (size, *shape), generator=generator, dtype=torch.uint8)
        return torch.rand((size, *shape), generator=generator)

    def normalisation(self) -> dict[str, Json]:
        """Return how pixels become the input, for FILE.json; of a network with its scaling inside."""
        if self.scaling is None:
            raise ValueError("a bare network takes what its data set makes of pixels")
        channels = len(self.scaling.mean)
        divide_by = 1 if self.input == "uint8" else self.scaling.levels
        zeros, ones = [0.0] * channels, [1.0] * channels
        return {"divide_by": divide_by, "mean": zeros, "deviation": ones, "formula": FORMULA}


BARE = Interface()


def check_interface(*, input: str, output: str, scaling: bool) -> None:
    """Raise UsageError for unknown words, and for bytes where the scaling is left out."""
    for kind, name, known in (("input", input, tuple(INPUTS)), ("output", output, OUTPUTS)):
        if name not in known:
            raise UsageError(unknown_name(kind, name, known))
    if input == "uint8" and not scaling:
        raise UsageError("--input uint8 is pixels, and with --no-scaling a network takes scaled floats")


class Shipped(nn.Module):
    """A network with its scaling before it, and a softmax behind it where probabilities are asked for.

    The scaling is that of `data.scaled_images.PixelScale`, with the same bits. With `is_half`, the network
    computes in float16 between a float32 input and a float32 output.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, interface: Interface, *, is_half: bool = False) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).half() if is_half else net
        self.interface, self.is_half = interface, is_half
        if interface.scaling is not None and interface.shifts:
            self.register_buffer("mean", _by_channel(interface.scaling.mean))
            self.register_buffer("deviation", _by_channel(interface.scaling.deviation))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scale = self.interface.scaling
        if scale is not None and self.interface.input == "uint8":
            images = images.to(torch.float32) / scale.levels
        if self.interface.shifts:
            images = (images - self.mean) / self.deviation
        logits: Tensor = self.net(images.half()).float() if self.is_half else self.net(images)
        return logits.softmax(1) if self.interface.output == "probabilities" else logits

    def check_runs(self, shape: tuple[int, int, int]) -> None:
        """Raise ExportError where the network cannot compute in float16: it makes float32 numbers itself."""
        images = torch.zeros((2, *shape), dtype=self.interface.dtype)
        try:
            with torch.no_grad():
                self(images)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise ExportError(
                f"this network does not run in float16: {reason}; leave --quantize out"
            ) from error


def _by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
