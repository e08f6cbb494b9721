"""How many images go through a network at once: a fixed number on a CPU, on a GPU what its memory holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor, nn

from orchestrator.config import DenseConfig, Numerics, micro_batch_of
from orchestrator.planning.constraints import Shape, meta_model, shape_of
from pruning.checks import FORWARD_ERRORS
from pruning.masking import Norm
from pruning.user_code import own_code

IMAGES = 2  # of the pass that is counted: batch norm cannot be trained on one
# Of a process on a GPU before any tensor: the CUDA context, and what cuBLAS and cuDNN allocate for their own.
CONTEXT_BYTES = 1536 << 20
COPIES = 4  # of the parameters: themselves, gradients, and two averages of Adam
# What is counted are tensors that wait for the backward pass. Gradients of the largest, cuDNN's workspaces
# and what the allocator cannot join come on top.
HEADROOM = 1.6


def planned_micro_batch(
    model: str, dataset: str, batch_size: int, *, numerics: Numerics, gpu_bytes: int | None
) -> int:
    """Return the images of one forward and backward pass on one device.

    On a GPU whose memory is known a batch that is larger than the model's fixed number goes through in as few
    equal parts as `gpu_bytes` hold, but never in smaller ones than the fixed number. It depends on the memory
    alone, so that the numbers of cards of one size agree.
    """
    fixed, batch_size = micro_batch_of(model), ceil(batch_size / numerics.devices)
    if numerics.device == "cpu" or gpu_bytes is None or batch_size <= fixed:
        return fixed
    needed = training_bytes(model, *shape_of(dataset))
    if needed is None:
        return fixed
    constant, per_image = needed
    fitting = max(fixed, (gpu_bytes - constant) // per_image)
    return max(fixed, ceil(batch_size / ceil(batch_size / fitting)))


@lru_cache(maxsize=256)
def training_bytes(model: str, input_shape: Shape, num_classes: int) -> tuple[int, int] | None:
    """Return the bytes of a training in float32, and those of each image of a micro-batch beside.

    None for a network that does not run without storage. It is an estimate, on the safe side: what a pass
    keeps for its gradient, counted on tensors without storage, with headroom.
    """
    try:
        net = meta_model(model, input_shape, num_classes).train()
        activation_bytes = _activation_bytes(net, torch.empty((IMAGES, *input_shape), device="meta"))
    except (*FORWARD_ERRORS, NotImplementedError):
        return None
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in net.parameters())
    return CONTEXT_BYTES + COPIES * parameters, max(1, int(HEADROOM * activation_bytes / IMAGES))


def _activation_bytes(net: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, each once; parameters aside."""
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    activations: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage()._cdata) not in own:
            activations.setdefault(address, tensor)  # the tensor itself, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(images)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in activations.values())


@lru_cache(maxsize=1024)
def has_batch_norm(model: str, dataset: str) -> bool:
    """Whether a network has a layer with the statistics of a batch; False where it cannot be built so."""
    try:
        return any(isinstance(module, Norm) for module in meta_model(model, *shape_of(dataset)).modules())
    except (*FORWARD_ERRORS, NotImplementedError):
        return False


def norm_images(config: DenseConfig) -> int | None:
    """Return over how many images, at most, batch norms take their statistics; None for whole batches."""
    images = config.numerics.norm_images(config.batch_size)
    return images if images < config.batch_size and has_batch_norm(config.model, config.dataset) else None


@dataclass(frozen=True)
class NormImages:
    """A training whose batch norms see fewer images at a time than a batch has."""

    model: str
    dataset: str
    batch_size: int
    images: int

    def __str__(self) -> str:
        return (
            f"{own_code.shown(self.model)} on {own_code.shown(self.dataset)}: statistics of {self.images:,} "
            f"images, in place of a batch of {self.batch_size:,}"
        )


def find_norm_images(trainings: Iterable[DenseConfig]) -> tuple[NormImages, ...]:
    """Return each kind of training whose batch norms see less than a batch, once."""
    kinds = {(config.model, config.dataset, config.batch_size): config for config in trainings}
    return tuple(
        NormImages(*kind, images)
        for kind, config in kinds.items()
        if (images := norm_images(config)) is not None
    )
