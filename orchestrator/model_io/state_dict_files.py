"""Read .pth and .safetensors files of others as a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

import models
from models.densenet import present_name
from orchestrator.errors import StoreError
from orchestrator.model_io.pickle_reader import PickleError, Value, View
from orchestrator.model_io.torch_archive import TorchFileError, read_part, read_records
from orchestrator.storage.tensor_files import load_tensors
from orchestrator.system.files import open_regular, size_of
from orchestrator.trial.network_size import BAD_SIZES
from orchestrator.trial.structure import flow_of

SUFFIXES = (".safetensors", ".pth", ".pt")
LARGEST = 8_000_000_000  # bytes
NESTED = ("state_dict", "model")  # where checkpoints keep it
COUNTER = "num_batches_tracked"  # of batch norms; older files lack it
SIDES = (224, 32)  # pixels; a network with a stem of its own for large images shows here
MOST_SPARE = 64_000_000  # bytes that tensors of one storage may take beyond twice the file's own
Shape = tuple[int, int, int]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, names of before as they are today. StoreError for anything else.

    It takes no more memory than the file has bytes, twice, whatever the file claims of itself.
    """
    try:
        with open_regular(path, follow_links=True) as file:
            size = size_of(file)
            if size > LARGEST:
                raise StoreError(f"{path} has {size:,} bytes; {LARGEST:,} is the most")
            safe = path.suffix == ".safetensors"
            found = _safe(path, file.read(size + 1), size) if safe else _state_dict(path, file)
            if size_of(file) != size:
                raise StoreError(f"{path} changed while it was read")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > 2 * size + MOST_SPARE:
        raise StoreError(f"{path}: its tensors are more than twice as large as it is; this is refused")
    return {present_name(name): tensor for name, tensor in found.items()}


def _safe(path: Path, data: bytes, size: int) -> dict[str, Tensor]:
    if len(data) != size:
        raise StoreError(f"{path} changed while it was read")
    return load_tensors(data, str(path))


def _state_dict(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    try:
        records = read_records(file)
        views = _views(path, records.content)
        used = {view.storage.key for view in views.values()}
        data = {key: read_part(file, *place) for key, place in records.places.items() if key in used}
    except (PickleError, TorchFileError) as error:
        raise StoreError(
            f"{path} is refused: it holds more than tensors, or is damaged: {error}; save its state dict "
            "alone, as safetensors at best"
        ) from error
    return {name: _tensor(path, name, view, data) for name, view in views.items()}


def _views(path: Path, content: Value) -> dict[str, View]:
    """The state dict in what a file holds, plain or nested."""
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise StoreError(f"{path} holds a {type(content).__name__} and no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise StoreError(
                f"{path} is no state dict: {str(name)[:80]!r} is a {type(value).__name__}; it is a mapping "
                f"from names to tensors, plain or under {' or '.join(NESTED)}"
            )
    return content


def _tensor(path: Path, name: str, view: View, data: Mapping[str, bytearray]) -> Tensor:
    """The tensor of a view. StoreError for one that is beyond its storage, or has a number of it twice."""
    kind, count = view.storage.dtype, view.storage.count
    if kind.is_complex:
        raise StoreError(f"{path}: {name[:80]!r} is no plain tensor of real numbers")
    if len(view.shape) != len(view.strides) or 0 in view.shape:
        raise StoreError(f"{path}: {name[:80]!r} has no elements, or no shape")
    reach = 0  # the last element that the dimensions so far come to, those of the shortest steps first
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise StoreError(
                f"{path}: {name[:80]!r} is an expanded view, whose elements share memory; save a copy of it, "
                "by tensor.contiguous()"
            )
        reach += (size - 1) * stride
    if view.offset + reach >= count:
        raise StoreError(f"{path}: {name[:80]!r} reaches beyond its storage of {count:,} elements")
    whole = torch.frombuffer(data[view.storage.key], dtype=kind, count=count)
    strides = [stride if size > 1 else 1 for stride, size in zip(view.strides, view.shape, strict=True)]
    return whole.as_strided(view.shape, strides, view.offset)


def infer_architecture(
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
        except BAD_SIZES as error:  # not for images of this size
            problem = problem or " ".join(str(error).split())[:200]
            continue
        difference = _difference(tensors, outline)
        if not difference:
            return {name: _as(tensors.get(name), like) for name, like in outline.items()}, shape, classes
        problem = problem or difference
    raise StoreError(f"{path} does not hold the tensors of {model[:200]}: {problem}")


def _candidates(tensors: Mapping[str, Tensor], model: str, image: Shape) -> Iterator[tuple[Shape, int]]:
    """Sizes of images, and the number of classes, that the first and the last layer speak of."""
    try:
        flow = flow_of((model, image, 2))
    except ValueError as error:
        raise StoreError(f"{model[:80]} cannot be built for {image}: {error}") from error
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
