"""Images of one byte a pixel and channel, scaled as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 256  # values of a byte


@dataclass(frozen=True, eq=False)
class ScaledImages:
    """Images of a split that stay bytes, and are scaled batch by batch: as `images[index]` of a float tensor.

    `pixels` uint8 [N, C, H, W] may be mapped from a file that is larger than the memory, and is shared by all
    splits. `rows` int64 [n] are the positions of this split's images, on the CPU. `table` float32 [C, 256]
    has the scaled value of each byte, on the device that batches are for.
    """

    pixels: Tensor
    rows: Tensor
    table: Tensor

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.pixels.shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return float32 [n, C, H, W] of the images at `index`, on `device`."""
        return self.scale(self.gather(index))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time."""
        starts = range(0, len(self), size)
        return read_batches(self, (torch.arange(start, min(start + size, len(self))) for start in starts))

    def gather(self, index: Tensor | slice) -> Tensor:
        """Return the bytes of the images at `index` on the device of `pixels`, in pinned memory for a GPU."""
        rows = self.rows[index.to(self.rows.device) if isinstance(index, Tensor) else index]
        batch = self.pixels[rows.to(self.pixels.device)]
        return batch.pin_memory() if self.device.type == "cuda" and not batch.is_cuda else batch

    def scale(self, batch: Tensor) -> Tensor:
        """Return float32 values of bytes [n, C, H, W]: looked up, so that every device has the same bits."""
        offsets = torch.arange(0, self.table.numel(), LEVELS, device=self.device)[:, None, None]
        places = batch.to(self.device, non_blocking=True).to(torch.int64) + offsets
        return self.table.take(places)


Images = Tensor | ScaledImages


def read_batches(images: Images, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the images of each batch of indices; of bytes, a thread gathers the next batch meanwhile."""
    if isinstance(images, Tensor):
        # Not index_select: it orders grey images otherwise in memory, and convolutions then have other bits.
        yield from (images[index] for index in batches)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-images") as executor:
        pending: Future[Tensor] | None = None
        for index in batches:
            ready, pending = pending, executor.submit(images.gather, index)
            if ready is not None:
                yield images.scale(ready.result())
        if pending is not None:
            yield images.scale(pending.result())


def scaling_table(*, levels: int, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return float32 [C, 256]: (byte / levels - mean) / deviation, computed as for float images.

    `mean` and `deviation` are float32 [C] on the CPU: a GPU divides by a number in other bits.
    """
    bytes_of = torch.arange(LEVELS, dtype=torch.float32).expand(len(mean), LEVELS).clone().div_(levels)
    return bytes_of.sub_(mean[:, None]).div_(deviation[:, None])
