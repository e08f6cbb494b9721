"""Evaluation: networks against the matmul peak, and several masks of one network stacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import pruning
from benchmarks.harness import AtMost, Done, Job, Told, benchmark, main
from benchmarks.training import GREY, NUMERICS, network, split_of
from orchestrator.training.evaluation import Evaluation, evaluate
from pruning.masking import prunable_layers

IMAGES = 8192
BATCHES = (64, 256, 1024, 4096, 16_384)
MASKS = 13


@benchmark
def peak() -> Iterator[Job]:
    """One mask's evaluation by one batch, against the matrix products of that batch alone."""
    split, net = split_of(GREY, IMAGES), network()
    pruning.apply_masks(net, pruning.prune(net, amount=0.9))
    products = []
    for layer in prunable_layers(net).values():
        outs, ins = layer.weight.shape
        weight, out = layer.weight.detach(), torch.empty(IMAGES, outs)
        products.append(partial(torch.mm, torch.randn(IMAGES, ins), weight.t(), out=out))

    def alone() -> None:
        for product in products:
            product()

    yield Job(
        f"evaluation of a masked mlp on {IMAGES} images",
        ours=lambda: Done(evaluate(net, split, numerics=NUMERICS).accuracy),
        peer=alone,
        peer_name="its matrix products alone",
        claims=(AtMost(1 / 0.8, limit=1.0),),
        rounds=11,
    )


def _numbers(found: Evaluation) -> list[float]:
    return [found.accuracy, found.top5, found.loss]


@benchmark
def batch() -> Iterator[Job]:
    """Which batch an evaluation is best done by; the plan's own, MICRO_BATCH, is part of every key."""
    split, net = split_of(GREY, IMAGES), network()
    chosen = partial(evaluate, net, split, numerics=NUMERICS)
    for size in BATCHES[:-1]:
        smaller = replace(NUMERICS, micro_batch=size)
        yield Job(
            f"evaluation of an mlp on {IMAGES} images, {NUMERICS.micro_batch} at a time",
            ours=chosen,
            peer=partial(evaluate, net, split, numerics=smaller),
            peer_name=f"{size} at a time",
            claims=(Told(),),
            rounds=7,
        )


def stacked_logits(weights: list[Tensor], images: Tensor) -> Tensor:
    """Logits [K, N, classes] of K bias-free linear networks: layer by layer, all networks at once."""
    x = images.flatten(1).expand(len(weights[0]), -1, -1)
    for number, weight in enumerate(weights):
        x = torch.bmm(x, weight.transpose(1, 2))
        x = x.relu() if number + 1 < len(weights) else x
    return x


def looped_logits(weights: list[Tensor], images: Tensor) -> Tensor:
    """The same, network by network."""
    found = []
    for number in range(len(weights[0])):
        x = images.flatten(1)
        for depth, weight in enumerate(weights):
            x = torch.nn.functional.linear(x, weight[number])
            x = x.relu() if depth + 1 < len(weights) else x
        found.append(x)
    return torch.stack(found)


@benchmark
def stacked() -> Iterator[Job]:
    """13 masks of one network as one batch of matrix products, and one by one; whether the bits agree."""
    for widths, count in (((1000, 1000, 500, 200), 1024), ((64,), 1024), ((64,), 128)):
        split = split_of((1, 8, 8), count)
        net = network(f"mlp(widths={list(widths)})", (1, 8, 8))
        layers = [layer.weight.detach() for layer in prunable_layers(net).values()]
        found = [pruning.prune(net, amount=0.07 * (number + 1)) for number in range(MASKS)]
        names = [f"{name}.weight" for name in prunable_layers(net)]
        weights = [
            torch.stack([one * masks[name] for masks in found])
            for name, one in zip(names, layers, strict=True)
        ]
        together = stacked_logits(weights, split.images)
        apart = looped_logits(weights, split.images)
        bits = "equal bits" if torch.equal(together, apart) else "other bits"
        yield Job(
            f"{MASKS} masks of an mlp {list(widths)} on {count} images, stacked",
            ours=partial(stacked_logits, weights, split.images),
            peer=partial(looped_logits, weights, split.images),
            peer_name="one by one",
            claims=(Told(),),
            rounds=9,
            equal="to 1e-4",
            same=lambda one, other: torch.allclose(one, other, rtol=1e-4, atol=1e-4),
            note=f"{bits} as one by one on this machine.",
        )


if __name__ == "__main__":
    main(__file__)
