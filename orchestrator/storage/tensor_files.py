"""Tensors of a safetensors file, once its header is what it has to be; masks as bits."""

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

LARGEST_HEADER = 3_000_000  # bytes; a longer one is an attack on the parser, no network
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
    """The header of a file, from its first bytes; StoreError for one that is too long, or no JSON.

    safetensors itself takes a name that stands twice, and half a minute for a million empty tensors.
    """
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST_HEADER:
        raise StoreError(f"{path}: a header of more than {LARGEST_HEADER} bytes is refused")
    return parse_json_object(start[8 : 8 + length], f"the header of {path}")


def load_tensors(data: bytes, path: str) -> dict[str, Tensor]:
    """All tensors of a file, after a look at what its header says of each. StoreError for anything else."""
    entries = {name: entry for name, entry in read_header(data, path).items() if name != METADATA}
    if len(entries) > MOST_TENSORS:
        raise StoreError(f"{path} has {len(entries):,} tensors; {MOST_TENSORS:,} is the most")
    for name, entry in entries.items():
        _check_entry(name, entry, path)
    return _parse(data, path)


def _check_entry(name: str, entry: object, path: str) -> None:
    """StoreError for a tensor of other numbers than a network's, or whose shape and bytes differ.

    safetensors compares offsets with the file and with each other.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise StoreError(f"{path}: {name[:80]!r} has something else than dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise StoreError(f"{path}: {name[:80]!r} is no plain tensor of real numbers")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise StoreError(f"{path}: {name[:80]!r} has a shape or offsets that are none")
    if 0 in shape or prod(shape) * ITEM_BYTES[kind] != offsets[1] - offsets[0]:
        raise StoreError(f"{path}: {name[:80]!r} has no elements, or not as many as its shape says")


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _parse(data: bytes, path: str) -> dict[str, Tensor]:
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, RuntimeError, OverflowError, LookupError) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0][:200]
        raise StoreError(f"{path} is no safetensors file: {reason}") from error


def load_expected_tensors(
    data: bytes, forms: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: str
) -> dict[str, Tensor]:
    """The tensors of these names, shapes and types; StoreError if there are others, or one is missing."""
    named = read_header(data, path).keys() - {METADATA}
    if differing := sorted(named ^ forms.keys()):
        here = "holds" if differing[0] in named else "lacks"
        raise StoreError(f"{path} {here} {differing[0][:80]!r}; its names are not those of the network")
    found = _parse(data, path)
    for name, (shape, kind) in forms.items():
        if (tuple(found[name].shape), found[name].dtype) != (shape, kind):
            raise StoreError(
                f"{path}: {name} is {_describe(found[name].shape, found[name].dtype)}; "
                f"the network has {_describe(shape, kind)}"
            )
    return found


def max_file_bytes(size: int) -> int:
    """The most bytes that a file with `size` bytes of tensors may have."""
    return 8 + LARGEST_HEADER + size


def pack_mask(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8, eight entries a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of this shape again."""
    bits = np.unpackbits(packed.numpy(), count=prod(shape))
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def packed_bytes(shape: tuple[int, ...]) -> int:
    return (prod(shape) + 7) // 8


def _describe(shape: tuple[int, ...], kind: torch.dtype) -> str:
    return f"{tuple(shape)} {str(kind).removeprefix('torch.')}"
