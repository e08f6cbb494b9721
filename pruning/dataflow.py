"""What reads what in a network, seen in one forward pass instead of taken from the order of registration.

Every Linear and Conv2d is a wall in that pass: its answer is a new leaf of the autograd graph, so that a
gradient runs from a later tensor back to the layers that it depends on *directly*, through activations,
sums and reshapes, and no further.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear
from pruning.checks import (
    FORWARD_ERRORS,
    check_example,
    check_network,
    names_to_protect,
    one_line,
    shape_text,
)
from pruning.copies import copy_in_eval_mode, random_images
from pruning.masking import Norm, prunable_layers

SIDES = (8, 28, 32, 64, *range(1, 33), 224)  # pixels: tried in turn where no example input is given
COPIES = 2  # images in a batch that we draw ourselves


@dataclass(frozen=True)
class DataFlow:
    """What one forward pass shows of a network.

    `layers`: the prunable layers in the order of their first call; those that are never called are missing.
    `outputs`: the layers whose answer reaches the logits without passing another layer. `norms`: layer name
    -> the batch norms that read its units one to one.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    norms: Mapping[str, tuple[str, ...]]


@dataclass
class _Pass:
    """What one forward pass shows.

    `leaves`: (layer, its answer as a leaf); `answers`: the copies of these that the network goes on with;
    `norm_inputs`: (norm, what it read, the layer whose untouched answer that is, if it is one).
    """

    leaves: list[tuple[str, Tensor]] = field(default_factory=list)
    answers: list[tuple[str, Tensor]] = field(default_factory=list)
    norm_inputs: list[tuple[str, Tensor, str | None]] = field(default_factory=list)


class NotLogitsError(ValueError):
    """A network that runs, and does not return logits that its layers make."""


def data_flow(net: nn.Module, example_input: Tensor | None = None) -> DataFlow:
    """The data flow of `net`; without `example_input` [N, ...], on an input that its layers suggest.

    ValueError for a network that cannot be run, or that returns anything but one tensor. `net` is untouched.
    """
    twin = copy_in_eval_mode(check_network(net))
    for images in _candidates(twin, example_input):
        watched = _Pass()
        with _walls(twin, watched), torch.enable_grad():
            try:
                return _read(twin, twin(images), watched)
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


def unpruned(net: nn.Module, flow: DataFlow | None = None) -> tuple[str, ...]:
    """What has weights and is never pruned, as `name (type)`: Conv1d, LSTM, attention, other parameters.

    A weight is a parameter of two dimensions; outside torch's own modules, of two above 1. With `flow`, for
    units and channels, also the layers that are never called: who else uses their weights makes no units.
    """
    layers = prunable_layers(net)
    names = []
    for name, module in net.named_modules():
        if name in layers:
            if flow is not None and name not in flow.layers and len(layers) > 1:
                names.append(f"{name} (never called as a layer)")
            continue
        torchs = type(module).__module__.startswith("torch.nn.")
        dims = [p.dim() if torchs else sum(s > 1 for s in p.shape) for p in module.parameters(recurse=False)]
        if max(dims, default=0) > 1:
            names.append(f"{name or 'the network itself'} ({type(module).__name__})")
    return tuple(names)


def protected_layers(
    net: nn.Module,
    protect: Collection[str],
    *,
    flow: DataFlow | None = None,
    example_input: Tensor | None = None,
) -> frozenset[str]:
    """Module names for `protect`: `input`, `output`, or names of layers. ValueError for others.

    `input` is the first layer that runs; `output` are those that make the logits.
    """
    layers, protect = list(prunable_layers(net)), names_to_protect(protect)
    names = frozenset(protect) - {"input", "output"}
    if len(names) < len(set(protect)):
        if len(layers) == 1:
            names |= {layers[0]}
        else:
            flow = flow or data_flow(net, example_input)
            names |= set(flow.outputs) if "output" in protect else set()
            names |= {flow.layers[0]} if "input" in protect else set()
    for name in sorted(names - set(layers)):
        near = get_close_matches(name, ["input", "output", *layers], n=3, cutoff=0.4)
        raise ValueError(
            f"protect: no layer {name!r}; there are {', '.join(near or ['input', 'output', *layers[:5]])}"
        )
    return names


def _candidates(net: nn.Module, example_input: Tensor | None) -> Iterator[Tensor]:
    parameter = next(p for p in net.parameters() if p.is_floating_point())
    if example_input is not None:
        yield random_images(check_example(example_input), parameter)
        return
    shapes: dict[tuple[int, ...], None] = {}
    for layer in prunable_layers(net).values():
        if isinstance(layer, nn.Conv2d):
            shapes |= {(COPIES, layer.in_channels, side, side): None for side in SIDES}
        else:
            features = layer.source_features if isinstance(layer, SelectedLinear) else layer.in_features
            shapes |= {(COPIES, features): None, (COPIES, 1, 1, features): None}
    for shape in shapes:
        yield random_images(torch.empty(shape, device="meta"), parameter)


