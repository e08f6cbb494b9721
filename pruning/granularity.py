"""What is removed together: single weights, units, channels, or weights in n:m blocks.

A granularity takes the network and gives its groups, or None where every weight stands for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

from torch import Tensor, nn

from pruning.dataflow import protected_layers
from pruning.masking import Group, prunable_layers
from pruning.registry import Between, Method, Registry
from pruning.structure import trace
from pruning.units import unit_groups

granularities = Registry("granularity")
GRANULARITIES = ("weight", "unit", "channel", "nm")
Block = Annotated[int, Between(1, 1024)]
Groups = tuple[Group, ...] | None


@granularities.register(summary="every weight for itself")
def weight(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """No groups."""
    return None


@granularities.register(summary="a neuron or filter: a row, its bias, its norm's entries")
def unit(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """The groups of an earlier `unit_groups`, or new ones: one per hidden layer."""
    if groups is None:
        return unit_groups(net, protect=protect, example_input=example_input)
    return _without(groups, net, protect)


@granularities.register(summary="a channel with all that depends on it, so that it can be cut out")
def channel(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """The groups of an earlier trace, or those of a new one; ValueError without groups or example."""
    if groups is None and example_input is None:
        raise ValueError("granularity 'channel' needs example_input, a batch of images to trace the network")
    if groups is None and example_input is not None:
        return trace(net, example_input, protect=protect)
    return _without(groups or (), net, protect, example_input)


def _without(
    groups: Sequence[Group], net: nn.Module, protect: Collection[str], example_input: Tensor | None = None
) -> tuple[Group, ...]:
    """The groups that have no protected layer among those that make their units."""
    protected = protected_layers(net, protect, example_input=example_input)
    single = len(prunable_layers(net)) == 1
    return tuple(
        group
        for group in groups
        if not any(m.module in protected and (m.side == "out" or single) for m in group.members)
    )


def check_nm(*, n: int, m: int) -> None:
    """ValueError unless n < m."""
    if n >= m:
        raise ValueError(f"nm(n) is {n} and nm(m) is {m}; n must be below m")


@granularities.register(
    summary="n of every m consecutive weights stay",
    paper="Mishra et al., Accelerating Sparse Deep Neural Networks, 2021",
    check=check_nm,
    block="m",
)
def nm(
    net: nn.Module,
    *,
    protect: Collection[str],
    example_input: Tensor | None,
    groups: Sequence[Group] | None,
    n: Block = 2,
    m: Block = 4,
) -> Groups:
    """No groups: the n best of every m consecutive weights of a row stay, whatever the scope.

    A row is a unit's weights in memory order, [in, height, width] for a filter; a remainder shorter
    than m stays whole. The amount is implied.
    """
    return None


def amount_for(granularity: Method, amount: float) -> float:
    """The amount, which for n:m must be 0 or 1 - n / m; ValueError else."""
    if granularity.name != "nm":
        return amount
    n, m = granularity.options["n"], granularity.options["m"]
    implied = 1.0 - n / m
    if amount and abs(amount - implied) > 1e-9:
        raise ValueError(f"amount is {amount!r}; {n}:{m} removes {implied:g} of every row: give that, or 0")
    return amount and implied


def blocks(tensor: Tensor, m: int) -> Tensor:
    """[blocks, m]: the whole blocks of every row, without the remainders."""
    rows = tensor.flatten(1)
    return rows[:, : rows.shape[1] // m * m].reshape(-1, m)


def join(kept: Tensor, mask: Tensor) -> Tensor:
    """`mask` with its whole blocks replaced by `kept`, [blocks, m]."""
    rows = mask.flatten(1).clone()
    whole = kept.numel() // len(rows)
    rows[:, :whole] = kept.reshape(len(rows), whole)
    return rows.reshape(mask.shape)
