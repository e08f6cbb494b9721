"""Augmentation of batches: each image by its own draws, on the device of the images, from a seeded generator.

The text of an augmentation is a method, or several that follow each other: `crop_flip + cutout(size=16)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn import functional

from orchestrator.data.scaled_images import Images, value_range
from orchestrator.errors import SpaceError
from pruning.hyperparameters import Between
from pruning.registry import Method, Registry

augmentations = Registry("augmentation", modules=("orchestrator.data.randaugment",))
SEPARATOR = "+"
COPIED_VALUES = 1500  # of an image that is cropped and flipped by copying its rows
FLIPPED_VALUES = 10_000  # of an image that torch flips faster than NumPy copies it
CROP_TRIES = 10  # as in torchvision's RandomResizedCrop, before the crop from the centre
Fraction = Annotated[float, Between(0.0, 1.0, open_low=True)]
Pixels = Annotated[int, Between(1, 10_000)]


@dataclass(frozen=True, eq=False)
class AugmentationContext:
    """What augmentations read beside the batch: the generator of all draws, and the training images."""

    generator: Generator
    training_images: Images

    def choices(self, below: int, count: int) -> Tensor:
        """Draw integers 0 .. below-1, [count, 1], on the generator's device."""
        return torch.randint(below, (count, 1), generator=self.generator, device=self.generator.device)

    def integers(self, below: int, count: int) -> Tensor:
        """Draw integers 0 .. below-1, [count, 1], on the device of the images."""
        return self.choices(below, count).to(self.training_images.device)

    def uniform(self, low: float, high: float, count: int, columns: int) -> Tensor:
        """Draw numbers in [low, high), float64 [count, columns], on the device of the images."""
        shape, device = (count, columns), self.generator.device
        drawn = torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)
        return (low + (high - low) * drawn).to(self.training_images.device)

    @cached_property
    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest pixel of each channel of the training images, [C, 1, 1]."""
        lowest, highest = value_range(self.training_images)
        return lowest[:, None, None], highest[:, None, None]


class Augmenter:
    """The methods of an augmentation's text, in their order. SpaceError for a text that is none."""

    def __init__(self, text: str, generator: Generator, training_images: Images) -> None:
        try:
            self.methods = parse_augmentation(text)
        except ValueError as error:
            raise SpaceError(str(error)) from error
        self.context = AugmentationContext(generator, training_images)

    @property
    def draws_by_micro_batch(self) -> bool:
        """Whether draws are made for each micro-batch, as those of earlier results were."""
        return all(method.traits.get("draws_by_micro_batch") for method in self.methods)

    def __call__(self, images: Tensor) -> Tensor:
        """Return a batch [N, C, H, W] augmented, each image by its own draws; `images` stay as they are."""
        for method in self.methods:
            images = method(images, self.context)
        return images


def augment(images: Tensor, generator: Generator, *, kind: str) -> Tensor:
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


@augmentations.register(summary="left and right swapped in half of the images", draws_by_micro_batch=True)
def flip(images: Tensor, context: AugmentationContext) -> Tensor:
    """Swap left and right in half of the images."""
    return _crop_flip(images, context, pad=0)


