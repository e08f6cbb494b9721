"""Pruning itself: choosing weights, the PQ index, and many amounts of one dense network."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

import models
import pruning
from benchmarks.harness import AtLeast, AtMost, Job, benchmark, main
from pruning.masking import masked, prunable_layers
from pruning.pq_index import pq_index_rows

torch.set_num_threads(1)

AMOUNT = 0.9
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def network(name: str = "densenet121", shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=10)


def scores_of(net: nn.Module) -> Tensor:
    """All absolute weights, float64, in one vector."""
    return (
        torch.cat([layer.weight.detach().flatten() for layer in prunable_layers(net).values()]).abs().double()
    )


@benchmark
def global_magnitude() -> Iterator[Job]:
    """Scores, threshold and masks of densenet121, against the threshold alone by torch.kthvalue."""
    net = network()
    numbers = scores_of(net)
    count = int(AMOUNT * len(numbers) + 0.5)

    yield Job(
        "global magnitude on densenet121: scores, choice and masks",
        ours=partial(pruning.prune, net, amount=AMOUNT),
        peer=partial(numbers.kthvalue, count),
        peer_name=f"torch.kthvalue of the same {len(numbers):,} float64 numbers",
        claims=(AtMost(2.0),),
        rounds=9,
        equal="as many weights stay as lie above the k-th value",
        same=lambda masks, found: (
            sum(int(mask.sum()) for mask in masks.values()) == int((numbers > found.values).sum())
        ),
        note="Scores are float64: to widen float32 weights takes about a tenth of it.",
    )


@benchmark
def pq_indices() -> Iterator[Job]:
    """The index of every layer and of every row, by rows and as one; a pass reads each weight once."""
    weights = [layer.weight.detach() for layer in prunable_layers(network()).values()]
    pools = [one.flatten(1) for one in weights] + [one.reshape(1, -1) for one in weights]
    alive = [torch.ones_like(pool, dtype=torch.bool) for pool in pools]

    def every() -> list[Tensor]:
        return [pq_index_rows(pool, living) for pool, living in zip(pools, alive, strict=True)]

    def one_pass() -> list[Tensor]:
        return [weight.double().abs().sum() for weight in weights]

    yield Job(
        "PQ index of all layers and all rows of densenet121",
        ours=every,
        peer=one_pass,
        peer_name="one pass in float64, the sum of absolute weights",
        claims=(AtMost(10.0),),
        rounds=9,
        note="A pass widens each layer to float64 and adds up what lies there.",
    )


@benchmark
def many_amounts() -> Iterator[Job]:
    """13 amounts of one dense network: new tensors for what is masked, against a copy of it for each."""
    net = network("mlp", (1, 28, 28))
    weights = {name: tensor.detach() for name, tensor in net.state_dict().items()}

    def ours() -> list[dict[str, Tensor]]:
        return [masked(weights, pruning.prune(net, amount=amount)) for amount in AMOUNTS]

    def peer() -> list[dict[str, Tensor]]:
        found = []
        for amount in AMOUNTS:
            copy = deepcopy(net)
            pruning.apply_masks(copy, pruning.prune(copy, amount=amount))
            found.append({name: tensor.clone() for name, tensor in copy.state_dict().items()})
        return found

    yield Job(
        "13 amounts of one dense mlp, weights and masks",
        ours=ours,
        peer=peer,
        peer_name="a deep copy and its state for each",
        claims=(AtLeast(1.0),),
        rounds=7,
        equal="bit for bit",
        same=lambda a, b: all(
            torch.equal(one[name], other[name]) for one, other in zip(a, b, strict=True) for name in one
        ),
    )


if __name__ == "__main__":
    main(__file__)
