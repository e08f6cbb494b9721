"""Read the state dict of a .pth or .safetensors file that another program wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

import models
from models.densenet import current_name
from orchestrator.errors import StoreError
from orchestrator.model_io.pickle_reader import PickleError, TensorView, Value
from orchestrator.model_io.torch_archive import TorchFileError, read_archive, read_bytes
from orchestrator.storage.tensor_files import load_tensors
from orchestrator.system.files import open_regular, size_of
from orchestrator.trial.structure import BAD_SIZES, flow_of

SUFFIXES = (".safetensors", ".pth", ".pt")
LARGEST = 8_000_000_000  # bytes
NESTED = ("state_dict", "model")  # keys of a checkpoint that hold the state dict
COUNTER = "num_batches_tracked"  # of batch norms; older files lack it
SIDES = (224, 32)  # pixels; some models have another first layer for large images
MOST_SPARE = 64_000_000  # bytes that tensors may take beyond twice the size of the file
Shape = tuple[int, int, int]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name; names of older torchvision files become today's.

    It takes at most twice as much memory as the file has bytes, whatever the file claims of itself.
    Raises StoreError for anything but a state dict.
    """
    try:
        with open_regular(path, follow_links=True) as file:
            size = size_of(file)
            if size > LARGEST:
                raise StoreError(f"{path} has {size:,} bytes; {LARGEST:,} is the most")
            if path.suffix == ".safetensors":
                data = file.read(size + 1)
                if len(data) != size:
                    raise StoreError(f"{path} changed while it was read")
                tensors = load_tensors(data, str(path))
            else:
                tensors = _read_torch_file(path, file)
            if size_of(file) != size:
                raise StoreError(f"{path} changed while it was read")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size + MOST_SPARE:
        raise StoreError(f"{path}: its tensors are more than twice as large as it is; this is refused")
    return {current_name(name): tensor for name, tensor in tensors.items()}


def _read_torch_file(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    try:
        archive = read_archive(file)
        views = _views(path, archive.content)
        used = {view.storage.key for view in views.values()}
        data = {key: read_bytes(file, *span) for key, span in archive.storages.items() if key in used}
    except (PickleError, TorchFileError) as error:
        raise StoreError(
            f"{path} is refused: it holds more than tensors, or is damaged: {error}; save its state dict "
            "alone, as safetensors at best"
        ) from error
    return {name: _tensor(path, name, view, data) for name, view in views.items()}


def _views(path: Path, content: Value) -> dict[str, TensorView]:
    """The state dict in the content of a file, plain or nested."""
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise StoreError(f"{path} holds a {type(content).__name__} and no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TensorView):
            raise StoreError(
                f"{path} is no state dict: {str(name)[:80]!r} is a {type(value).__name__}; it is a mapping "
                f"from names to tensors, plain or under {' or '.join(NESTED)}"
            )
    return content


def _tensor(path: Path, name: str, view: TensorView, data: Mapping[str, bytearray]) -> Tensor:
    """The tensor of a view. StoreError for one that exceeds its storage, or has an element of it twice."""
    dtype, count = view.storage.dtype, view.storage.count
    if dtype.is_complex:
        raise StoreError(f"{path}: {name[:80]!r} is no plain tensor of real numbers")
    if len(view.shape) != len(view.strides) or 0 in view.shape:
        raise StoreError(f"{path}: {name[:80]!r} has no elements, or no shape")
    # Dimensions in the order of their strides: each has to step over all elements of those before it.
    last = 0  # the last element that the dimensions so far reach
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        if size > 1 and stride <= last:
            raise StoreError(
                f"{path}: {name[:80]!r} is an expanded view, whose elements share memory; save a copy of it, "
                "by tensor.contiguous()"
            )
        last += (size - 1) * stride
    if view.offset + last >= count:
        raise StoreError(f"{path}: {name[:80]!r} reaches beyond its storage of {count:,} elements")
    storage = torch.frombuffer(data[view.storage.key], dtype=dtype, count=count)
    strides = [stride if size > 1 else 1 for stride, size in zip(view.strides, view.shape, strict=True)]
    return storage.as_strided(view.shape, strides, view.offset)


def infer_architecture(
    path: Path, tensors: Mapping[str, Tensor], *, model: str, image: Shape
) -> tuple[dict[str, Tensor], Shape, int]:
    """Return weights, input shape and number of classes of a file of this model.

    `image` is the shape of the data set's images, the first size that is tried. Raises StoreError where the
    tensors fit the model at no size.
    """
    problem = ""
    for shape, classes in _candidates(tensors, model, image):
        try:
            with torch.device("meta"):
                expected = models.build(model, input_shape=shape, num_classes=classes).state_dict()
        except BAD_SIZES as error:  # not for images of this size
            problem = problem or " ".join(str(error).split())[:200]
            continue
        difference = _difference(tensors, expected)
        if not difference:
            return {name: _cast(tensors.get(name), like) for name, like in expected.items()}, shape, classes
        problem = problem or difference
    raise StoreError(f"{path} does not hold the tensors of {model[:200]}: {problem}")


def _candidates(tensors: Mapping[str, Tensor], model: str, image: Shape) -> Iterator[tuple[Shape, int]]:
    """The image sizes to try, and the number of classes, by the shapes of the first and the last layer."""
    try:
        flow = flow_of((model, image, 2))
    except ValueError as error:
        raise StoreError(f"{model[:80]} cannot be built for {image}: {error}") from error
    first, last = f"{flow.layers[0]}.weight", f"{flow.outputs[-1]}.weight"
    if first not in tensors or last not in tensors or not 2 <= tensors[first].dim() <= 4:
        yield image, 2  # of another model: the caller says how it differs
        return
    classes, inputs = (tensors[last].shape or (0,))[0], tensors[first].shape[1]
    if tensors[first].dim() == 2:
        yield image, classes
        yield (1, 1, inputs), classes
        return
    yield (inputs, *image[1:]), classes
    yield from (((inputs, side, side), classes) for side in SIDES)


def _difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor that does not fit, and why; "" if all do."""
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTER)]
    if missing:
        return f"{missing[0]} is missing"
    if unexpected := sorted(tensors.keys() - expected.keys()):
        return f"{unexpected[0][:80]!r} is none of them"
    for name, like in expected.items():
        tensor = tensors.get(name, like)
        if tensor.shape != like.shape:
            return f"{name} is {tuple(tensor.shape)}, and {tuple(like.shape)} is needed"
        if tensor.is_floating_point() != like.is_floating_point():
            return f"{name} holds {tensor.dtype}"
    return ""


def _cast(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A copy with the dtype of the network's tensor; a missing counter starts at zero."""
    if tensor is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    return tensor.to(like.dtype, copy=True).contiguous()