@augmentations.register(
    summary="flipped, and moved by up to an eighth of the height",
    paper="He et al., CVPR 2016",
    draws_by_micro_batch=True,
)
def crop_flip(images: Tensor, context: AugmentationContext) -> Tensor:
    """Swap left and right in half of the images, and move each by up to an eighth of the height.

    That is 4 pixels at 32 and at 28, and 1 at 8; zeros (the mean colour, once scaled) come in from outside.
    """
    return _crop_flip(images, context, pad=max(1, (images.shape[2] + 4) // 8))


def _crop_flip(images: Tensor, context: AugmentationContext, *, pad: int) -> Tensor:
    count, channels, height, width = images.shape
    is_flipped = context.integers(2, count) == 1
    left, top = context.integers(2 * pad + 1, count), context.integers(2 * pad + 1, count)
    values = channels * height * width
    if images.device.type == "cpu" and pad == 0 and values >= FLIPPED_VALUES:
        return _flipped(images, is_flipped)
    if images.device.type == "cpu" and values >= COPIED_VALUES:
        return _copied_windows(images, top - pad, left - pad, is_flipped)
    across = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(is_flipped, width - 1 - across, across) + left
    rows = torch.arange(height, device=images.device) + top
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    # One gather over flat pixels: 4 to 6 times the speed of indexing by row and column
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    return padded.gather(2, pixels[:, None, :].expand(count, channels, -1)).view(images.shape)


def _flipped(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Return each image flipped or as it is, image by image, so that each stays in the processor's cache."""
    out = torch.empty(images.shape, dtype=images.dtype)
    for image, target, flipped in zip(images, out, is_flipped[:, 0].tolist(), strict=True):
        target.copy_(image.flip(2) if flipped else image)
    return out


def _copied_windows(images: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor) -> Tensor:
    """Return the window of each image that begins at (top, left), flipped or not, with zeros from outside.

    Image by image on the CPU, which copies rows; as fast as a gather from 1,500 values an image on.
    """
    windows = torch.zeros(images.shape, dtype=images.dtype)
    source, target = images.numpy(), windows.numpy()
    height, width = images.shape[2:]
    draws = zip(top[:, 0].tolist(), left[:, 0].tolist(), is_flipped[:, 0].tolist(), strict=True)
    for image, window, (down, right, flipped) in zip(source, target, draws, strict=True):
        rows, columns = (
            slice(max(0, -start), side - max(0, start)) for start, side in ((down, height), (right, width))
        )
        pixels = image[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
        (window[:, :, ::-1] if flipped else window)[:, rows, columns] = pixels
    return windows


@augmentations.register(
    summary="a random part of each image, resized to the whole", paper="Szegedy et al., CVPR 2015"
)
def resized_crop(
    images: Tensor, context: AugmentationContext, *, scale: Fraction = 0.08, ratio: Fraction = 0.75
) -> Tensor:
    """Resize a random part of each image to the size of the image, bilinearly, as torchvision does.

    The part has `scale` to 1 of the area, and `ratio` to 1 / `ratio` as width by height, uniform in its
    logarithm. It does not flip: `resized_crop + flip` is the usual augmentation of ImageNet.
    """
    count, _, height, width = images.shape
    area = context.uniform(scale, 1.0, count, CROP_TRIES) * (height * width)
    aspect = context.uniform(math.log(ratio), -math.log(ratio), count, CROP_TRIES).exp()
    crop = _first_that_fits((area / aspect).sqrt().round(), (area * aspect).sqrt().round(), images, ratio)
    place = context.uniform(0.0, 1.0, count, 2)
    free = torch.stack([height - crop[:, 0], width - crop[:, 1]], dim=1)
    start = (place * (free + 1)).floor().minimum(free)
    rows = _sampled_positions(start[:, 0], crop[:, 0], height)
    columns = _sampled_positions(start[:, 1], crop[:, 1], width)
    # Filled in: stacking float64 and converting it after takes four times as long.
    grid = torch.empty((count, height, width, 2), dtype=images.dtype, device=images.device)
    grid[..., 0], grid[..., 1] = columns.to(images.dtype)[:, None, :], rows.to(images.dtype)[:, :, None]
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _first_that_fits(heights: Tensor, widths: Tensor, images: Tensor, ratio: float) -> Tensor:
    """Return (height, width) [N, 2] of each image's first crop that fits, else of the largest allowed."""
    height, width = images.shape[2:]
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    largest = min(height, round(width / ratio)), min(width, round(height / ratio))
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    crop = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    return torch.where(fits.any(1, keepdim=True), crop, crop.new_tensor(largest))


def _sampled_positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where `size` pixels of a crop are read, [N, size] in [-1, 1] between the first and last pixel.

    As torch's `interpolate` resizes the crop alone: nothing outside of it is read.
    """
    pixel = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    inside = (pixel * (length / size)[:, None] - 0.5).clamp(min=0.0).minimum(length[:, None] - 1)
    return 2 * (start[:, None] + inside) / max(size - 1, 1) - 1


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
    rows = _in_window(context.integers(height, count), size, height)
    columns = _in_window(context.integers(width, count), size, width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _in_window(centre: Tensor, size: int, length: int) -> Tensor:
    """Return which of `length` positions lie in the window around each centre, [N, length]."""
    position = torch.arange(length, device=centre.device)
    start = centre - size // 2
    return (position >= start) & (position < start + size)
