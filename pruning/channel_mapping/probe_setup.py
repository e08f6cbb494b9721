"""A network made ready for a probe: norms that hide nothing, and the smallest images that it takes."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS
from pruning.eval_mode import share_parameters
from pruning.masking import prunable_layers

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
SIDES = (8, 16, 32, 64, 96, 128)  # of the images that are tried in place of larger ones


@torch.no_grad()
def open_norms(net: nn.Module) -> None:
    """Give the norms of a network scales about 1, small shifts and no statistics, in place.

    A scale of 0, or statistics far from the noise that layers answer, would close what follows.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in net.modules() if isinstance(module, NORMS)):
        for name, tensor in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            if name in ("weight", "running_var"):
                tensor.copy_(noise + 0.5)
            else:
                tensor.copy_(0.1 * (noise - 0.5))


@torch.no_grad()
def smallest_batch(net: nn.Module, example_input: Tensor) -> int:
    """Return how many images a network takes at least: 1, but where it folds its batch into frames, say."""
    parameter = next(parameter for parameter in net.parameters() if parameter.is_floating_point())
    copy = share_parameters(net).eval()
    for size in range(1, len(example_input)):
        if len(example_input) % size == 0:
            images = torch.zeros((size, *example_input.shape[1:])).to(parameter)
            with suppress(*FORWARD_ERRORS):
                logits = copy(images)
                if isinstance(logits, Tensor) and logits.numel():
                    return size
    return len(example_input)


@torch.no_grad()
def smallest_images(net: nn.Module, example_input: Tensor) -> Tensor:
    """Return the smallest square images, on meta, on which a network makes the same calls as on the example.

    What reads what does not depend on the size, and small images are faster.
    """
    if example_input.dim() != 4 or example_input.shape[2] != example_input.shape[3]:
        return example_input
    small_net = share_parameters(net).eval()
    sides = [side for side in SIDES if side < example_input.shape[3]]
    batch = smallest_batch(net, example_input) if sides else 1
    order = _call_order(small_net, example_input.shape[3], example_input, batch) if sides else ()
    for side in sides:
        if order and _call_order(small_net, side, example_input, batch) == order:
            shape = (len(example_input), example_input.shape[1], side, side)
            return torch.empty(shape, dtype=example_input.dtype, device="meta")
    return example_input


def _call_order(net: nn.Module, side: int, like: Tensor, batch: int) -> tuple[str, ...]:
    """Return the layers in order of their calls on one batch; none where the network does not run."""
    parameter = next(parameter for parameter in net.parameters() if parameter.is_floating_point())
    calls: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, layer in prunable_layers(net).items()
    ]
    try:
        logits = net(torch.zeros((batch, like.shape[1], side, side)).to(parameter))
    except FORWARD_ERRORS:
        return ()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(calls) if isinstance(logits, Tensor) and torch.isfinite(logits).all() else ()
