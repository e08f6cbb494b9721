"""Pruning: selecting weights, the PQ index, and many amounts of one dense network."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

import models
import pruning
from benchmarks.harness import AtLeast, AtMost, Job, benchmark, main
from pruning.masking import mask_weights, prunable_layers
from pruning.pq_index import pq_index_rows

torch.set_num_threads(1)

AMOUNT = 0.9
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def network(name: str = "densenet121", shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=10)


def scores_of(net: nn.Module) -> Tensor:
    """Return all absolute weights, float64, in one vector."""
    return (
        torch.cat([layer.weight.detach().flatten() for layer in prunable_layers(net).values()]).abs().double()
    )


@benchmark
def global_magnitude() -> Iterator[Job]:
    """Compute scores, threshold and masks of densenet121, against torch.kthvalue for the threshold alone."""
    net = network()
    numbers = scores_of(net)
    count = int(AMOUNT * len(numbers) + 0.5)

    yield Job(
        "global magnitude on densenet121: scores, selection and masks",
        ours=partial(pruning.prune, net, amount=AMOUNT),
        baseline=partial(numbers.kthvalue, count),
        baseline_name=f"torch.kthvalue of the same {len(numbers):,} float64 numbers",
        claims=(AtMost(2.0),),
        rounds=9,
        equal="the number of remaining weights is that above the k-th value",
        is_equal=lambda masks, kth: (
            sum(int(mask.sum()) for mask in masks.values()) == int((numbers > kth.values).sum())
        ),
        note="Converting float32 weights to float64 scores takes about a tenth of the time.",
    )


@benchmark
def pq_indices() -> Iterator[Job]:
    """Compute the PQ index of every layer and every row, against one pass that reads each weight once."""
    weights = [layer.weight.detach() for layer in prunable_layers(network()).values()]
    pools = [weight.flatten(1) for weight in weights] + [weight.reshape(1, -1) for weight in weights]
    alive = [torch.ones_like(pool, dtype=torch.bool) for pool in pools]

    def ours() -> list[Tensor]:
        return [pq_index_rows(pool, mask) for pool, mask in zip(pools, alive, strict=True)]

    def one_pass() -> list[Tensor]:
        return [weight.double().abs().sum() for weight in weights]

    yield Job(
        "PQ index of all layers and all rows of densenet121",
        ours=ours,
        baseline=one_pass,
        baseline_name="one pass in float64, the sum of absolute weights",
        claims=(AtMost(10.0),),
        rounds=9,
        note="The pass converts each layer to float64 and sums it.",
    )


@benchmark
def many_amounts() -> Iterator[Job]:
    """Prune one dense network by 13 amounts: new tensors for masked weights, against a copy each."""
    net = network("mlp", (1, 28, 28))
    weights = {name: tensor.detach() for name, tensor in net.state_dict().items()}

    def ours() -> list[dict[str, Tensor]]:
        return [mask_weights(weights, pruning.prune(net, amount=amount)) for amount in AMOUNTS]

    def baseline() -> list[dict[str, Tensor]]:
        states = []
        for amount in AMOUNTS:
            copy = deepcopy(net)
            pruning.apply_masks(copy, pruning.prune(copy, amount=amount))
            states.append({name: tensor.clone() for name, tensor in copy.state_dict().items()})
        return states

    yield Job(
        "13 amounts of one dense mlp, weights and masks",
        ours=ours,
        baseline=baseline,
        baseline_name="a deep copy and its state for each amount",
        claims=(AtLeast(1.0),),
        rounds=7,
        equal="bit for bit",
        is_equal=lambda ours, baseline: all(
            torch.equal(first[name], second[name])
            for first, second in zip(ours, baseline, strict=True)
            for name in first
        ),
    )


if __name__ == "__main__":
    main(__file__)
