"""Which slices of the parameters between the layers act on which columns.

Slopes, scales, position tables and fixed kernels are no layer's weights, and lose a slice with a channel.
They are asked as units are: slices are changed by the bits of their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.channel_mapping.column_readers import batches
from pruning.channel_mapping.probe import Probe


@dataclass(frozen=True)
class Slices:
    """Slices of a tensor between the layers: reader -> (columns, the slices that act on them)."""

    module: str
    tensor: str
    dim: int
    size: int
    columns: Mapping[str, tuple[Tensor, Tensor]]


def find_slices(probe: Probe, removable: Mapping[str, Tensor]) -> list[Slices]:
    """Return the parameters and buffers between the layers whose slices act on columns one by one.

    `removable`: reader -> bool [columns], those that belong to a channel which can go. Every slice along a
    dimension is changed, by the same code as units are; a dimension of which a removable column sees several
    slices is left out.
    """
    tensors = {
        (name, leaf): tensor
        for name, module in probe.net.named_modules()
        if name not in probe.watched and not isinstance(module, nn.LayerNorm)
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 1
    }
    reach: dict[str, tuple[str, ...]] = {}
    keys = {f"{name}.{leaf}": (name, leaf) for name, leaf in tensors}
    for label, key in keys.items():
        tensor = tensors[key]
        changed = probe.changed_by({label: (tensor, torch.ones_like(tensor, dtype=torch.bool))})
        readers = tuple(r for r, change in changed.items() if change.any())
        if any((changed[r][0] & removable[r]).any() for r in readers if r in removable):
            reach[label] = readers
    slices: list[Slices] = []
    for labels in batches(reach, tuple(reach)):
        for dim in range(max(tensors[keys[label]].dim() for label in labels)):
            sizes = {
                label: tensors[keys[label]].shape[dim] for label in labels if tensors[keys[label]].dim() > dim
            }
            sizes = {label: size for label, size in sizes.items() if size > 1}
            if sizes:
                slices += _decode_slices(
                    probe,
                    {label: (keys[label], tensors[keys[label]]) for label in sizes},
                    dim,
                    reach,
                    removable,
                )
    return slices


def _decode_slices(
    probe: Probe,
    tensors: Mapping[str, tuple[tuple[str, str], Tensor]],
    dim: int,
    reach: Mapping[str, Sequence[str]],
    removable: Mapping[str, Tensor],
) -> list[Slices]:
    bits = max((tensor.shape[dim] - 1).bit_length() for _, tensor in tensors.values())
    passes: list[dict[str, Tensor]] = []
    for value in (True, False):
        for bit in range(bits):
            codes = {}
            for label, (_, tensor) in tensors.items():
                code = ((torch.arange(tensor.shape[dim]) >> bit) & 1 == 1) == value
                shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                codes[label] = tensor, code.to(tensor.device).reshape(shape).expand(tensor.shape)
            passes.append(probe.changed_by(codes, {r for label in tensors for r in reach[label]}))
    slices = []
    for label, ((name, leaf), tensor) in tensors.items():
        columns: dict[str, tuple[Tensor, Tensor]] = {}
        is_clear, own_bits = True, (tensor.shape[dim] - 1).bit_length()
        for reader in reach[label]:
            changes = torch.cat([change[reader] for change in passes])
            ones, zeros = changes[:own_bits], changes[bits : bits + own_bits]
            is_single = (ones ^ zeros).all(0)
            if reader in removable and ((ones | zeros).any(0) & ~is_single & removable[reader]).any():
                is_clear = False
            positions = is_single.nonzero().flatten()
            powers = 2 ** torch.arange(own_bits)[:, None]
            columns[reader] = positions, (ones[:, positions].long() * powers).sum(0)
        if is_clear:
            slices.append(Slices(name, leaf, dim, tensor.shape[dim], columns))
    return slices
