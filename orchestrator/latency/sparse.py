"""Layers whose dead weights are not multiplied: compressed sparse rows (CSR) on a CPU.

Linear layers are W x, convolutions of one pixel the same at every position. Larger convolutions stay
dense: to unfold their input cost more than the dead weights saved at 90 to 99% sparsity (1.1 to 10 times as
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

from pruning.architecture import replace_module
from pruning.masking import apply_masks, prunable_layers

HALF = 0.5  # of a layer must be dead: a weight takes 8 bytes in CSR, its index included, and 4 in a matrix
WHOLE_BATCH_BELOW = 16  # positions of a map; with larger ones, image by image is faster
RACE_SECONDS, FEWEST_HEATS, MOST_HEATS = 0.05, 3, 200


def supported() -> bool:
    """Whether this torch multiplies CSR on the CPU: it needs MKL."""
    return bool(torch.backends.mkl.is_available())


class CsrLinear(nn.Module):
    """A Linear layer without its zeros: x [..., in] -> [..., out]. For inference."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = csr(layer.weight.detach()), layer.bias
        self.features = layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        # One image as a vector: as a matrix of one column it would take up to three times as long.
        found = torch.mv(self.matrix, rows[0]) if len(rows) == 1 else (self.matrix @ rows.T).T
        found = found if self.bias is None else found + self.bias
        return found.reshape(*input.shape[:-1], self.features)


class CsrPointwise(nn.Module):
    """A convolution of one pixel without its zeros: x [N, in, H, W] -> [N, out, H, W]. For inference."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.matrix, self.bias = csr(layer.weight.detach().flatten(1)), layer.bias

    def forward(self, input: Tensor) -> Tensor:
        images, _, height, width = input.shape
        columns = input.flatten(2)
        if images == 1 or height * width >= WHOLE_BATCH_BELOW:
            found = torch.stack([self.matrix @ one for one in columns])
        else:
            flat = columns.transpose(0, 1).flatten(1)
            found = (self.matrix @ flat).reshape(-1, images, height * width).transpose(0, 1)
        found = found.reshape(images, -1, height, width)
        return found if self.bias is None else found + self.bias[:, None, None]


def csr(matrix: Tensor) -> Tensor:
    """The matrix in CSR with 32-bit indices, which MKL wants: 64-bit ones are converted at every product."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        found = matrix.to_sparse_csr()
        rows, columns = found.crow_indices().int(), found.col_indices().int()
        return torch.sparse_csr_tensor(rows, columns, found.values(), found.shape, check_invariants=True)


def convertible(layer: nn.Module) -> bool:
    """Whether a layer has a CSR form here."""
    if isinstance(layer, nn.Conv2d):
        # As pairs: padding may be the word "same", which is none for one pixel.
        plain = (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        return plain and layer.padding in ((0, 0), "same", "valid")
    return type(layer) is nn.Linear


def candidates(net: nn.Module, sparsity: Mapping[str, float]) -> tuple[str, ...]:
    """The layers that are worth a try: `sparsity` is the dead part of each layer's weights, by its name."""
    return tuple(
        name
        for name, layer in prunable_layers(net).items()
        if convertible(layer) and sparsity.get(name, 0.0) > HALF
    )


def dead_parts(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Layer -> the dead part of its weights."""
    return {
        name.removesuffix(".weight"): 1 - float(mask.double().mean())
        for name, mask in masks.items()
        if mask.dim() > 1
    }


def sparse(net: nn.Module, masks: Mapping[str, Tensor], layers: Collection[str]) -> nn.Module:
    """A copy of the network, masked, with these layers in CSR; in eval mode."""
    copy = deepcopy(net).requires_grad_(False).eval()
    apply_masks(copy, masks)
    for name in layers:
        copy = replace_module(copy, name, _converted(copy.get_submodule(name)))
    return copy


def _converted(layer: nn.Module) -> CsrLinear | CsrPointwise:
    if not convertible(layer):
        raise ValueError(f"a {type(layer).__name__} of this shape has no CSR form")
    return CsrPointwise(layer) if isinstance(layer, nn.Conv2d) else CsrLinear(layer)  # type: ignore[arg-type]


@torch.inference_mode()
def faster_layers(net: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> tuple[str, ...]:
    """The layers whose CSR form is faster on this batch: each is raced against itself.

    One forward pass; every layer is raced on the input that it is given there.
    """
    copy = sparse(net, masks, ())
    found: list[str] = []
    for name in candidates(copy, dead_parts(masks)):
        layer = copy.get_submodule(name)
        layer.register_forward_pre_hook(partial(_race, found, name, _converted(layer)))
    copy(images)
    return tuple(found)


def _race(
    found: list[str], name: str, rival: nn.Module, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    """Note the name if the rival wins, by best times: other work on the machine spoils these least."""
    best = [float("inf"), float("inf")]
    begun, heats = perf_counter(), 0
    while heats < FEWEST_HEATS or (heats < MOST_HEATS and perf_counter() - begun < RACE_SECONDS):
        for number, run in enumerate((layer.forward, rival.forward)):
            started = perf_counter()
            run(inputs[0])
            best[number] = min(best[number], perf_counter() - started)
        heats += 1
    if best[1] < best[0]:
        found.append(name)