@contextmanager
def _walls(net: nn.Module, watched: _Pass) -> Iterator[None]:
    handles: list[Any] = []  # torch's handle class is private
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            handles.append(module.register_forward_hook(partial(_wall, name, watched)))
        elif isinstance(module, Norm):
            see = partial(_see_norm, name, watched)
            handles.append(module.register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def received(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """The images or features that a layer is called with, by position or by name."""
    given = args[0] if args else keywords.get("input")
    return given if isinstance(given, Tensor) else None


def _wall(name: str, watched: _Pass, module: nn.Module, inputs: object, answer: Tensor) -> Tensor:
    leaf = answer.detach().requires_grad_(True)
    copy = leaf.clone()  # what follows may work in place, and a leaf may not be changed
    watched.leaves.append((name, leaf))
    watched.answers.append((name, copy))
    return copy


def _see_norm(
    name: str, watched: _Pass, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    seen = received(args, keywords)
    if seen is not None:
        # The very tensor, changed by nothing: two layers may well answer with equal numbers.
        untouched = [layer for layer, copy in watched.answers if copy is seen and copy._version == 0]
        watched.norm_inputs.append((name, seen.clone(), untouched[0] if untouched else None))


def _read(net: nn.Module, logits: object, watched: _Pass) -> DataFlow:
    name = type(net).__name__
    if not isinstance(logits, Tensor):
        raise NotLogitsError(
            f"{name} returns a {type(logits).__name__}; give a network that returns the logits alone, one "
            "tensor [N, classes]"
        )
    if not logits.is_floating_point() or logits.layout != torch.strided:
        raise NotLogitsError(f"{name} returns {shape_text(logits)}; dense floating-point logits are needed")
    layers = tuple(dict.fromkeys(layer for layer, _ in watched.leaves))
    if not layers:
        raise NotLogitsError(f"{name} calls none of its Linear and Conv2d layers")
    outputs = _outputs(net, logits, watched)
    if not outputs:
        raise NotLogitsError(
            f"{name}: its logits depend on no Linear or Conv2d layer; does its forward switch gradients off?"
        )
    return DataFlow(layers, outputs, _norms(net, watched))


def _outputs(net: nn.Module, logits: Tensor, watched: _Pass) -> tuple[str, ...]:
    """The layers that make the logits, the weights used by a function of torch's among them."""
    direct = _reached(logits, watched.leaves)
    called = {name for name, _ in watched.leaves}
    used = {
        name: layer.weight for name, layer in prunable_layers(net).items() if name not in called
    }  # as in F.linear(h, self.head.weight)
    heads = _reached(logits, list(used.items())) if used else {}
    rows = [name for name, leaf in direct.items() if not heads or leaf.shape[1] == logits.shape[-1]]
    return (*rows, *heads)


def _reached(tensor: Tensor, leaves: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Layer name -> the leaf of the last of its calls that `tensor` depends on."""
    if not tensor.requires_grad:
        return {}
    gradients = torch.autograd.grad(
        tensor.sum(), [leaf for _, leaf in leaves], retain_graph=True, allow_unused=True
    )
    return {
        name: leaf for (name, leaf), gradient in zip(leaves, gradients, strict=True) if gradient is not None
    }


def _norms(net: nn.Module, watched: _Pass) -> dict[str, tuple[str, ...]]:
    """Layer -> the norms that read this layer alone, unit i in entry i, at every one of their calls."""
    rows = {name: layer.weight.shape[0] for name, layer in prunable_layers(net).items()}
    producers: dict[str, set[str | None]] = {}
    for norm, seen, untouched in watched.norm_inputs:
        width = getattr(net.get_submodule(norm), "num_features", 0)
        fits = any(rows[name] == width for name, _ in watched.leaves)
        producer = untouched or (_only_producer(seen, watched.leaves) if fits else None)
        producers.setdefault(norm, set()).add(producer)
    pairs: dict[str, tuple[str, ...]] = {}
    for norm, layers in producers.items():
        if len(layers) == 1 and (layer := next(iter(layers))) is not None:
            pairs[layer] = (*pairs.get(layer, ()), norm)
    return pairs


def _only_producer(seen: Tensor, leaves: Sequence[tuple[str, Tensor]]) -> str | None:
    reached = _reached(seen, leaves)
    if len(reached) != 1:
        return None
    name, leaf = next(iter(reached.items()))
    return name if _is_one_to_one(seen, leaf) else None


def _is_one_to_one(seen: Tensor, leaf: Tensor) -> bool:
    """Whether channel i of `seen` depends on unit i of `leaf` alone: channels are asked by the bits of i."""
    if seen.dim() < 2 or seen.shape[1] != leaf.shape[1] or leaf.dim() not in (2, 4):
        return False
    index = torch.arange(seen.shape[1], device=seen.device)
    for bit, value in [(b, v) for b in range(max(1, (len(index) - 1).bit_length())) for v in (0, 1)]:
        inside = (index >> bit) & 1 == value
        if not inside.any():
            continue
        gradient = torch.autograd.grad(seen[:, inside].sum(), leaf, retain_graph=True)[0]
        if gradient[:, ~inside].any():
            return False
    return True
