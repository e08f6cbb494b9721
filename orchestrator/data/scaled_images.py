"""Images of one byte a pixel and channel, scaled as they are read."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.decoded_files import ImageFile
from orchestrator.data.threads import in_threads

LEVELS = 256  # values of a byte
READ_IMAGES = 256
SMALL_VALUES = 1 << 17  # of a batch that is not worth a second thread
CACHED_VALUES = 1 << 17  # as floats, that stay in a processor's cache from one operation to the next


def pixels_of(array: NDArray[np.uint8]) -> Tensor:
    """Return bytes [N, C, H, W] without a copy, with the strides that `array[index]` has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
        pixels = torch.from_numpy(array)
    strides = torch.from_numpy(array[np.zeros(1, dtype=np.int64)]).stride()
    return (
        pixels.as_strided(pixels.shape, (pixels.stride(0), *strides[1:]))
        if pixels.is_contiguous()
        else pixels
    )


def images_in_cache(shape: Sequence[int]) -> int:
    """Return how many of images [N, C, H, W] are best worked on at once on a CPU, 1 or more."""
    return max(1, CACHED_VALUES // max(1, prod(shape[1:])))


@dataclass(frozen=True, eq=False)
class PixelScale:
    """(byte / levels - mean) / deviation; `mean` and `deviation` are float32 [C], on the CPU."""

    levels: int
    mean: Tensor
    deviation: Tensor

    @property
    def has_all_levels(self) -> bool:
        """Whether pixels are from 0 to 255, and not of fewer shades, to which nothing is to be rounded."""
        return self.levels == LEVELS - 1

    def on_cpu(self, pixels: Tensor) -> Tensor:
        """Return float32 images of bytes [N, C, H, W] on the CPU, in the same order in memory."""
        images = torch.empty_like(pixels, dtype=torch.float32)
        source, target = pixels.numpy(), images.numpy()
        if pixels.numel() <= SMALL_VALUES:
            self.write(target, source)
        else:
            values = prod(pixels.shape[1:])
            in_threads(lambda part: self.write(target[part], source[part]), len(pixels), values=values)
        return images

    def write(self, images: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
        """Write the scaled values of bytes [N, C, H, W] into `images`, a few at a time, in the cache."""
        mean, deviation = (value.numpy()[:, None, None] for value in (self.mean, self.deviation))
        step = images_in_cache(pixels.shape)
        for start in range(0, len(pixels), step):
            block = images[start : start + step]
            np.copyto(block, pixels[start : start + step])
            np.divide(block, np.float32(self.levels), out=block)
            np.subtract(block, mean, out=block)
            np.divide(block, deviation, out=block)

    def to_bytes(self, images: Tensor) -> Tensor:
        """Return the bytes of scaled images [N, C, H, W], the same ones, in the same order in memory."""
        pixels = torch.empty_like(images, dtype=torch.uint8)
        mean, deviation = (value.to(images.device)[:, None, None] for value in (self.mean, self.deviation))
        for block, target in zip(images.split(READ_IMAGES), pixels.split(READ_IMAGES), strict=True):
            # Off by less than 0.001: floats have 24 bits
            target.copy_((block * deviation).add_(mean).mul_(self.levels).round_())
        return pixels

    @cached_property
    def table(self) -> Tensor:
        """The scaled value of each byte, float32 [C, 256] on the CPU."""
        values = torch.arange(LEVELS, dtype=torch.uint8).expand(1, len(self.mean), 1, LEVELS)
        return self.on_cpu(values.contiguous())[0, :, 0]


@dataclass(frozen=True, eq=False)
class ScaledImages:
    """Images of a split that stay bytes, and are scaled batch by batch: as `images[index]` of a float tensor.

    `pixels` uint8 [N, C, H, W] may be mapped from a file that is larger than the memory, and is shared by all
    splits. `rows` int64 [n] are the positions of this split's images, on the same device. Batches are for
    `device`, which may be another. Images that are mapped are read from `file`.
    """

    pixels: Tensor
    rows: Tensor
    pixel_scale: PixelScale
    device: torch.device
    file: ImageFile | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.pixels.shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return float32 [n, C, H, W] of the images at `index`, on `device`."""
        return self.finish(self.prepare(index))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time."""
        starts = range(0, len(self), size)
        index = torch.arange(len(self), device=self.pixels.device)
        return read_batches(self, (index[start : start + size] for start in starts))

    def prepare(self, index: Tensor | slice) -> Tensor:
        """Return the images at `index`, scaled for a CPU, and as bytes, in pinned memory, for a GPU."""
        batch = self.gather(index)
        return self.pixel_scale.on_cpu(batch) if self.device.type == "cpu" else batch

    def finish(self, batch: Tensor) -> Tensor:
        """Return what `prepare` returned as float32 [n, C, H, W] on `device`, with the same bits on each."""
        return batch if self.device.type == "cpu" else self.look_up(batch)

    def gather(self, index: Tensor | slice) -> Tensor:
        """Return the bytes of the images at `index`, in pinned memory where they are for a GPU."""
        rows = self.rows[index.to(self.rows.device) if isinstance(index, Tensor) else index]
        # torch keeps pinned memory that is no longer in use, so that the batches of an epoch are a ring.
        pinned = self.device.type == "cuda" and not self.pixels.is_cuda
        if self.file is None and (self.pixels.is_cuda or not self.pixels.is_contiguous()):
            return _rows_of(self.pixels, rows)
        out = _empty_like(self.pixels, len(rows), pinned=pinned)
        if self.file is None:  # by NumPy, as torch's threads are for the network while this one reads ahead
            np.take(self.pixels.numpy(), rows.numpy(), axis=0, out=out.numpy(), mode="clip")
            return out
        self.file.read_into(out.as_strided((out.numel(),), (1,)).numpy(), rows.numpy())
        return out

    def send(self, batch: Tensor) -> Tensor:
        """Return gathered bytes on `device`."""
        return batch.to(self.device, non_blocking=True)

    def scale(self, batch: Tensor) -> Tensor:
        """Return bytes as float32 on `device`, with the same bits on each."""
        return self.pixel_scale.on_cpu(batch) if self.device.type == "cpu" else self.look_up(batch)

    def look_up(self, batch: Tensor) -> Tensor:
        """Return the values of bytes from a table: a GPU divides by a number in other bits."""
        return self._table.take(self.send(batch).to(torch.int64) + self._offsets)

    @cached_property
    def _table(self) -> Tensor:
        return self.pixel_scale.table.to(self.device)

    @cached_property
    def _offsets(self) -> Tensor:
        return torch.arange(0, self._table.numel(), LEVELS, device=self.device)[:, None, None]

    @cached_property
    def value_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each channel, [C]; all images are read once."""
        starts = range(0, len(self), READ_IMAGES)
        ranges = [
            (block.amin((0, 2, 3)), block.amax((0, 2, 3)))
            for start in starts
            for block in (self.gather(slice(start, start + READ_IMAGES)),)
        ]
        lowest, highest = (torch.stack(values).cpu() for values in zip(*ranges, strict=True))
        channels, table = torch.arange(lowest.shape[1]), self.pixel_scale.table
        ends = lowest.amin(0).long(), highest.amax(0).long()
        low, high = (table[channels, end].to(self.device) for end in ends)
        return low, high


Images = Tensor | ScaledImages


def read_images(images: Images, index: Tensor) -> Tensor:
    """Return float32 [n, C, H, W] of the images at `index`."""
    return _rows_of(images, index) if isinstance(images, Tensor) else images[index]


def index_device(images: Images) -> torch.device:
    """Return the device on which an index of the images is used."""
    return images.device if isinstance(images, Tensor) else images.pixels.device


def value_range(images: Images) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each channel, [C]."""
    if not isinstance(images, Tensor):
        return images.value_range
    # Channel by channel and image by image, so that nothing as large as the images is allocated.
    return images.amin((2, 3)).amin(0), images.amax((2, 3)).amax(0)


def as_bytes(images: Images, pixel_scale: PixelScale | None) -> Images:
    """Return images as bytes, on their device; as they are without a scale of bytes from 0 to 255."""
    if isinstance(images, ScaledImages) or pixel_scale is None or not pixel_scale.has_all_levels:
        return images
    rows = torch.arange(len(images), device=images.device)
    return ScaledImages(pixel_scale.to_bytes(images), rows, pixel_scale, images.device)


def read_batches(
    images: Images, batches: Iterable[Tensor], *, as_bytes: bool = False
) -> Generator[Tensor, None, None]:
    """Yield the images of each batch of indices; of bytes, a thread prepares the next batch meanwhile.

    With `as_bytes` images that are kept as bytes come as these, on the device of their batches.
    """
    if isinstance(images, Tensor):
        yield from (_rows_of(images, index) for index in batches)
        return
    prepare, finish = (images.gather, images.send) if as_bytes else (images.prepare, images.finish)
    if images.pixels.is_cuda:
        yield from (finish(prepare(index)) for index in batches)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-images") as executor:
        pending: Future[Tensor] | None = None
        for index in batches:
            ready, pending = pending, executor.submit(prepare, index)
            if ready is not None:
                yield finish(ready.result())
        if pending is not None:
            yield finish(pending.result())


def _rows_of(images: Tensor, index: Tensor) -> Tensor:
    """Return `images[index]`, in the same order in memory."""
    if not images.is_contiguous():
        return images[index]
    # Seven times as fast as images[index], into its strides: of a side of 1, such as grey images have, they
    # are arbitrary, and yet convolutions have other bits with others.
    return torch.index_select(images, 0, index, out=_empty_like(images, len(index)))


def _empty_like(images: Tensor, count: int, *, pinned: bool = False) -> Tensor:
    return torch.empty_strided(
        (count, *images.shape[1:]),
        (prod(images.shape[1:]), *images.stride()[1:]),
        dtype=images.dtype,
        device=images.device,
        pin_memory=pinned,
    )
