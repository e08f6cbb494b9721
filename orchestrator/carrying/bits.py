"""Whether a recorded result and a new one are the same, bit for bit, and where they first part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
History = Mapping[str, Mapping[int, float]]  # metric name -> step -> value


@dataclass
class Sameness:
    """What was compared so far, and every difference in the order in which a run comes to it."""

    tensors: int = 0
    metrics: int = 0
    differences: list[str] = field(default_factory=list)

    def add_tensors(self, kind: str, recorded: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Compare tensors by name; `kind` is `mask` or `weights`."""
        for name in dict.fromkeys((*recorded, *now)):
            self.tensors += 1
            self._note(f"{kind} {name}", _part(recorded.get(name), now.get(name)))

    def add_epochs(self, recorded: History, now: History) -> None:
        """Compare the metrics of each epoch, epoch by epoch."""
        steps = sorted({step for values in (*recorded.values(), *now.values()) for step in values})
        for step in steps:
            for name in EPOCH_METRICS:
                old, new = recorded.get(name, {}).get(step), now.get(name, {}).get(step)
                self.add_metric(f"epoch {step}, {name}", old, new)

    def add_metric(self, what: str, recorded: float | None, now: float | None) -> None:
        self.metrics += 1
        if recorded != now:
            self._note(what, f"{_shown(recorded)} recorded, {_shown(now)} now")

    def lines(self) -> Iterator[str]:
        """Equal, or how much is not, and the first of it."""
        if not self.differences:
            yield f"equal: {self.tensors} tensors, {self.metrics} metrics"
            return
        compared = f"{self.tensors + self.metrics} values ({self.tensors} tensors, {self.metrics} metrics)"
        yield f"differs: {len(self.differences)} of {compared}"
        yield f"first: {self.differences[0]}"

    def _note(self, what: str, difference: str) -> None:
        if difference:
            self.differences.append(f"{what}: {difference}")


def without_times(names: Iterable[str]) -> Iterator[str]:
    """The metrics that no clock decides."""
    return (name for name in names if not name.endswith("seconds") and "latency" not in name)


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with +0 wherever a mask is dead, as a reloaded network has them."""
    return {
        name: tensor.masked_fill(~masks[name], 0) if name in masks else tensor
        for name, tensor in weights.items()
    }


def _part(recorded: Tensor | None, now: Tensor | None) -> str:
    """How two tensors differ; empty where every bit is the same."""
    if recorded is None or now is None:
        return "not recorded" if recorded is None else "not there now"
    if (recorded.shape, recorded.dtype) != (now.shape, now.dtype):
        return f"{_form(recorded)} recorded, {_form(now)} now"
    differ = _bytes(recorded).ne(_bytes(now)).any(1)
    if not (count := int(differ.sum())):
        return ""
    gap = (recorded.double() - now.double()).abs().flatten()[differ].max()
    return f"{count} of {recorded.numel()} entries differ, by {float(gap):.3g} at most"


def _bytes(tensor: Tensor) -> Tensor:
    """[entries, bytes of one]: 0.0 and -0.0 are two, and a NaN is itself."""
    return tensor.cpu().contiguous().reshape(-1, 1).view(torch.uint8)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _shown(value: float | None) -> str:
    return "none" if value is None else repr(value)
