"""The law of cutting: a network that is cut out computes what the masked one computes.

Both run on random images in float64, from a generator of their own. The first layer that reads something
else is named; what is known of the reason is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.checks import FORWARD_ERRORS, one_line
from pruning.dataflow import received
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

    Both are float64 networks in eval mode; `gone` are the positions that `cut` lacks. Images are compared one
    by one with the largest value of their own: they may be of very different sizes.
    """
    ours = _run(masked, images)
    if ours.answer is None:
        raise ValueError(
            f"{type(masked).__name__} does not run in float64 on random images: {ours.error}; where its "
            "forward casts, let it cast to the type of its weights"
        )
    finite = _finite_images(ours.answer)
    if not finite.any():
        raise ValueError(
            f"{type(masked).__name__} gives values that are not finite on random images: what is cut out of "
            "it cannot be compared with it"
        )
    theirs = _run(cut, images)
    try:
        _check_calls(masked, cut, ours, theirs, gone)
        _check_answers(ours, theirs, finite)
    except ValueError as error:
        _check_repeats(masked, images, ours, finite)
        raise error
    _check_training(masked, cut, images, called={name for name, _ in ours.calls})


def silent_columns(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Layer -> bool [columns], on the CPU: the columns that read zeros alone, at all of its calls."""
    silent: dict[str, Tensor] = {}
    for name, features in _run(net, images).calls:
        dim = -3 if isinstance(net.get_submodule(name), nn.Conv2d) else -1
        zeros = (features == 0).movedim(dim, 0).flatten(1).all(1).cpu()
        silent[name] = silent[name] & zeros if name in silent else zeros
    return silent


def _check_answers(ours: _Run, theirs: _Run, finite: Tensor) -> None:
    assert ours.answer is not None, "checked before"
    if theirs.answer is None:
        raise ValueError(_broken(theirs))
    if (
        theirs.answer.shape != ours.answer.shape
        or _difference(theirs.answer, ours.answer, finite) > TOLERANCE
    ):
        last = ours.calls[-1][0] if ours.calls else "the last layer"
        raise ValueError(
            f"{last}: the logits of the network that is cut out are not those of the masked one; "
            f"{_by(theirs.answer, ours.answer)}. {ADVICE}"
        )


def _check_repeats(masked: nn.Module, images: Tensor, ours: _Run, finite: Tensor) -> None:
    """ValueError for a network that answers otherwise when it is asked again: that is the reason then."""
    again = _run(masked, images)
    if again.answer is None or _difference(again.answer, ours.answer, finite) > TOLERANCE:
        raise ValueError(
            f"{type(masked).__name__} gives other outputs when it is run again: its eval mode must switch "
            "dropout and the like off"
        )


def _check_training(masked: nn.Module, cut: nn.Module, images: Tensor, *, called: Collection[str]) -> None:
    """ValueError where layers that run in training mode alone read channels that are cut out."""
    waiting = [name for name in prunable_layers(masked) if name not in called]
    if not waiting:
        return
    runs = [_run(net.train(), images, tensor=False) for net in (deepcopy(masked), deepcopy(cut))]
    if not runs[0].error and runs[1].error:
        raise ValueError(
            f"{waiting[0]}: it runs in training mode alone, where the network that is cut out breaks off "
            f"({runs[1].error}); take such layers out of the network first"
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
        layer, read = masked.get_submodule(name), other[1]
        positions = gone.get((name, 1))
        if positions is not None and not isinstance(cut.get_submodule(name), SelectedLinear):
            dim = -3 if isinstance(layer, nn.Conv2d) else -1
            if _reads_noise(layer, dense, positions, dim):
                raise ValueError(
                    f"{name}: it reads non-zero values from dead channels (what comes before makes something "
                    "else of zero, or adds to it); mask its columns too, or protect the layers before it"
                )
            dense = dense.index_select(dim, _complement(positions, dense.shape[dim]))
        if read.shape != dense.shape or _difference(read, dense) > TOLERANCE:
            raise ValueError(
                f"{name}: what it reads in the network that is cut out is not what the masked one reads; "
                f"{_by(read, dense)}. {ADVICE}"
            )
    if len(theirs.calls) < len(ours.calls):
        raise ValueError(_broken(theirs, after=ours.calls[len(theirs.calls)][0]))


def _reads_noise(layer: nn.Module, features: Tensor, dead: Tensor, dim: int) -> bool:
    weight: Tensor = layer.weight  # type: ignore[assignment]  # it may be computed, and no parameter then
    dead = dead.to(weight.device)
    read = dead[weight.index_select(1, dead).transpose(0, 1).flatten(1).any(1)]
    return bool(features.index_select(dim, read).any())


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


def _difference(one: Tensor, two: Tensor | None, finite: Tensor | None = None) -> float:
    """Largest difference over the largest value, image by image, where `two` is finite."""
    if two is None or not one.numel():
        return 0.0 if two is not None else float("inf")
    finite = _finite_images(two) if finite is None else finite
    if finite.shape[:1] != two.shape[:1]:
        finite = torch.ones(len(two), dtype=torch.bool, device=two.device)
    differences = (one - two)[finite].flatten(1).abs().amax(1)
    scales = two[finite].flatten(1).abs().amax(1)
    shares = torch.where(differences > 0, differences / scales, 0.0)  # infinite where the scale is 0
    largest = float(shares.max()) if len(shares) else 0.0
    return float("inf") if largest != largest else largest


def _finite_images(answer: Tensor) -> Tensor:
    """bool [N]: the images of which every value is a finite number."""
    return torch.isfinite(answer.flatten(1) if answer.dim() > 1 else answer[:, None]).all(1)


def _complement(positions: Tensor, size: int) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool, device=positions.device).index_fill(0, positions, False)
    return keep.nonzero().flatten()


@torch.no_grad()
def _run(net: nn.Module, images: Tensor, *, tensor: bool = True) -> _Run:
    """One pass, with float64 for new tensors as well; unless `tensor`, the answer may be anything."""
    run, usual = _Run(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _recording(net, run):
            answer = net(images.clone())
        if isinstance(answer, Tensor) and answer.is_floating_point():
            run.answer = answer
        elif tensor:
            run.error = f"it returns a {type(answer).__name__} and not one tensor of logits"
    except FORWARD_ERRORS as error:
        run.error = one_line(error)
    finally:
        torch.set_default_dtype(usual)
    return run


@contextmanager
def _recording(net: nn.Module, run: _Run) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(partial(_record, name, run), with_kwargs=True)
        for name, layer in prunable_layers(net).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(name: str, run: _Run, layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    features = received(args, keywords)
    if features is not None:
        run.calls.append((name, features.clone()))
