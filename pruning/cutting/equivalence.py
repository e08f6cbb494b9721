"""Check that a network with channels cut out computes what the masked one computes.

Both run on random images in float64. The error names the first layer that reads something else, and the
reason where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS, one_line
from pruning.cutting.layer_widths import Removed, SelectedLinear, complement
from pruning.dataflow import layer_input
from pruning.masking import Conv, channel_dim, prunable_layers, unit_dim

TOLERANCE = 1e-9  # of the largest value; float64 itself is off by 1e-13 or so
ADVICE = (
    "Channels are mixed or moved on the way (a shuffle, a softmax or norm over channels, a reshape with "
    "fixed sizes, a tensor of fixed width): protect the layers before it, or choose granularity weight"
)


@dataclass
class _Run:
    """One forward pass: (layer, its input) in order of the calls, and the output or the error."""

    calls: list[tuple[str, Tensor]] = field(default_factory=list)
    output: Tensor | None = None
    error: str = ""


class UnequalError(ValueError):
    """Where a network that is cut out is not the masked one: `layer`, or "" where none is to blame."""

    def __init__(self, layer: str, text: str) -> None:
        super().__init__(text)
        self.layer = layer


@dataclass
class MaskedRun:
    """What a masked network computes on some images: enough to compare a cut one with it, without it.

    `nonzero` are the layers, by the number of their call, that read non-zero values from removed channels.
    `untrained` is the network itself, where some of its layers are not called in eval mode.
    """

    name: str
    run: _Run
    output: Tensor
    finite: Tensor
    removed: Removed
    nonzero: frozenset[int]
    uncalled: tuple[str, ...]
    untrained: nn.Module | None


def run_masked(masked: nn.Module, images: Tensor, *, removed: Removed) -> MaskedRun:
    """Run a masked float64 network in eval mode. ValueError where there is nothing to compare with.

    `removed` are the positions that the cut network will lack.
    """
    run, name = _run(masked, images), type(masked).__name__
    if run.output is None:
        raise ValueError(
            f"{name} does not run in float64 on random images: {run.error}; where its forward casts, let it "
            "cast to the type of its weights"
        )
    finite = _finite_images(run.output)
    if not finite.any():
        raise ValueError(
            f"{name} gives values that are not finite on random images: what is cut out of it cannot be "
            "compared with it"
        )
    nonzero = {
        number
        for number, (layer, features) in enumerate(run.calls)
        if (layer, "in") in removed
        and _reads_nonzero(masked.get_submodule(layer), features, removed[layer, "in"])
    }
    uncalled = _uncalled(masked, {layer for layer, _ in run.calls})
    untrained = deepcopy(masked) if uncalled else None
    return MaskedRun(name, run, run.output, finite, removed, frozenset(nonzero), uncalled, untrained)


def check_equal(
    masked: MaskedRun, cut: nn.Module, images: Tensor, *, rebuild: Callable[[], nn.Module]
) -> None:
    """Raise ValueError, naming a layer, unless `cut` computes what the masked network did, to `TOLERANCE`.

    `cut` is a float64 network in eval mode. Images are compared one by one with the largest value of their
    own: they may be of very different sizes. `rebuild` makes the masked network again, to see whether it
    differs from itself.
    """
    cut_run = _run(cut, images)
    try:
        _check_calls(masked, cut, cut_run)
        _check_outputs(masked.run, masked.output, cut_run, masked.finite)
    except ValueError as error:
        # A network that is random in eval mode differs from itself: that is the reason then.
        repeated = _run(rebuild(), images).output
        if repeated is None or _difference(repeated, masked.output, masked.finite) > TOLERANCE:
            raise ValueError(
                f"{masked.name} gives other outputs when it is run again: its eval mode must switch dropout "
                "and the like off"
            ) from error
        raise error
    if masked.untrained is not None:
        _check_training(masked.untrained, cut, images, masked.uncalled)


def find_zero_columns(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return layer -> bool [columns], on the CPU: the columns that read zeros alone, at all of its calls."""
    columns: dict[str, Tensor] = {}
    for name, features in _run(net, images).calls:
        zero = (features == 0).movedim(channel_dim(net.get_submodule(name)), 0).flatten(1).all(1).cpu()
        columns[name] = columns[name] & zero if name in columns else zero
    return columns


def _check_outputs(masked_run: _Run, expected: Tensor, cut_run: _Run, finite: Tensor) -> None:
    output = cut_run.output
    if output is None:
        raise _stop(cut_run)
    if output.shape != expected.shape or _difference(output, expected, finite) > TOLERANCE:
        last = masked_run.calls[-1][0] if masked_run.calls else "the last layer"
        raise UnequalError(
            last,
            f"{last}: the logits of the network that is cut out are not those of the masked one; "
            f"{_difference_text(output, expected)}. {ADVICE}",
        )


def _uncalled(net: nn.Module, called: Collection[str]) -> tuple[str, ...]:
    """Return the layers that are not called in eval mode."""
    attentions = [name for name, module in net.named_modules() if isinstance(module, nn.MultiheadAttention)]
    projections = {f"{name}.out_proj" for name in attentions}  # whose weights the attention itself uses
    return tuple(name for name in prunable_layers(net) if name not in {*called, *projections})


