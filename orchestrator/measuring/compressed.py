"""What a network takes on disk or on a wire: its living values and masks, after a standard compressor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow
from torch import Tensor

ZSTD_LEVEL = 3  # zstd's own default; higher ones gained less than 0.2% on weights


def compressed_bytes(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> int:
    """Bytes of the sparse form of a state dict after zstd, level 3; the same number for the same tensors.

    What is compressed has the size `sparse_bytes`. Another version of zstd may give a slightly other number.
    """
    codec = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
    return len(codec.compress(b"".join(sparse_form(tensors, masks)), asbytes=True))


def sparse_form(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Every tensor, by name; where entries are masked, one bit per entry and the living values alone."""
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        if name in masks and not masks[name].all():
            mask = masks[name].cpu()
            yield np.packbits(mask.numpy()).tobytes()
            values = values[mask]
        yield values.numpy().tobytes()
