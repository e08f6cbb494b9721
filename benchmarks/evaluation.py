"""Evaluation: networks against their matrix products alone, and several masks of one network stacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import pruning
from benchmarks.harness import AtMost, Job, Reported, SideResult, benchmark, main
from benchmarks.training import GREY, NUMERICS, make_split, network
from orchestrator.training.evaluation import evaluate
from pruning.masking import prunable_layers

IMAGES = 8192
BATCHES = (64, 256, 1024, 4096, 16_384)
MASKS = 13


@benchmark
def peak() -> Iterator[Job]:
    """Evaluate a masked network in one batch, against the matrix products of that batch alone."""
    split, net = make_split(GREY, IMAGES), network()
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
        ours=lambda: SideResult(evaluate(net, split, numerics=NUMERICS).accuracy),
        baseline=alone,
        baseline_name="its matrix products alone",
        claims=(AtMost(1 / 0.8, limit=1.0),),
        rounds=11,
    )


@benchmark
def batch() -> Iterator[Job]:
    """Evaluate in batches of several sizes. The product's size, MICRO_BATCH, is part of every key."""
    split, net = make_split(GREY, IMAGES), network()
    default = partial(evaluate, net, split, numerics=NUMERICS)
    for size in BATCHES[:-1]:
        smaller = replace(NUMERICS, micro_batch=size)
        yield Job(
            f"evaluation of an mlp on {IMAGES} images, {NUMERICS.micro_batch} at a time",
            ours=default,
            baseline=partial(evaluate, net, split, numerics=smaller),
            baseline_name=f"{size} at a time",
            claims=(Reported(),),
            rounds=7,
        )


def stacked_logits(weights: list[Tensor], images: Tensor) -> Tensor:
    """Return logits [K, N, classes] of K bias-free linear networks, all networks at once by layer."""
    x = images.flatten(1).expand(len(weights[0]), -1, -1)
    for number, weight in enumerate(weights):
        x = torch.bmm(x, weight.transpose(1, 2))
        x = x.relu() if number + 1 < len(weights) else x
    return x


def looped_logits(weights: list[Tensor], images: Tensor) -> Tensor:
    """Return the same logits, computed network by network."""
    logits = []
    for number in range(len(weights[0])):
        x = images.flatten(1)
        for depth, weight in enumerate(weights):
            x = torch.nn.functional.linear(x, weight[number])
            x = x.relu() if depth + 1 < len(weights) else x
        logits.append(x)
    return torch.stack(logits)


@benchmark
def stacked() -> Iterator[Job]:
    """Evaluate 13 masks of one network as one batch of matrix products, against one by one."""
    for widths, count in (((1000, 1000, 500, 200), 1024), ((64,), 1024), ((64,), 128)):
        split = make_split((1, 8, 8), count)
        net = network(f"mlp(widths={list(widths)})", (1, 8, 8))
        layers = [layer.weight.detach() for layer in prunable_layers(net).values()]
        all_masks = [pruning.prune(net, amount=0.07 * (number + 1)) for number in range(MASKS)]
        names = [f"{name}.weight" for name in prunable_layers(net)]
        weights = [
            torch.stack([weight * masks[name] for masks in all_masks])
            for name, weight in zip(names, layers, strict=True)
        ]
        ours = stacked_logits(weights, split.images)
        baseline = looped_logits(weights, split.images)
        bits = "equal bits" if torch.equal(ours, baseline) else "different bits"
        yield Job(
            f"{MASKS} masks of an mlp {list(widths)} on {count} images, stacked",
            ours=partial(stacked_logits, weights, split.images),
            baseline=partial(looped_logits, weights, split.images),
            baseline_name="one by one",
            claims=(Reported(),),
            rounds=9,
            equal="to 1e-4",
            is_equal=partial(torch.allclose, rtol=1e-4, atol=1e-4),
            note=f"{bits} stacked and one by one on this machine.",
        )


if __name__ == "__main__":
    main(__file__)