def _check_training(masked: nn.Module, cut: nn.Module, images: Tensor, uncalled: Sequence[str]) -> None:
    """Raise ValueError where layers that run in training mode alone read channels that are cut out."""
    runs = [_run(net.train(), images, need_tensor=False) for net in (masked, deepcopy(cut))]
    if not runs[0].error and runs[1].error:
        raise ValueError(
            f"{uncalled[0]}: it runs in training mode alone, where the network that is cut out breaks off "
            f"({runs[1].error}); take such layers out of the network first"
        )


def _check_calls(masked: MaskedRun, cut: nn.Module, cut_run: _Run) -> None:
    """Raise ValueError unless the same layers run in the same order, each on the same values."""
    called = {name for name, _ in masked.run.calls}
    # An attention that is cut calls its output projection as a layer, torch's own does not.
    cut_calls = [call for call in cut_run.calls if call[0] in called]
    pairs = zip(masked.run.calls, cut_calls, strict=False)
    for number, ((name, expected), (cut_name, features)) in enumerate(pairs):
        if cut_name != name:
            text = f"{name}: the network that is cut out takes another path than the masked one"
            raise UnequalError(name, text)
        positions, layer = masked.removed.get((name, "in")), cut.get_submodule(name)
        if positions is not None and not isinstance(layer, SelectedLinear):
            if number in masked.nonzero:
                raise UnequalError(
                    name,
                    f"{name}: it reads non-zero values from pruned channels (what comes before makes "
                    "something else of zero, or adds to it); mask its columns too, or protect the layers "
                    "before it",
                )
            dim = channel_dim(layer)
            expected = expected.index_select(dim, complement(positions, expected.shape[dim]))
        if features.shape != expected.shape or _difference(features, expected) > TOLERANCE:
            raise UnequalError(
                name,
                f"{name}: what it reads in the network that is cut out is not what the masked one reads; "
                f"{_difference_text(features, expected)}. {ADVICE}",
            )
    if len(cut_calls) < len(masked.run.calls):
        raise _stop(cut_run, before=masked.run.calls[len(cut_calls)][0])


def _reads_nonzero(layer: nn.Module, features: Tensor, removed: Tensor) -> bool:
    """Return whether a column with weights reads non-zero values from a channel that is removed."""
    weight: Tensor = layer.weight  # type: ignore[assignment]  # it may be computed, and no parameter then
    removed = removed.to(weight.device)
    if isinstance(layer, Conv) and layer.groups > 1:
        return False  # its rows go with these columns
    is_read = (weight != 0).movedim(1 - unit_dim(layer), 0).flatten(1).any(1)
    columns = removed[is_read[removed]]
    return bool(features.index_select(channel_dim(layer), columns).any())


def _stop(run: _Run, before: str = "") -> UnequalError:
    last = run.calls[-1][0] if run.calls else "the first layer"
    return UnequalError(
        last,
        f"{last}: the network that is cut out does not run on from there"
        f"{f' to {before}' if before else ''} ({run.error or 'it ends'}). {ADVICE}",
    )


def _difference_text(values: Tensor, expected: Tensor) -> str:
    if values.shape != expected.shape:
        return f"shapes {tuple(values.shape)} and {tuple(expected.shape)}"
    return f"they differ by {_difference(values, expected):.2g} of the largest value"


def _difference(values: Tensor, expected: Tensor, finite: Tensor | None = None) -> float:
    """Return the largest difference over the largest value, image by image, where `expected` is finite."""
    if not values.numel():
        return 0.0
    finite = _finite_images(expected) if finite is None else finite
    if finite.shape[:1] != expected.shape[:1]:
        finite = torch.ones(len(expected), dtype=torch.bool, device=expected.device)
    differences = (values - expected)[finite].flatten(1).abs().amax(1)
    scales = expected[finite].flatten(1).abs().amax(1)
    shares = torch.where(differences > 0, differences / scales, 0.0)  # infinite where the scale is 0
    largest = float(shares.max()) if len(shares) else 0.0
    return float("inf") if largest != largest else largest  # NaN is no small difference


def _finite_images(output: Tensor) -> Tensor:
    """Return bool [N]: the images of which every value is a finite number."""
    return torch.isfinite(output.flatten(1) if output.dim() > 1 else output[:, None]).all(1)


@torch.no_grad()
def _run(net: nn.Module, images: Tensor, *, need_tensor: bool = True) -> _Run:
    """Run one pass, with float64 for new tensors too; unless `need_tensor`, the output may be anything."""
    run, default_dtype = _Run(), torch.get_default_dtype()
    handles = [
        layer.register_forward_pre_hook(partial(_record_input, name, run), with_kwargs=True)
        for name, layer in prunable_layers(net).items()
    ]
    torch.set_default_dtype(torch.float64)
    try:
        output = net(images.clone())
        if isinstance(output, Tensor) and output.is_floating_point():
            run.output = output
        elif need_tensor:
            run.error = f"it returns a {type(output).__name__} and not one tensor of logits"
    except FORWARD_ERRORS as error:
        run.error = one_line(error)
    finally:
        torch.set_default_dtype(default_dtype)
        for handle in handles:
            handle.remove()
    return run


def _record_input(
    name: str, run: _Run, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    features = layer_input(args, kwargs)
    if features is not None:
        run.calls.append((name, features.clone()))  # a copy: the network may go on in place
