"""How long a forward pass takes on one thread of this CPU: dense, with masks, cut out, and in CSR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from orchestrator.errors import CollapsedError
from orchestrator.latency.sparse import faster_layers, sparse, supported
from orchestrator.system.timing import Timing, batch_suffix, side_by_side
from pruning.masking import Masks
from pruning.modes import eval_mode

FORMS = ("dense", "masked", "cut", "csr")
BATCHES = (1, 256)
SECONDS = 0.5
TOLERANCE = 1e-4  # of the largest output: cutting and CSR add up in another order


@dataclass(frozen=True, eq=False)
class NetworkVariants:
    """One network: dense; `masked`, None where nothing is dead; `cut`, None where nothing can be cut out."""

    dense: nn.Module
    input_shape: tuple[int, int, int]
    masked: nn.Module | None = None
    cut: nn.Module | None = None
    masks: Masks = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """The times of a network's forms at one batch size; `form` is the one that would be shipped.

    `csr_layers`: those that are in CSR in that form; the others are dense.
    """

    batch: int
    timing: Timing
    form: str
    csr_layers: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense network the shipped form is."""
        return self.timing.ratios[self.form]

    def metrics(self) -> dict[str, float]:
        """`latency/...` of every form, and `latency_ms_p50` under `final/` and `ipa/`: shipped, and dense."""
        found = {"speedup": self.speedup, "aa": self.timing.self_ratio}
        for form, spread in self.timing.spreads.items():
            found |= {f"{form}_ms_p50": spread.p50, f"{form}_ms_iqr": spread.iqr}
        both = {"final": self.form, "ipa": "dense"}
        return {
            **{f"latency/{name}{batch_suffix(self.batch)}": value for name, value in found.items()},
            **{
                f"{prefix}/latency_ms_p50{batch_suffix(self.batch)}": self.timing.spreads[form].p50
                for prefix, form in both.items()
            },
        }


def measure(
    forms: NetworkVariants, *, batch: int, seconds: float = SECONDS, csr_layers: Sequence[str] | None = None
) -> Latency:
    """Time all forms side by side for about `seconds` each, after checking that their outputs are equal.

    Where nothing can be cut out, the layers that win by CSR at this batch size are in CSR in a further
    form, if there are any; `csr_layers` names them instead. CollapsedError for outputs that are not equal.
    """
    images = torch.rand((batch, *forms.input_shape), generator=torch.Generator().manual_seed(0))
    given = [net for net in (forms.dense, forms.masked, forms.cut) if net is not None]
    with one_thread(), eval_mode(*given), torch.inference_mode():
        nets, layers = _networks(forms, images, csr_layers)
        check_equal({name: net for name, net in nets.items() if name != "dense"}, images)
        timing = side_by_side({name: partial(net, images) for name, net in nets.items()}, seconds=seconds)
    return Latency(batch, timing, shipped(timing.ratios), layers)


def _networks(
    forms: NetworkVariants, images: Tensor, csr_layers: Sequence[str] | None
) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """The forms that there are, by name, and the layers in CSR."""
    given = {"dense": forms.dense, "masked": forms.masked, "cut": forms.cut}
    nets = {name: net for name, net in given.items() if net is not None}
    if forms.masked is None or forms.cut is not None or not supported():
        return nets, ()
    masked = forms.masked
    layers = faster_layers(masked, forms.masks, images) if csr_layers is None else tuple(csr_layers)
    return (nets | {"csr": sparse(masked, forms.masks, layers)} if layers else nets), layers


def shipped(ratios: Mapping[str, float]) -> str:
    """What one would ship: cut out, else in CSR where that is faster than masked, else masked."""
    if "cut" in ratios:
        return "cut"
    if "csr" in ratios and ratios["csr"] > ratios["masked"]:
        return "csr"
    return "masked" if "masked" in ratios else "dense"


@torch.inference_mode()
def check_equal(nets: Mapping[str, nn.Module], images: Tensor) -> None:
    """CollapsedError where the outputs of two networks differ by more than rounding."""
    outputs = {name: net(images) for name, net in nets.items()}
    for name, found in outputs.items():
        expected = next(iter(outputs.values()))
        scale, gap = float(expected.abs().max()), float((found - expected).abs().max())
        if not gap <= TOLERANCE * max(scale, 1.0):
            raise CollapsedError(f"the {name} network gives other outputs, by {gap:.2g} of {scale:.2g}")


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
