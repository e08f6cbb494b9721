"""Layers that skip dead weights on a CPU, as matrices of compressed sparse rows (CSR).

A Linear layer is the product W x, a 1x1 convolution the same at every position. Larger convolutions stay
dense: unfolding their input took longer than the dead weights saved at 90 to 99% sparsity (1.1 to 10 times as
long as dense, docs/results/speedup.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn

from pruning.masking import apply_masks, prunable_layers
from pruning.resize import replace_module

MIN_SPARSITY = 0.5  # of a layer: a weight takes 8 bytes in CSR with its index, and 4 in a dense matrix
WHOLE_BATCH_BELOW = 16  # positions of a feature map; larger ones are faster image by image
TIMING_SECONDS, MIN_REPEATS, MAX_REPEATS = 0.05, 3, 200


def is_supported() -> bool:
    """Return whether this torch multiplies CSR on the CPU: it needs MKL."""
    return bool(torch.backends.mkl.is_available())


class CsrLinear(nn.Module):
    """A Linear layer without its zeros: x [..., in] -> [..., out]. For inference."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = to_csr(layer.weight.detach()), layer.bias
        self.features = layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        # One image as a vector: as a matrix of one column it would take up to three times as long.
        output = torch.mv(self.matrix, rows[0]) if len(rows) == 1 else (self.matrix @ rows.T).T
        output = output if self.bias is None else output + self.bias
        return output.reshape(*input.shape[:-1], self.features)


class CsrPointwise(nn.Module):
    """A 1x1 convolution without its zeros: x [N, in, H, W] -> [N, out, H, W]. For inference."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.matrix, self.bias = to_csr(layer.weight.detach().flatten(1)), layer.bias

    def forward(self, input: Tensor) -> Tensor:
        images, _, height, width = input.shape
        columns = input.flatten(2)
        if images == 1 or height * width >= WHOLE_BATCH_BELOW:
            output = torch.stack([self.matrix @ image for image in columns])
        else:
            flat = columns.transpose(0, 1).flatten(1)
            output = (self.matrix @ flat).reshape(-1, images, height * width).transpose(0, 1)
        output = output.reshape(images, -1, height, width)
        return output if self.bias is None else output + self.bias[:, None, None]


def to_csr(matrix: Tensor) -> Tensor:
    """Convert a matrix to CSR with 32-bit indices: MKL would convert 64-bit ones at every product."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wide = matrix.to_sparse_csr()
        rows, columns = wide.crow_indices().int(), wide.col_indices().int()
        return torch.sparse_csr_tensor(rows, columns, wide.values(), wide.shape, check_invariants=True)


def is_convertible(layer: nn.Module) -> bool:
    """Return whether a layer has a CSR form here."""
    if isinstance(layer, nn.Conv2d):
        # Padding may be the word "same", which pads nothing for one pixel.
        is_pointwise = (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        return is_pointwise and layer.padding in ((0, 0), "same", "valid")
    return type(layer) is nn.Linear


def candidates(net: nn.Module, sparsity: Mapping[str, float]) -> tuple[str, ...]:
    """Return the layers that CSR may speed up; `sparsity` is the fraction of dead weights by layer."""
    return tuple(
        name
        for name, layer in prunable_layers(net).items()
        if is_convertible(layer) and sparsity.get(name, 0.0) > MIN_SPARSITY
    )


def layer_sparsity(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the fraction of dead weights by layer."""
    return {
        name.removesuffix(".weight"): 1 - float(mask.double().mean())
        for name, mask in masks.items()
        if mask.dim() > 1
    }


def to_sparse(net: nn.Module, masks: Mapping[str, Tensor], layers: Collection[str]) -> nn.Module:
    """Return a masked copy of the network in eval mode, with these layers in CSR."""
    copy = deepcopy(net).requires_grad_(False).eval()
    apply_masks(copy, masks)
    for name in layers:
        copy = replace_module(copy, name, _converted(copy.get_submodule(name)))
    return copy


def _converted(layer: nn.Module) -> CsrLinear | CsrPointwise:
    if not is_convertible(layer):
        raise ValueError(f"a {type(layer).__name__} of this shape has no CSR form")
    return CsrPointwise(layer) if isinstance(layer, nn.Conv2d) else CsrLinear(layer)  # type: ignore[arg-type]


@torch.inference_mode()
def find_faster_layers(net: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> tuple[str, ...]:
    """Return the layers whose CSR form is faster than the dense one on this batch.

    A single forward pass: each layer is timed on the input that it gets there.
    """
    copy = to_sparse(net, masks, ())
    faster: list[str] = []
    for name in candidates(copy, layer_sparsity(masks)):
        layer = copy.get_submodule(name)
        layer.register_forward_pre_hook(partial(_time_layer, faster, name, _converted(layer)))
    copy(images)
    return tuple(faster)


def _time_layer(
    faster: list[str], name: str, csr_layer: nn.Module, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    """Append the name if CSR is faster, by the shortest times: load of others changes them least."""
    fastest = [float("inf"), float("inf")]  # dense, CSR
    begin, repeats = perf_counter(), 0
    while repeats < MIN_REPEATS or (repeats < MAX_REPEATS and perf_counter() - begin < TIMING_SECONDS):
        for index, forward in enumerate((layer.forward, csr_layer.forward)):
            start = perf_counter()
            forward(inputs[0])
            fastest[index] = min(fastest[index], perf_counter() - start)
        repeats += 1
    if fastest[1] < fastest[0]:
        faster.append(name)
