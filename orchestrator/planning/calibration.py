"""How fast this machine trains a network: a few timed steps, so that a plan can say how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import nn

import models
from orchestrator.config import Numerics, Train
from orchestrator.measure import Profile, dense_bytes, profile
from orchestrator.walk.randomness import seeded
from orchestrator.walk.recipe import make_optimizer
from pruning.masking import prunable_layers

MAX_IMAGES = 64
MACS_A_PASS = 2_000_000_000  # on a CPU core, a pass of a second or less
ENOUGH_SECONDS = 0.05
MAX_TIMES = 5


@dataclass(frozen=True)
class Speed:
    """Seconds of forward and backward for one image, and of one optimizer step; and what a network weighs."""

    image_seconds: float
    step_seconds: float
    cost: Profile
    weight_bytes: int
    mask_bytes: int


def speed(model: str, input_shape: tuple[int, int, int], num_classes: int, *, numerics: Numerics) -> Speed:
    """Measured on the device of `numerics`, or on the CPU where there is none; global seeds are untouched."""
    device = numerics.device if torch.cuda.is_available() else "cpu"
    with seeded(0, torch.device(device)), _threads(numerics.threads):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        cost = profile(net, input_shape)
        images = MAX_IMAGES if device == "cuda" else _images(cost.total_macs)
        net = net.to(device).train()
        batch = torch.randn((images, *input_shape)).to(device)
        labels = torch.arange(images, device=device) % num_classes
        bf16 = numerics.precision == "bf16"
        pass_seconds = _seconds(partial(_pass, net, batch, labels, bf16), device)
        step_seconds = _seconds(make_optimizer(Train(), net).step, device)
    masks = sum((layer.weight.numel() + 7) // 8 for layer in prunable_layers(net).values())
    return Speed(pass_seconds / images, step_seconds, cost, dense_bytes(net), masks)


def _images(macs: int) -> int:
    """As many as a short pass holds; two at the least, for batch norms."""
    return max(2, min(MAX_IMAGES, MACS_A_PASS // max(macs, 1)))


def _pass(net: nn.Module, batch: torch.Tensor, labels: torch.Tensor, bf16: bool) -> None:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = net(batch)
    nn.functional.cross_entropy(logits.float(), labels).backward()


def _seconds(call: Callable[[], object], device: str) -> float:
    """The mean of a few calls, after one that is not timed."""
    started, times = 0.0, -1
    while times < 1 or (times < MAX_TIMES and perf_counter() - started < ENOUGH_SECONDS):
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times += 1
        started = started or perf_counter()
    return (perf_counter() - started) / times


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
