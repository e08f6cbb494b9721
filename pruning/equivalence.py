"""The law of cutting: a network that is cut out computes what the masked one computes.

Both run on random images in float64, from a generator of their own. The first layer that reads something
else is named; what is known of the reason is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.dataflow import FORWARD_ERRORS, one_line
from pruning.masking import prunable_layers

TOLERANCE = 1e-9  # of the largest value; float64 itself is off by 1e-13 or so
Gone = Mapping[tuple[str, int], Tensor]  # (module name, dimension of its weight) -> positions that are cut


@dataclass
class _Run:
    """One forward pass: (layer, what it read) in order of the calls, and the answer or the error."""

    calls: list[tuple[str, Tensor]] = field(default_factory=list)
    answer: Tensor | None = None
    error: str = ""


def check_equal(masked: nn.Module, cut: nn.Module, images: Tensor, *, gone: Gone) -> None:
    """ValueError, naming a layer, unless `cut` computes what `masked` does, to `TOLERANCE`.

    Both are float64 networks in eval mode; `gone` are the positions that `cut` lacks.
    """
    ours, repeated, theirs = _run(masked, images), _run(masked, images), _run(cut, images)
    if ours.answer is None:
        raise ValueError(f"{type(masked).__name__} does not run on random images: {ours.error}")
    if not torch.isfinite(ours.answer).all():
        raise ValueError(
            f"{type(masked).__name__} gives values that are not finite on random images: what is cut out of "
            "it cannot be compared with it"
        )
    if repeated.answer is None or _difference(repeated.answer, ours.answer) > TOLERANCE:
        raise ValueError(
            f"{type(masked).__name__} gives other outputs when it is run again: use its eval mode to switch "
            "dropout and the like off"
        )
    _check_calls(masked, cut, ours, theirs, gone)
    if theirs.answer is None:
        raise ValueError(_broken(theirs))
    if theirs.answer.shape != ours.answer.shape or _difference(theirs.answer, ours.answer) > TOLERANCE:
        last = ours.calls[-1][0] if ours.calls else type(masked).__name__
        raise ValueError(
            f"{last}: the logits of the network that is cut out are not those of the masked one; "
            f"{_by(theirs.answer, ours.answer)}. {ADVICE}"
        )


ADVICE = (
    "Channels are mixed or moved on the way (a shuffle, a softmax or norm over channels, a reshape with "
    "fixed sizes, a tensor of fixed width): protect the layers before it, or choose granularity weight"
)


def _check_calls(masked: nn.Module, cut: nn.Module, ours: _Run, theirs: _Run, gone: Gone) -> None:
    """The same calls in the same order, each reading the same values."""
    for (name, dense), other in zip(ours.calls, theirs.calls, strict=False):
        if other[0] != name:
            raise ValueError(f"{name}: the network that is cut out takes another path than the masked one")
        layer, received = masked.get_submodule(name), other[1]
        positions = gone.get((name, 1))
        if positions is not None and not isinstance(cut.get_submodule(name), SelectedLinear):
            dim = -3 if isinstance(layer, nn.Conv2d) else -1
            if _reads_noise(layer, dense, positions, dim):
                raise ValueError(
                    f"{name}: it reads non-zero values from dead channels (what comes before makes something "
                    "else of zero, or adds to it); mask its columns too, or protect the layers before it"
                )
            dense = dense.index_select(dim, _complement(positions, dense.shape[dim]))
        if received.shape != dense.shape or _difference(received, dense) > TOLERANCE:
            raise ValueError(
                f"{name}: what it reads in the network that is cut out is not what the masked one reads; "
                f"{_by(received, dense)}. {ADVICE}"
            )
    if len(theirs.calls) < len(ours.calls):
        raise ValueError(_broken(theirs, after=ours.calls[len(theirs.calls)][0]))


def _reads_noise(layer: nn.Module, received: Tensor, dead: Tensor, dim: int) -> bool:
    weight = layer.get_parameter("weight")
    dead = dead.to(weight.device)
    read = dead[weight.index_select(1, dead).transpose(0, 1).flatten(1).any(1)]
    return bool(received.index_select(dim, read).any())


def _broken(run: _Run, after: str = "") -> str:
    last = run.calls[-1][0] if run.calls else "the first layer"
    return (
        f"{last}: the network that is cut out does not run on from there"
        f"{f' to {after}' if after else ''} ({run.error or 'it ends'}). {ADVICE}"
    )


def _by(one: Tensor, two: Tensor) -> str:
    if one.shape != two.shape:
        return f"shapes {tuple(one.shape)} and {tuple(two.shape)}"
    return f"they differ by {_difference(one, two):.2g} of the largest value"


def _difference(one: Tensor, two: Tensor) -> float:
    """Largest difference over the largest value; infinite where one is not a number."""
    if not one.numel():
        return 0.0
    difference, scale = float((one - two).abs().max()), float(two.abs().max())
    if difference != difference:
        return float("inf")
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def _complement(positions: Tensor, size: int) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool, device=positions.device).index_fill(0, positions, False)
    return keep.nonzero().flatten()


@torch.no_grad()
def _run(net: nn.Module, images: Tensor) -> _Run:
    run = _Run()
    with _recording(net, run):
        try:
            answer = net(images.clone())
        except FORWARD_ERRORS as error:
            run.error = one_line(error)
        else:
            if isinstance(answer, Tensor):
                run.answer = answer
            else:
                run.error = f"it returns a {type(answer).__name__} and not one tensor of logits"
    return run


@contextmanager
def _recording(net: nn.Module, run: _Run) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(partial(_record, name, run))
        for name, layer in prunable_layers(net).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(name: str, run: _Run, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs:
        run.calls.append((name, inputs[0].clone()))
