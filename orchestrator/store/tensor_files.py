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
from orchestrator.store.checked_files import json_object

LARGEST_HEADER = 10_000_000  # bytes; a longer one is an attack on the parser, no network
METADATA = "__metadata__"


def header(start: bytes, path: str) -> dict[str, Any]:  # JSON
    """The header of a file, from its first bytes; StoreError for one that is too long, or no JSON.

    safetensors itself takes a name that stands twice, and half a minute for a million empty tensors.
    """
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST_HEADER:
        raise StoreError(f"{path}: a header of more than {LARGEST_HEADER} bytes is refused")
    return json_object(start[8 : 8 + length], f"the header of {path}")


def tensors(
    data: bytes, forms: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: str
) -> dict[str, Tensor]:
    """The tensors of these names, shapes and types; StoreError if there are others, or one is missing."""
    named = header(data, path).keys() - {METADATA}
    if differing := sorted(named ^ forms.keys()):
        here = "holds" if differing[0] in named else "lacks"
        raise StoreError(f"{path} {here} {differing[0][:80]!r}; its names are not those of the network")
    try:
        found = dict(load(data))
    except SafetensorError as error:
        raise StoreError(f"{path} is no safetensors file: {str(error).splitlines()[0]}") from error
    for name, (shape, kind) in forms.items():
        if (tuple(found[name].shape), found[name].dtype) != (shape, kind):
            raise StoreError(
                f"{path}: {name} is {_form(found[name].shape, found[name].dtype)}; "
                f"the network has {_form(shape, kind)}"
            )
    return found


def header_and(size: int) -> int:
    """The most bytes that a file with `size` bytes of tensors may have."""
    return 8 + LARGEST_HEADER + size


def pack(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8, eight entries a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of this shape again."""
    bits = np.unpackbits(packed.numpy(), count=prod(shape))
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def packed_bytes(shape: tuple[int, ...]) -> int:
    return (prod(shape) + 7) // 8


def _form(shape: tuple[int, ...], kind: torch.dtype) -> str:
    return f"{tuple(shape)} {str(kind).removeprefix('torch.')}"
