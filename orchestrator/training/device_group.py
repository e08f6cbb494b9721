"""Several devices that share each batch of a training: all work on its images, and the first one trains.

At every step the first device sends its network to the others, each adds up the gradient of its own part of
the batch, and the sum goes to the first. The optimizer, masks, hooks, evaluation and checkpoints are those of
the first device alone, so that pruning is the same with any number of devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from math import ceil

import torch
from torch import Tensor, distributed, nn


class DeviceGroup:
    """The devices of a training; this is one device by itself. `rank` is this process's place, from 0."""

    rank: int = 0
    size: int = 1
    shares_batch: bool = False  # whether several devices work on the batch of this step

    def part(self, batch: Tensor) -> Tensor:
        """Return the indices of a batch that this device works on."""
        return batch

    def count_passes(self, images: int, micro_batch: int) -> int:
        """Return in how many passes this device works on its part of a batch of so many images."""
        return ceil(images / micro_batch)

    def start_epoch(self, generator: torch.Generator) -> None:
        """Give all devices the first one's generator, from which the order of the images is drawn."""

    def draw_apart(self, generator: torch.Generator) -> None:
        """From here on let each device draw numbers of its own, for augmentation and dropout."""

    def start_step(self, net: nn.Module, images: int) -> None:
        """Give all devices the first one's network, for a batch of so many images."""

    def sum_gradients(self, net: nn.Module) -> None:
        """Add the gradients of all devices up, on the first one."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the devices, on the first one."""
        return values


ALONE = DeviceGroup()


class ProcessGroup(DeviceGroup):
    """Devices with a process each, which torch.distributed has joined; `device` is this process's own.

    A batch with fewer than two images for each device is the first one's alone: batch norm cannot be trained
    on a single image.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.device = device

    def part(self, batch: Tensor) -> Tensor:
        if self._is_shared(len(batch)):
            return batch.tensor_split(self.size)[self.rank]
        return batch if self.rank == 0 else batch[:0]

    def count_passes(self, images: int, micro_batch: int) -> int:
        if not self._is_shared(images):
            return super().count_passes(images, micro_batch) if self.rank == 0 else 0
        # As many on all devices, though their parts may differ by an image: norms wait for each other.
        return min(ceil(ceil(images / self.size) / micro_batch), images // self.size)

    def _is_shared(self, images: int) -> bool:
        return images >= 2 * self.size

    def start_epoch(self, generator: torch.Generator) -> None:
        state = generator.get_state().to(self.device)
        distributed.broadcast(state, 0)
        generator.set_state(state.cpu())

    def draw_apart(self, generator: torch.Generator) -> None:
        if self.rank:
            state = generator.get_state().cpu().numpy().tobytes()
            digest = hashlib.sha256(state + str(self.rank).encode()).digest()
            seed = int.from_bytes(digest[:8], "big") >> 1
            generator.manual_seed(seed)
            torch.manual_seed(seed)

    def start_step(self, net: nn.Module, images: int) -> None:
        self.shares_batch = self._is_shared(images)
        if self.shares_batch:
            with torch.no_grad():
                for tensors in _by_type([*net.parameters(), *net.buffers()]):
                    flat = _flatten(tensors)
                    distributed.broadcast(flat.view(torch.uint8), 0)  # bytes: backends lack some types
                    if self.rank:
                        _unflatten(flat, into=tensors)

    def sum_gradients(self, net: nn.Module) -> None:
        if not self.shares_batch:
            return
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        for group in _by_type(parameters):
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            is_whole, counts = all(p.grad is not None for p in group), [1.0] * len(group)
            # Of what no image of this device went through another one may have a gradient. The common case
            # makes the same numbers without a wait for the device.
            has_grad = (
                group[0].new_ones(len(group))
                if is_whole
                else group[0].new_tensor([float(p.grad is not None) for p in group])
            )
            flat = _flatten([*own, has_grad])
            distributed.reduce(flat, 0)
            if self.rank == 0:
                if not is_whole:
                    counts = flat[-len(group) :].tolist()
                _unflatten(flat, into=own)
                for parameter, grad, count in zip(group, own, counts, strict=True):
                    parameter.grad = grad if count else None

    def sum(self, values: Tensor) -> Tensor:
        total = values.to(self.device, copy=True)
        distributed.reduce(total, 0)
        return total


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return the entries of tensors of one type, one after the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, *, into: Iterable[Tensor]) -> None:
    """Copy entries that `_flatten` put one after the other back into tensors."""
    start = 0
    for tensor in into:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
