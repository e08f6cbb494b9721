"""A step in parts has the bits of torch's whole step and all masks after it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import models
import pruning
from orchestrator.config import Train
from orchestrator.training import masked_step
from orchestrator.training.masked_step import Masker, step_and_mask
from orchestrator.training.optimizers import make_optimizer


def trained(
    net: nn.Module, masks: dict[str, Tensor], recipe: Train, images: Tensor, *, in_parts: bool
) -> list[Tensor]:
    """Weights, gradients and the optimizer's state after a few steps on growing images."""
    net = deepcopy(net)
    optimizer = make_optimizer(recipe, net)
    masker = Masker(dict(net.named_parameters()), masks)
    for step in range(4):
        optimizer.zero_grad(set_to_none=True)
        (net(images * (1 + step)) ** 2).mean().backward()
        if in_parts:
            step_and_mask(optimizer, masker)
        else:
            optimizer.step()
            masker()
    state = [value for values in optimizer.state.values() for value in values.values()]
    return [*net.parameters(), *(p.grad for p in net.parameters() if p.grad is not None), *state]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("part", [16, 48, 1 << 18])
@pytest.mark.parametrize(
    "last", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"]
)
def test_parts_have_the_bits_of_the_whole(
    optimizer: str, part: int, last: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths are odd: the last part of a weight ends within a vector. One layer is frozen, one not pruned."""
    monkeypatch.setattr(masked_step, "PART", part)
    torch.manual_seed(0)
    net = models.build("cnn(widths=[5, 11])", input_shape=(3, 9, 9), num_classes=7).to(memory_format=last)
    masks = pruning.prune(net, amount=0.6, protect=["output"])
    pruning.apply_masks(net, masks)
    next(iter(net.parameters())).requires_grad_(False)
    recipe, images = Train(optimizer=optimizer, lr=0.01, weight_decay=0.1), torch.randn(6, 3, 9, 9)
    parts, whole = (trained(net, masks, recipe, images, in_parts=flag) for flag in (True, False))
    assert len(parts) == len(whole) > 20
    assert all(
        ours.numpy(force=True).tobytes() == theirs.numpy(force=True).tobytes()
        for ours, theirs in zip(parts, whole, strict=True)
    )
    assert all(
        bool((parts[n][~masks[name]] == 0).all())
        for n, (name, _) in enumerate(net.named_parameters())
        if name in masks
    )


def test_large_weights_are_stepped_and_masked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the whole step would be taken, and nobody notices but by the clock."""
    sizes: list[int] = []
    update = torch._fused_adam_
    monkeypatch.setattr(
        torch, "_fused_adam_", lambda *a, **k: (sizes.append(sum(map(torch.numel, a[0]))), update(*a, **k))
    )
    net = nn.Sequential(nn.Linear(900, 600), nn.ReLU(), nn.Linear(600, 10))
    masks = pruning.prune(net, amount=0.5)
    trained(net, masks, Train(optimizer="adam"), torch.randn(4, 900), in_parts=True)
    small = 600 + 600 * 10 + 10
    assert sizes == [1 << 18, 1 << 18, 540_000 - (1 << 19), small] * 4
