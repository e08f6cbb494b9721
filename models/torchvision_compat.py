"""torchvision, importable beside any build of torch; all other modules import it from here.

The package index's torchvision is compiled for CUDA. Beside a CPU torch its compiled library cannot load, and
`import torchvision` dies on the two operators that it then describes but does not have (pytorch/vision#9077).
Their schemas are declared here, only in that case: models, transforms and datasets work; the compiled box
operators stay absent.

RegNet computes its widths with tensors, which have no values on the device `meta`, where networks are counted
without storage. They are computed on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch.library import Library

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def compiled_library_loads() -> bool:
    """Load torchvision's compiled operators, and return whether that works beside this torch."""
    spec = find_spec("torchvision")  # does not import it
    folders = spec.submodule_search_locations if spec else None
    for library in (path for folder in folders or () for path in Path(folder).glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def declare_missing_operators() -> Library | None:
    """Declare the two schemas where the compiled library cannot; they last as long as the returned object."""
    if compiled_library_loads():
        return None
    library = Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


DECLARED = declare_missing_operators()

from torchvision import datasets, models, transforms  # noqa: E402  it works only after the declaration


def computed_on_cpu(function: Callable[..., object]) -> Callable[..., object]:
    """Return a function whose new tensors are on the CPU, whatever the default device is."""

    @wraps(function)
    def call(*args: object, **keywords: object) -> object:
        with torch.device("cpu"):
            return function(*args, **keywords)

    return call


def functional_transforms() -> ModuleType:
    """Return torchvision.transforms.v2.functional, imported only when it is asked for."""
    from torchvision.transforms.v2 import functional

    return functional  # type: ignore[no-any-return]  # torchvision has no types


if models is not None:  # tests put a torchvision without networks in its place
    params = models.regnet.BlockParams
    params.from_init_params = computed_on_cpu(params.from_init_params)

__all__ = ["DECLARED", "datasets", "functional_transforms", "models", "transforms"]
