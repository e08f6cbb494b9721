"""Which layer reads which, from one forward pass instead of from the order of registration.

In that pass every Linear and convolution is a wall: its output is a new leaf of the autograd graph, so that a
gradient runs from a later tensor back to the layers that it depends on *directly*, through activations, sums
and reshapes, and no further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checks import (
    BATCH_SIZE,
    FORWARD_ERRORS,
    check_example,
    check_network,
    one_line,
    shape_text,
)
from pruning.cutting.layer_widths import SelectedLinear
from pruning.eval_mode import first_float, fixed_generators, model_copy, random_images
from pruning.masking import Conv, Norm, prunable_layers

SIDES = (8, 28, 32, 64, *range(1, 33), 224)  # pixels: tried in turn where there is no example input


@dataclass(frozen=True)
class DataFlow:
    """The layers of a network by the part that they play in one forward pass.

    `layers`: the prunable layers in the order of their first call; those that are never called are missing.
    `outputs`: the layers whose output reaches the logits without passing another layer. `norms`: layer name
    -> the batch norms that read its units one to one.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    norms: Mapping[str, tuple[str, ...]]


@dataclass
class _Pass:
    """What the hooks record in one forward pass.

    `leaves`: (layer, its output as a leaf); `outputs`: the copies of these that the network goes on with;
    `norm_inputs`: (norm, what it read, the layer whose unchanged output that is, if it is one).
    """

    leaves: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    norm_inputs: list[tuple[str, Tensor, str | None]] = field(default_factory=list)


class NotLogitsError(ValueError):
    """A network that runs, and does not return logits that its layers make."""


def find_data_flow(net: nn.Module, example_input: Tensor | None = None) -> DataFlow:
    """Return the data flow of `net`; without `example_input` [N, ...], on an input that its layers suggest.

    ValueError for a network that cannot be run, or that returns anything but one tensor. `net` is untouched.
    """
    copy = model_copy(check_network(net))
    for images in _candidate_inputs(copy, example_input):
        record = _Pass()
        with fixed_generators(copy), _walls(copy, record), torch.enable_grad():
            try:
                return _read_flow(copy, copy(images), record)
            except NotLogitsError:
                raise
            except FORWARD_ERRORS as error:
                if example_input is None:
                    continue
                raise ValueError(
                    f"{type(net).__name__} does not run on {shape_text(images)}: {one_line(error)}"
                ) from error
    raise ValueError(
        f"example_input is needed, a batch of images [N, C, H, W]: {type(net).__name__} is run once to see "
        "which layer makes the logits"
    )


def find_unprunable(net: nn.Module, flow: DataFlow | None = None) -> tuple[str, ...]:
    """Return what has weights and is never pruned, as `name (type)`: Conv1d, LSTM, attention, parameters.

    A weight is a parameter of two dimensions; outside torch's own modules, of two above 1. With `flow`, for
    units and channels, also the layers that are never called: other code that uses their weights has no
    units.
    """
    layers = prunable_layers(net)
    names = []
    for name, module in net.named_modules():
        if name in layers:
            if flow is not None and name not in flow.layers and len(layers) > 1:
                names.append(f"{name} (never called as a layer)")
            continue
        is_torch = type(module).__module__.startswith("torch.nn.")
        dims = [
            p.dim() if is_torch else sum(s > 1 for s in p.shape) for p in module.parameters(recurse=False)
        ]
        if max(dims, default=0) > 1:
            names.append(f"{name or 'the network itself'} ({type(module).__name__})")
    return tuple(names)


def _candidate_inputs(net: nn.Module, example_input: Tensor | None) -> Iterator[Tensor]:
    parameter = first_float(net)
    if example_input is not None:
        yield random_images(check_example(example_input), parameter)
        return
    shapes: dict[tuple[int, ...], None] = {}
    for layer in prunable_layers(net).values():
        if isinstance(layer, Conv):
            dims = len(layer.kernel_size)
            shapes |= {(BATCH_SIZE, layer.in_channels, *[side] * dims): None for side in SIDES}
        else:
            features = layer.source_features if isinstance(layer, SelectedLinear) else layer.in_features
            shapes |= {(BATCH_SIZE, features): None, (BATCH_SIZE, 1, 1, features): None}
    for shape in shapes:
        yield random_images(torch.empty(shape, device="meta"), parameter)


