"""Time a forward pass on one thread of this CPU, or on a GPU: dense, masked, cut out, and in CSR.

In compressed sparse rows (CSR) layers skip their dead weights: a Linear layer is the product W x, a 1x1
convolution the same at every position.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn

from orchestrator.errors import CollapsedError
from orchestrator.system.determinism import torch_threads
from orchestrator.system.timing import Timing, batch_suffix, side_by_side
from pruning.cutting.layer_widths import replace_module
from pruning.eval_mode import eval_mode
from pruning.masking import Masks, apply_masks, prunable_layers

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
    # Larger convolutions stay dense: unfolding their input took longer than the dead weights saved at 90 to
    # 99% sparsity (1.1 to 10 times as long as dense, docs/results/speedup.md).
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


FORMS = ("dense", "masked", "cut", "csr")
BATCHES = (1, 256)
SECONDS = 0.5
TOLERANCE = 1e-4  # of the largest output: cut out and in CSR, sums are added in another order


@dataclass(frozen=True, eq=False)
class NetworkVariants:
    """The forms of a network; `masked` is None where nothing is dead, `cut` where nothing can be cut."""

    dense: nn.Module
    input_shape: tuple[int, int, int]
    masked: nn.Module | None = None
    cut: nn.Module | None = None
    masks: Masks = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """The times of a network's forms at one batch size; `form` is the one that one would ship.

    `csr_layers` are in CSR in the form `csr`; its other layers are dense.
    """

    batch: int
    timing: Timing
    form: str
    csr_layers: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def speedup(self) -> float:
        """The time of the dense network over that of the shipped form."""
        return self.timing.ratios[self.form]

    def metrics(self) -> dict[str, float]:
        """Return `latency/...` of every form, and the medians `final/...` (shipped) and `ipa/...` (dense)."""
        suffix, spreads = latency_suffix(self.batch, self.device), self.timing.spreads
        metrics = {"latency/speedup": self.speedup, "latency/aa": self.timing.self_ratio}
        for form, spread in spreads.items():
            metrics |= {f"latency/{form}_ms_p50": spread.p50, f"latency/{form}_ms_iqr": spread.iqr}
        metrics |= {
            "final/latency_ms_p50": spreads[self.form].p50,
            "ipa/latency_ms_p50": spreads["dense"].p50,
        }
        return {f"{name}{suffix}": value for name, value in metrics.items()}


def latency_suffix(batch: int, device: str) -> str:
    """Return the suffix of a latency's metrics; nothing for one image on a CPU."""
    return batch_suffix(batch) if device == "cpu" else f"{batch_suffix(batch)}_gpu"


def measure(
    variants: NetworkVariants,
    *,
    batch: int,
    seconds: float = SECONDS,
    csr_layers: Sequence[str] | None = None,
    device: str = "cpu",
) -> Latency:
    """Measure all forms in turn for about `seconds` each, after checking that their outputs are equal.

    Where nothing can be cut out, there is one more form, with the layers in CSR that are faster so at this
    batch size, or those of `csr_layers`. On a `cuda` device CSR is left out, and copies of the networks are
    timed by events. Raises CollapsedError for outputs that differ by more than rounding.
    """
    images = torch.rand((batch, *variants.input_shape), generator=torch.Generator().manual_seed(0)).to(device)
    forms = {"dense": variants.dense, "masked": variants.masked, "cut": variants.cut}
    nets = {name: _on(device, net) for name, net in forms.items() if net is not None}
    layers: tuple[str, ...] = ()
    with torch_threads(1), eval_mode(*nets.values()), torch.inference_mode():
        has_csr = device == "cpu" and is_supported()
        if variants.masked is not None and variants.cut is None and has_csr:
            masked, masks = variants.masked, variants.masks
            layers = find_faster_layers(masked, masks, images) if csr_layers is None else tuple(csr_layers)
            nets |= {"csr": to_sparse(masked, masks, layers)} if layers else {}
        # A form that computes something else has no time worth recording.
        check_equal({name: net for name, net in nets.items() if name != "dense"}, images)
        calls = {name: partial(net, images) for name, net in nets.items()}
        timing = side_by_side(calls, seconds=seconds, device=device)
    return Latency(batch, timing, shipped_form(timing.ratios), layers, device)


def _on(device: str, net: nn.Module) -> nn.Module:
    return net if device == "cpu" else deepcopy(net).to(device)


def shipped_form(ratios: Mapping[str, float]) -> str:
    """Return the form that one would ship: cut out, in CSR where that is faster than masked, or masked."""
    if "cut" in ratios:
        return "cut"
    if "csr" in ratios and ratios["csr"] > ratios["masked"]:
        return "csr"
    return "masked" if "masked" in ratios else "dense"


@torch.inference_mode()
def check_equal(nets: Mapping[str, nn.Module], images: Tensor) -> None:
    """Raise CollapsedError where the outputs of two networks differ by more than rounding."""
    outputs = {name: net(images) for name, net in nets.items()}
    for name, output in outputs.items():
        expected = next(iter(outputs.values()))
        scale, gap = float(expected.abs().max()), float((output - expected).abs().max())
        if not gap <= TOLERANCE * max(scale, 1.0):
            raise CollapsedError(f"the {name} network gives other outputs, by {gap:.2g} of {scale:.2g}")
