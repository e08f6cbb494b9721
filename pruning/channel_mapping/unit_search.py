"""Which units of a layer several columns read: a search by ever smaller blocks of units.

A block of units that changes no column holds no unit that does; of the others each part is perturbed. Blocks
that may change no column in common share a pass, so that an attention takes about as many passes as a head
has units, and not one for each unit of all heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_BLOCKS, PARTS = 16, 4  # of a layer, and of each of its blocks after that


@dataclass
class UnitSearch:
    """What is known of the units of one layer. `readers`: reader -> bool [columns], those that are unclear.

    `starts`, int64 [blocks], are the first units of the blocks, each of `size` units; `open`, bool
    [blocks, columns of all readers], are the columns that may read a unit of the block; `order`, int64
    [blocks], is the pass of each block, of `passes` passes.
    """

    units: int
    readers: Mapping[str, Tensor]
    size: int
    starts: Tensor
    open: Tensor
    order: Tensor
    passes: int = 0

    @classmethod
    def start(cls, units: int, unclear: Mapping[str, Tensor]) -> UnitSearch:
        columns = torch.cat(list(unclear.values()))[None]
        size = FIRST_BLOCKS
        while size < units:
            size *= PARTS
        start = torch.zeros(1, dtype=torch.int64)
        return cls(units, unclear, size, start, columns, order=start)

    @property
    def is_open(self) -> bool:
        """Return whether a block of several units changes a column."""
        return self.size > 1 and len(self.starts) > 0

    def split(self) -> None:
        """Split every block, and give the parts to passes in which no other part may change its columns."""
        parts = min(self.size, PARTS if len(self.starts) > 1 else FIRST_BLOCKS)
        self.size //= parts
        self.starts = (self.starts[:, None] + self.size * torch.arange(parts)).flatten()
        is_inside = self.starts < self.units
        self.open = self.open.repeat_interleave(parts, 0)[is_inside]
        self.starts = self.starts[is_inside]
        self.order, self.passes = _share_passes(self.open)

    def codes(self, passes: int) -> Tensor:
        """Return bool [passes, units]: the units of the blocks of each pass."""
        codes = torch.zeros(passes, self.units, dtype=torch.bool)
        for offset in range(self.size):
            is_inside = self.starts + offset < self.units
            codes[self.order[is_inside], (self.starts + offset)[is_inside]] = True
        return codes

    def narrow(self, changed: Mapping[str, Tensor]) -> None:
        """Close the columns that did not change in the pass of a block; blocks without any are dropped."""
        self.open &= torch.cat([changed[reader] for reader in self.readers], 1)[self.order]
        is_read = self.open.any(1)
        self.starts, self.open = self.starts[is_read], self.open[is_read]

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return reader -> (columns, units), of blocks of one unit."""
        parts = self.open.split([len(columns) for columns in self.readers.values()], 1)
        result = {}
        for reader, part in zip(self.readers, parts, strict=True):
            pairs = part.nonzero()
            result[reader] = pairs[:, 1], self.starts[pairs[:, 0]]
        return result


def _share_passes(columns: Tensor) -> tuple[Tensor, int]:
    """Return the pass of each row of bool [rows, columns], and their number: no two of a pass overlap."""
    numbers, pass_columns = torch.zeros(len(columns), dtype=torch.int64), torch.zeros_like(columns)
    passes = 0
    for row, own in enumerate(columns):
        positions = own.nonzero().flatten()
        is_free = ~pass_columns[:passes, positions].any(1)
        number = int(is_free.int().argmax()) if is_free.any() else passes
        passes = max(passes, number + 1)
        pass_columns[number, positions] = True
        numbers[row] = number
    return numbers, passes
