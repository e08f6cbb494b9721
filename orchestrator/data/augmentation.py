"""Augmentation of batches: each image by its own draws, on the device of the images, from a seeded generator.

The text of an augmentation is a method, or several that follow each other: `crop_flip + cutout(size=16)`.

Images that are kept as bytes stay bytes up to the first method without the trait `reads_bytes`: a byte is a
quarter of the memory to move, and torchvision resizes bytes faster than floats.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated

import torch
from torch import Tensor

from orchestrator.data.scaled_images import Images, PixelScale, ScaledImages, read_batches, value_range
from orchestrator.errors import SpaceError
from orchestrator.system.memory import to_device
from pruning.hyperparameters import Between
from pruning.registry import Method, Registry

augmentations = Registry("augmentation", modules=("orchestrator.data.crops", "orchestrator.data.randaugment"))
SEPARATOR = "+"
Pixels = Annotated[int, Between(1, 10_000)]


@dataclass(frozen=True, eq=False)
class AugmentationContext:
    """What augmentations read beside the batch: the generator of all draws, and the training images."""

    generator: torch.Generator
    training_images: Images

    def choices(self, below: int, count: int) -> Tensor:
        """Draw integers 0 .. below-1, [count, 1], on the generator's device."""
        return torch.randint(below, (count, 1), generator=self.generator, device=self.generator.device)

    def integers(self, below: int, count: int) -> Tensor:
        """Draw integers 0 .. below-1, [count, 1], on the device of the images."""
        return self.send(self.choices(below, count))[0]

    def fractions(self, low: float, high: float, count: int, columns: int) -> Tensor:
        """Draw numbers in [low, high), float64 [count, columns], on the generator's device."""
        shape, device = (count, columns), self.generator.device
        drawn = torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)
        return low + (high - low) * drawn

    def uniform(self, low: float, high: float, count: int, columns: int) -> Tensor:
        """Draw numbers in [low, high), float64 [count, columns], on the device of the images."""
        return self.send(self.fractions(low, high, count, columns))[0]

    def send(self, *drawn: Tensor) -> tuple[Tensor, ...]:
        """Return draws [count, columns] of one type on the device of the images, in one copy for all."""
        device = self.training_images.device
        if drawn[0].device.type == device.type:
            return drawn
        together = to_device(torch.cat(drawn, dim=1), device)
        parts: tuple[Tensor, ...] = together.split([tensor.shape[1] for tensor in drawn], dim=1)
        return parts

    def scaled(self, images: Tensor) -> Tensor:
        """Return float32 images of a batch of bytes; a batch of floats is as it was."""
        if images.dtype != torch.uint8 or not isinstance(self.training_images, ScaledImages):
            return images
        return self.training_images.scale(images)

    def byte_scale(self, images: Tensor) -> PixelScale | None:
        """Return the scale of a batch of bytes, and None for a batch of floats."""
        is_bytes = images.dtype == torch.uint8
        scaled = self.training_images
        return scaled.pixel_scale if is_bytes and isinstance(scaled, ScaledImages) else None

    @cached_property
    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest pixel of each channel of the training images, [C, 1, 1]."""
        lowest, highest = value_range(self.training_images)
        return lowest[:, None, None], highest[:, None, None]


class Augmenter:
    """The methods of an augmentation's text, in their order. SpaceError for a text that is none."""

    def __init__(self, text: str, generator: torch.Generator, training_images: Images) -> None:
        try:
            self.methods = parse_augmentation(text)
        except ValueError as error:
            raise SpaceError(str(error)) from error
        self.context = AugmentationContext(generator, training_images)

    @property
    def draws_by_micro_batch(self) -> bool:
        """Whether draws are made for each micro-batch, as those of earlier results were."""
        return all(method.traits.get("draws_by_micro_batch") for method in self.methods)

    def read_batches(self, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Yield the training images of each batch of indices, in the form in which they are augmented."""
        images = self.context.training_images
        has_bytes = isinstance(images, ScaledImages) and images.pixel_scale.has_all_levels
        reads_bytes = bool(self.methods[0].traits.get("reads_bytes"))
        return read_batches(images, batches, as_bytes=has_bytes and reads_bytes)

    def __call__(self, images: Tensor) -> Tensor:
        """Return a batch [N, C, H, W] augmented, each image by its own draws; `images` stay as they are.

        Bytes of training images that are kept as bytes become float32.
        """
        for method in self.methods:
            if not method.traits.get("reads_bytes"):
                images = self.context.scaled(images)
            images = method(images, self.context)
        return self.context.scaled(images)


def rounds_bytes(text: str) -> bool:
    """Whether an augmentation has other results on bytes, which it rounds, than on floats."""
    return any(method.traits.get("rounds_bytes") for method in parse_augmentation(text))


def augment(images: Tensor, generator: torch.Generator, *, kind: str) -> Tensor:
    """Augment a batch [N, C, H, W] of training images by an augmentation's text.

    SpaceError for a text that is none.
    """
    return Augmenter(kind, generator, images)(images)


@lru_cache(maxsize=1024)
def parse_augmentation(text: str) -> tuple[Method, ...]:
    """Return the methods of an augmentation's text. ValueError for a text that is none."""
    methods = tuple(augmentations.get(part.strip()) for part in split_text(text))
    names = [method.name for method in methods]
    if len(methods) > 1 and "none" in names:
        raise ValueError(f"{text:.80}: none stands alone; leave it out")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{text:.80}: {repeated} stands twice; name each augmentation once")
    return methods


def split_text(text: str) -> list[str]:
    """Split an augmentation's text at every + outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == SEPARATOR and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def augmentation_conflict(text: str, input_shape: tuple[int, int, int]) -> str | None:
    """Return why images of a shape [C, H, W] cannot be augmented so; None where they can."""
    for method in parse_augmentation(text):
        check = method.traits.get("conflict")
        if check is not None and (reason := check(input_shape, method.options)):
            return str(reason)
    return None


def _cutout_conflict(input_shape: tuple[int, int, int], options: Mapping[str, int]) -> str | None:
    size, side = options["size"], min(input_shape[1:])
    if size <= side:
        return None
    return f"cutout(size={size}) is larger than images of {input_shape[1]}x{input_shape[2]}; give 1 to {side}"


@augmentations.register(summary="the images as they are", draws_by_micro_batch=True)
def none(images: Tensor, context: AugmentationContext) -> Tensor:
    """Return the images as they are."""
    return images


@augmentations.register(
    summary="a square of zeros in each image",
    paper="DeVries & Taylor, 2017",
    conflict=_cutout_conflict,
)
def cutout(images: Tensor, context: AugmentationContext, *, size: Pixels = 8) -> Tensor:
    """Set a square around a random pixel to zero, the mean colour once scaled.

    It begins `size` // 2 pixels before that pixel, and what lies outside of the image is cut off, as in the
    authors' code: 16 for CIFAR-10, 8 for CIFAR-100.
    """
    count, _, height, width = images.shape
    centres = context.send(context.choices(height, count), context.choices(width, count))
    rows, columns = _in_window(centres[0], size, height), _in_window(centres[1], size, width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _in_window(centre: Tensor, size: int, length: int) -> Tensor:
    """Return which of `length` positions lie in the window around each centre, [N, length]."""
    position = torch.arange(length, device=centre.device)
    start = centre - size // 2
    return (position >= start) & (position < start + size)
