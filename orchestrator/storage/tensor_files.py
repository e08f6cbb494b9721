"""Load tensors from safetensors files whose headers were checked; pack masks into bits."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from orchestrator.errors import StoreError
from orchestrator.storage.manifest import parse_json_object

LARGEST_HEADER = 3_000_000  # bytes; no network needs more, and a longer one may be an attack on the parser
MOST_TENSORS, MOST_DIMENSIONS = 20_000, 16
METADATA = "__metadata__"
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def read_header(start: bytes, path: str) -> dict[str, Any]:  # JSON
    """Parse the header of a file from its first bytes; StoreError for one that is too long, or no JSON.

    safetensors itself accepts a name that occurs twice, and takes half a minute for a million empty tensors.
    """
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST_HEADER:
        raise StoreError(f"{path}: a header of more than {LARGEST_HEADER} bytes is refused")
    return parse_json_object(start[8 : 8 + length], f"the header of {path}")


def load_tensors(data: bytes, path: str) -> dict[str, Tensor]:
    """Load all tensors of a file, after a check of its header. StoreError for an invalid one."""
    entries = {name: entry for name, entry in read_header(data, path).items() if name != METADATA}
    if len(entries) > MOST_TENSORS:
        raise StoreError(f"{path} has {len(entries):,} tensors; {MOST_TENSORS:,} is the most")
    for name, entry in entries.items():
        _check_entry(name, entry, path)
    return _parse(data, path)


def _check_entry(name: str, entry: object, path: str) -> None:
    """Raise StoreError for an unknown dtype, and for a shape that does not match the bytes.

    safetensors itself compares offsets with the file and with each other.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise StoreError(f"{path}: {name[:80]!r} has other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise StoreError(f"{path}: {name[:80]!r} is no plain tensor of real numbers")
    if (
        not _is_size_list(shape)
        or not _is_size_list(offsets)
        or len(offsets) != 2
        or len(shape) > MOST_DIMENSIONS
    ):
        raise StoreError(f"{path}: {name[:80]!r} has an invalid shape or invalid offsets")
    if 0 in shape or prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise StoreError(f"{path}: {name[:80]!r} has no elements, or not as many as its shape says")


def _is_size_list(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _parse(data: bytes, path: str) -> dict[str, Tensor]:
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, RuntimeError, OverflowError, LookupError) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0][:200]
        raise StoreError(f"{path} is no safetensors file: {reason}") from error


def load_expected_tensors(
    data: bytes, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: str
) -> dict[str, Tensor]:
    """Load the tensors of exactly these names, shapes and dtypes; StoreError for any difference."""
    names = read_header(data, path).keys() - {METADATA}
    if differing := sorted(names ^ expected.keys()):
        verb = "holds" if differing[0] in names else "lacks"
        raise StoreError(f"{path} {verb} {differing[0][:80]!r}; its names are not those of the network")
    tensors = _parse(data, path)
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise StoreError(
                f"{path}: {name} is {_describe(tensor.shape, tensor.dtype)}; "
                f"the network has {_describe(shape, dtype)}"
            )
    return tensors


def max_file_bytes(size: int) -> int:
    """Return the largest allowed size of a file with `size` bytes of tensors."""
    return 8 + LARGEST_HEADER + size


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8, eight entries a byte, the first in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack a mask of this shape."""
    bits = np.unpackbits(packed.numpy(), count=prod(shape))
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def packed_bytes(shape: tuple[int, ...]) -> int:
    """Return the size of a packed mask of this shape."""
    return (prod(shape) + 7) // 8


def _describe(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
