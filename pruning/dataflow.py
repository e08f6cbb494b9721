"""What reads what in a network, seen in one forward pass instead of taken from the order of registration.

Every Linear and Conv2d is a wall in that pass: its answer is a new leaf of the autograd graph, so that a
gradient runs from a later tensor back to the layers that it depends on *directly*, through activations,
sums and reshapes, and no further.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.architecture import SelectedLinear
from pruning.masking import Norm, prunable_layers

# What a network's own forward may raise on an input that does not suit it.
FORWARD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
SIDES = (8, 28, 32, 64, *range(1, 33), 224)  # pixels: tried in turn where no example input is given
COMPUTED = (
    "its weight is computed from other parameters, so that a mask would not hold; make it permanent first "
    "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations, remove_weight_norm), or protect it"
)
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
    """What one forward pass shows: (layer, its answer as a leaf), and (norm, what it read)."""

    leaves: list[tuple[str, Tensor]] = field(default_factory=list)
    norm_inputs: list[tuple[str, Tensor]] = field(default_factory=list)


def data_flow(net: nn.Module, example_input: Tensor | None = None) -> DataFlow:
    """The data flow of `net`; without `example_input` [N, ...], on an input that its layers suggest.

    ValueError for a network that cannot be run, or that returns anything but one tensor. `net` is untouched.
    """
    check_network(net)
    if not prunable_layers(net):
        raise ValueError(f"{type(net).__name__} has no Linear or Conv2d layer: there is nothing to prune")
    twin = float64_twin(net)
    for images in _candidates(twin, example_input):
        watched = _Pass()
        with _walls(twin, watched), torch.enable_grad():
            try:
                logits = twin(images)
            except FORWARD_ERRORS as error:
                if example_input is None:
                    continue
                raise ValueError(
                    f"{type(net).__name__} does not run on {_shape(example_input)}: {one_line(error)}"
                ) from error
            return _read(net, logits, watched)
    raise ValueError(
        f"example_input is needed, a batch of images [N, C, H, W]: {type(net).__name__} is run once to see "
        "which layer makes the logits"
    )


def check_network(net: nn.Module) -> None:
    """ValueError unless every parameter of `net` has values of its own: none on "meta", none lazy."""
    for name, parameter in net.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"{name} has no shape yet (a lazy layer): run the network once before it is pruned"
            )
        if parameter.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values: load the network's weights first"
            )


def check_example(example_input: object) -> Tensor:
    """The example input; ValueError unless it is a batch of floating-point images, [N, ...] with N >= 1."""
    if not isinstance(example_input, Tensor):
        raise ValueError(
            f"example_input is a {type(example_input).__name__}; a tensor of images [N, C, H, W] is needed"
        )
    if not example_input.is_floating_point() or example_input.dim() < 2 or not example_input.numel():
        raise ValueError(
            f"example_input is {_shape(example_input)}; floating-point images [N, C, H, W] are needed"
        )
    return example_input


def unpruned(net: nn.Module, flow: DataFlow | None = None) -> tuple[str, ...]:
    """What has weights and is never pruned, as `name (type)`: Conv1d, LSTM, attention, other parameters.

    A weight is a parameter of two dimensions; outside torch's own modules, of two above 1. With `flow`, also
    layers that are never called.
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
    layers = list(prunable_layers(net))
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


def copy_in_eval_mode(net: nn.Module) -> nn.Module:
    """A copy in eval mode with gradients on; ValueError where the network cannot be copied."""
    try:
        twin = deepcopy(net).eval()
    except FORWARD_ERRORS as error:
        computed = [name for name, layer in prunable_layers(net).items() if "weight" not in layer._parameters]
        why = f"{computed[0]}: {COMPUTED}" if computed else one_line(error)
        raise ValueError(f"{type(net).__name__} cannot be copied: {why}") from error
    for parameter in twin.parameters():
        if parameter.is_floating_point():  # an integer has no gradient
            parameter.requires_grad_(True)
    return twin


def float64_twin(net: nn.Module) -> nn.Module:
    """The same in float64."""
    return copy_in_eval_mode(net).double()


def random_images(like: Tensor, *, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Float64 images in the shape of `like`, at least two, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (max(COPIES, min(len(like), 4)), *like.shape[1:])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device or like.device)


def one_line(error: BaseException) -> str:
    """An error's message, on one line of a bearable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _candidates(net: nn.Module, example_input: Tensor | None) -> Iterator[Tensor]:
    parameter = next(net.parameters())
    if example_input is not None:
        yield random_images(check_example(example_input), device=parameter.device)
        return
    shapes: dict[tuple[int, ...], None] = {}
    for layer in prunable_layers(net).values():
        if isinstance(layer, nn.Conv2d):
            shapes |= {(COPIES, layer.in_channels, side, side): None for side in SIDES}
        else:
            features = layer.source_features if isinstance(layer, SelectedLinear) else layer.in_features
            shapes |= {(COPIES, features): None, (COPIES, 1, 1, features): None}
    for shape in shapes:
        yield random_images(torch.empty(shape, device="meta"), device=parameter.device)


@contextmanager
def _walls(net: nn.Module, watched: _Pass) -> Iterator[None]:
    handles: list[Any] = []  # torch's handle class is private
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            handles.append(module.register_forward_hook(partial(_wall, name, watched)))
        elif isinstance(module, Norm):
            handles.append(module.register_forward_pre_hook(partial(_see_norm, name, watched)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wall(name: str, watched: _Pass, module: nn.Module, inputs: object, answer: Tensor) -> Tensor:
    leaf = answer.detach().requires_grad_(True)
    watched.leaves.append((name, leaf))
    return leaf.clone()  # what follows may work in place, and a leaf may not be changed


def _see_norm(name: str, watched: _Pass, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs:
        watched.norm_inputs.append((name, inputs[0].clone()))


def _read(net: nn.Module, logits: object, watched: _Pass) -> DataFlow:
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{type(net).__name__} returns a {type(logits).__name__}; give a network that returns the logits "
            "alone, one tensor [N, classes]"
        )
    layers = tuple(dict.fromkeys(name for name, _ in watched.leaves))
    if not layers:
        raise ValueError(f"{type(net).__name__} calls none of its Linear and Conv2d layers")
    outputs = tuple(name for name in layers if name in _reached(logits, watched.leaves))
    if not outputs:
        raise ValueError(f"{type(net).__name__}: its logits depend on no Linear or Conv2d layer")
    return DataFlow(layers, outputs, _norms(net, watched))


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
    for norm, seen in watched.norm_inputs:
        width = getattr(net.get_submodule(norm), "num_features", 0)
        near = [(name, leaf) for name, leaf in watched.leaves if rows[name] == width]
        producers.setdefault(norm, set()).add(_only_producer(seen, near, watched.leaves) if near else None)
    pairs: dict[str, tuple[str, ...]] = {}
    for norm, layers in producers.items():
        if len(layers) == 1 and (layer := next(iter(layers))) is not None:
            pairs[layer] = (*pairs.get(layer, ()), norm)
    return pairs


def _only_producer(
    seen: Tensor, near: Sequence[tuple[str, Tensor]], leaves: Sequence[tuple[str, Tensor]]
) -> str | None:
    for name, leaf in near:
        if leaf.shape == seen.shape and torch.equal(leaf, seen):
            return name  # as it comes from the layer
    reached = _reached(seen, leaves)
    if len(reached) != 1:
        return None
    name, leaf = next(iter(reached.items()))
    return name if any(name == other for other, _ in near) and _is_one_to_one(seen, leaf) else None


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


def _shape(tensor: Tensor) -> str:
    return f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}".replace("torch.", "")
