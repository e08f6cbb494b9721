"""Time a forward pass on one thread of this CPU: dense, masked, cut out, and in CSR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from orchestrator.errors import CollapsedError
from orchestrator.latency.sparse import find_faster_layers, is_supported, to_sparse
from orchestrator.system.determinism import torch_threads
from orchestrator.system.timing import Timing, batch_suffix, side_by_side
from pruning.eval_mode import eval_mode
from pruning.masking import Masks

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

    @property
    def speedup(self) -> float:
        """The time of the dense network over that of the shipped form."""
        return self.timing.ratios[self.form]

    def metrics(self) -> dict[str, float]:
        """Return `latency/...` of every form, and the medians `final/...` (shipped) and `ipa/...` (dense)."""
        suffix, spreads = batch_suffix(self.batch), self.timing.spreads
        metrics = {"latency/speedup": self.speedup, "latency/aa": self.timing.self_ratio}
        for form, spread in spreads.items():
            metrics |= {f"latency/{form}_ms_p50": spread.p50, f"latency/{form}_ms_iqr": spread.iqr}
        metrics |= {
            "final/latency_ms_p50": spreads[self.form].p50,
            "ipa/latency_ms_p50": spreads["dense"].p50,
        }
        return {f"{name}{suffix}": value for name, value in metrics.items()}


def measure(
    variants: NetworkVariants,
    *,
    batch: int,
    seconds: float = SECONDS,
    csr_layers: Sequence[str] | None = None,
) -> Latency:
    """Measure all forms in turn for about `seconds` each, after checking that their outputs are equal.

    Where nothing can be cut out, there is one more form, with the layers in CSR that are faster so at this
    batch size, or those of `csr_layers`. Raises CollapsedError for outputs that differ by more than rounding.
    """
    images = torch.rand((batch, *variants.input_shape), generator=torch.Generator().manual_seed(0))
    forms = {"dense": variants.dense, "masked": variants.masked, "cut": variants.cut}
    nets = {name: net for name, net in forms.items() if net is not None}
    layers: tuple[str, ...] = ()
    with torch_threads(1), eval_mode(*nets.values()), torch.inference_mode():
        if variants.masked is not None and variants.cut is None and is_supported():
            masked, masks = variants.masked, variants.masks
            layers = find_faster_layers(masked, masks, images) if csr_layers is None else tuple(csr_layers)
            nets |= {"csr": to_sparse(masked, masks, layers)} if layers else {}
        # A form that computes something else has no time worth recording.
        check_equal({name: net for name, net in nets.items() if name != "dense"}, images)
        timing = side_by_side({name: partial(net, images) for name, net in nets.items()}, seconds=seconds)
    return Latency(batch, timing, shipped_form(timing.ratios), layers)


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
