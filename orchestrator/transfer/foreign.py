"""A file of weights from elsewhere, safetensors or a state dict of torch's, as a network of ours.

Nothing in it is run: a .pth is read as tensors alone (`weights_only`), and refused where it holds more.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

import models
from models.densenet import present_name
from orchestrator.errors import StoreError
from orchestrator.store.tensor_files import header
from orchestrator.walk.structure import flow_of

SUFFIXES = (".safetensors", ".pth", ".pt")
LARGEST = 8_000_000_000  # bytes
NESTED = ("state_dict", "model")  # where checkpoints keep it
COUNTER = "num_batches_tracked"  # of batch norms; older files lack it
SIDES = (224, 32)  # pixels; a network with a stem of its own for large images shows here
# What torch and pickle raise for a file that is damaged, or holds more than tensors.
DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)
Shape = tuple[int, int, int]


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, names of before as they are today. StoreError for anything else."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise StoreError(f"{path} has {size:,} bytes; {LARGEST:,} is the most")
        found: Mapping[Any, Any] = _safe(path) if path.suffix == ".safetensors" else _state_dict(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    named: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise StoreError(
                f"{path} is no state dict: {name!r:.80} is a {type(tensor).__name__}; it is a mapping from "
                f"names to tensors, plain or under {' or '.join(NESTED)}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise StoreError(f"{path}: {name:.80} is no plain tensor of real numbers")
        named[present_name(name)] = tensor.detach()
    return named


def _safe(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    header(data, str(path))  # refuses what safetensors itself takes
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise StoreError(f"{path} is no safetensors file: {str(error).splitlines()[0][:200]}") from error


def _state_dict(path: Path) -> Mapping[Any, Any]:  # whatever a file of tensors may hold
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise StoreError(
            f"{path} is refused: it holds more than tensors, or is damaged; save its state dict alone, as "
            "safetensors at best"
        ) from error
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found:
        raise StoreError(f"{path} holds a {type(found).__name__} and no state dict")
    return found


def as_network(
    path: Path, tensors: Mapping[str, Tensor], *, model: str, image: Shape
) -> tuple[dict[str, Tensor], Shape, int]:
    """(weights, input shape, number of classes) of a file of this model; StoreError if it is of another.

    `image` is what our data sets have: a size that the tensors fit is looked for from there on.
    """
    problem = ""
    for shape, classes in _candidates(tensors, model, image):
        try:
            with torch.device("meta"):
                outline = models.build(model, input_shape=shape, num_classes=classes).state_dict()
        except (ValueError, TypeError, RuntimeError) as error:  # not for images of this size
            problem = problem or " ".join(str(error).split())[:200]
            continue
        difference = _difference(tensors, outline)
        if not difference:
            return {name: _as(tensors.get(name), like) for name, like in outline.items()}, shape, classes
        problem = problem or difference
    raise StoreError(f"{path} does not hold the tensors of {model[:200]}: {problem}")


def _candidates(tensors: Mapping[str, Tensor], model: str, image: Shape) -> Iterator[tuple[Shape, int]]:
    """Sizes of images, and the number of classes, that the first and the last layer speak of."""
    flow = flow_of((model, image, 2))
    first, last = f"{flow.layers[0]}.weight", f"{flow.outputs[-1]}.weight"
    if first not in tensors or last not in tensors or not 2 <= tensors[first].dim() <= 4:
        yield image, 2  # of another model: the difference is told
        return
    classes, inputs = (tensors[last].shape or (0,))[0], tensors[first].shape[1]
    if tensors[first].dim() == 2:
        yield image, classes
        yield (1, 1, inputs), classes
        return
    yield (inputs, *image[1:]), classes
    yield from (((inputs, side, side), classes) for side in SIDES)


def _difference(tensors: Mapping[str, Tensor], outline: Mapping[str, Tensor]) -> str:
    """The first thing that does not fit; nothing if all does."""
    missing = [name for name in outline if name not in tensors and not name.endswith(COUNTER)]
    if missing:
        return f"{missing[0]} is missing"
    if others := sorted(tensors.keys() - outline.keys()):
        return f"{others[0][:80]!r} is none of them"
    for name, wanted in outline.items():
        tensor = tensors.get(name, wanted)
        if tensor.shape != wanted.shape:
            return f"{name} is {tuple(tensor.shape)}, and {tuple(wanted.shape)} is needed"
        if tensor.is_floating_point() != wanted.is_floating_point():
            return f"{name} holds {tensor.dtype}"
    return ""


def _as(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A copy in the network's own type; a counter that is missing starts at zero."""
    if tensor is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    return tensor.to(like.dtype, copy=True).contiguous()