@contextmanager
def _walls(net: nn.Module, record: _Pass) -> Iterator[None]:
    handles: list[Any] = []  # torch's handle class is private
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, Conv)):
            handles.append(module.register_forward_hook(partial(_replace_output, name, record)))
        elif isinstance(module, Norm):
            hook = partial(_record_norm_input, name, record)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the images or features that a layer is called with, by position or by name."""
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) else None


def _replace_output(name: str, record: _Pass, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    leaf = output.detach().requires_grad_(True)
    copy = leaf.clone()  # what follows may work in place, and a leaf may not be changed
    record.leaves.append((name, leaf))
    record.outputs.append((name, copy))
    return copy


def _record_norm_input(
    name: str, record: _Pass, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    features = layer_input(args, kwargs)
    if features is not None:
        # The very tensor, changed by nothing: two layers may well put out equal numbers.
        unchanged = [layer for layer, copy in record.outputs if copy is features and copy._version == 0]
        record.norm_inputs.append((name, features.clone(), unchanged[0] if unchanged else None))


def _read_flow(net: nn.Module, logits: object, record: _Pass) -> DataFlow:
    name = type(net).__name__
    if not isinstance(logits, Tensor):
        raise NotLogitsError(
            f"{name} returns a {type(logits).__name__}; give a network that returns the logits alone, one "
            "tensor [N, classes]"
        )
    if not logits.is_floating_point() or logits.layout != torch.strided:
        raise NotLogitsError(f"{name} returns {shape_text(logits)}; dense floating-point logits are needed")
    layers = tuple(dict.fromkeys(layer for layer, _ in record.leaves))
    if not layers:
        raise NotLogitsError(f"{name} calls none of its Linear and convolution layers")
    outputs = _output_layers(net, logits, record)
    if not outputs:
        raise NotLogitsError(
            f"{name}: its logits depend on no Linear or convolution layer; does its forward switch gradients "
            "off?"
        )
    return DataFlow(layers, outputs, _norms_by_layer(net, record))


def _output_layers(net: nn.Module, logits: Tensor, record: _Pass) -> tuple[str, ...]:
    """Return the layers that make the logits, with those whose weights a function uses: F.linear(h, w)."""
    direct = _direct_sources(logits, record.leaves)
    called = {name for name, _ in record.leaves}
    uncalled = [(name, layer.weight) for name, layer in prunable_layers(net).items() if name not in called]
    heads = _direct_sources(logits, uncalled) if uncalled else {}
    # Beside such a head, a layer that is called makes logits only if it has a row for each class.
    rows = [name for name, leaf in direct.items() if not heads or leaf.shape[1] == logits.shape[-1]]
    return (*rows, *heads)


def _direct_sources(tensor: Tensor, leaves: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return layer name -> the leaf of the last of its calls that `tensor` depends on."""
    if not tensor.requires_grad:
        return {}
    gradients = torch.autograd.grad(
        tensor.sum(), [leaf for _, leaf in leaves], retain_graph=True, allow_unused=True
    )
    return {
        name: leaf for (name, leaf), gradient in zip(leaves, gradients, strict=True) if gradient is not None
    }


def _norms_by_layer(net: nn.Module, record: _Pass) -> dict[str, tuple[str, ...]]:
    """Return layer -> the norms that read this layer alone, unit i in entry i, at all of their calls."""
    rows = {name: layer.weight.shape[0] for name, layer in prunable_layers(net).items()}
    sources: dict[str, set[str | None]] = {}
    for norm, features, unchanged in record.norm_inputs:
        width = getattr(net.get_submodule(norm), "num_features", 0)
        fits = any(rows[name] == width for name, _ in record.leaves)  # gradients cost more than widths
        source = unchanged or (_only_source(features, record.leaves) if fits else None)
        sources.setdefault(norm, set()).add(source)
    norms: dict[str, tuple[str, ...]] = {}
    for norm, layers in sources.items():
        if len(layers) == 1 and (layer := next(iter(layers))) is not None:
            norms[layer] = (*norms.get(layer, ()), norm)
    return norms


def _only_source(features: Tensor, leaves: Sequence[tuple[str, Tensor]]) -> str | None:
    """Return the one layer that `features` depend on, unit by unit; None without such a layer."""
    sources = _direct_sources(features, leaves)
    if len(sources) != 1:
        return None
    name, leaf = next(iter(sources.items()))
    return name if _is_one_to_one(features, leaf) else None


def _is_one_to_one(features: Tensor, leaf: Tensor) -> bool:
    """Return whether channel i of `features` depends on unit i of `leaf` alone."""
    if features.dim() < 2 or features.shape[1] != leaf.shape[1] or leaf.dim() not in (2, 4):
        return False
    index = torch.arange(features.shape[1], device=features.device)
    # By the bits of i: two gradients for each bit tell any two channels apart, not one for each channel.
    for bit, value in [(b, v) for b in range(max(1, (len(index) - 1).bit_length())) for v in (0, 1)]:
        inside = (index >> bit) & 1 == value
        if not inside.any():
            continue
        gradient = torch.autograd.grad(features[:, inside].sum(), leaf, retain_graph=True)[0]
        if gradient[:, ~inside].any():
            return False
    return True
