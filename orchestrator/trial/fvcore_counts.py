"""fvcore's count of one forward pass: a second opinion on the multiply-adds of every module."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

MULTIPLY_ADDS = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum", "mv")


@dataclass(frozen=True)
class FvcoreCounts:
    """What fvcore counts: `macs` by module, with all inside it; `other_ops`: all that is no MAC, by operator.

    `unsupported`: operators that fvcore does not know, with their number of calls. `failure`: why it could
    not count the network at all.
    """

    macs: Mapping[str, int] = field(default_factory=dict)
    other_ops: Mapping[str, int] = field(default_factory=dict)
    unsupported: Mapping[str, int] = field(default_factory=dict)
    failure: str = ""

    def differences(self, counts: Mapping[str, int]) -> list[str]:
        """Return a note for each innermost module that `counts` gives another number."""
        if self.failure:
            return [f"MACs: fvcore cannot count this network ({self.failure})"]
        differing = [name for name, macs in self.macs.items() if macs != counts.get(name, 0)]
        return [
            f"MACs of {name or 'the whole network'}: {counts.get(name, 0):,}, by fvcore {self.macs[name]:,}"
            for name in differing
            if not any(other != name and other.startswith(f"{name}." if name else "") for other in differing)
        ]


def count_by_fvcore(net: nn.Module, image: Tensor) -> FvcoreCounts:
    """Return what fvcore counts of one pass of `image` [1, C, H, W] through the network."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(net, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        totals, by_module = analysis.by_operator(), analysis.by_module_and_operator()
        unsupported = dict(analysis.unsupported_ops())
    except Exception as error:  # noqa: BLE001 - its formulas meet networks that its authors never saw
        return FvcoreCounts(failure=f"{type(error).__name__}: {error}".partition("\n")[0])
    return FvcoreCounts(
        {
            name: sum(int(count) for op, count in operators.items() if op in MULTIPLY_ADDS)
            for name, operators in by_module.items()
        },
        {op: int(count) for op, count in totals.items() if op not in MULTIPLY_ADDS},
        unsupported,
    )
