"""Channels that can go only together, in equal numbers from each part of a layer.

Of a layer that is split in halves, each half has to lose as many channels; of one that is shuffled in four
rows, each row. Where single channels cannot be cut out, the columns that read them say which blocks may be:
the check of removals tries these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from pruning.channel_mapping.removal_check import RemovalCheck
from pruning.masking import Group

KeepExact = Callable[[Iterable[Group]], tuple[tuple[Group, ...], dict[str, str]]]


def add_block_groups(
    check: RemovalCheck,
    groups: Sequence[Group],
    exact: tuple[Group, ...],
    errors: Mapping[str, str],
    keep_exact: KeepExact,
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return the exact groups with those of blocks, and the errors of the groups that stay whole.

    `groups` are all that were tried, `errors` those of the inexact ones by name; `keep_exact` tries groups.
    """
    inexact = [group for group in groups if group.name in errors]
    blocks, replaced = find_block_groups(check, exact, inexact)
    if not blocks:
        return exact, dict(errors)
    order = [group.name for group in groups]
    every = sorted((*exact, *blocks), key=lambda group: order.index(group.name))
    exact, new_errors = keep_exact(every)
    cut = {member.module for group in exact for member in group.members if member.side == "out"}
    solved = {group.name for group in replaced} & cut
    return exact, {name: error for name, error in {**errors, **new_errors}.items() if name not in solved}


def find_block_groups(
    check: RemovalCheck, exact: Sequence[Group], inexact: Sequence[Group]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return groups of blocks that can be cut out beside `exact`, and the groups that they stand for.

    `inexact` are groups whose channels cannot be cut out one by one.
    """
    made: list[Group] = []
    replaced: list[Group] = []
    remaining = list(inexact)
    while remaining:
        joined = (remaining[0], *_partners(remaining[0], remaining))
        remaining = [group for group in remaining if group not in joined]
        for candidate in _candidates(merge_by_rank(joined)):
            if check.holds_for_any_count((*exact, *made), candidate):
                made.append(candidate)
                replaced += joined
                break
    return tuple(made), tuple(replaced)


def _partners(group: Group, others: Sequence[Group]) -> list[Group]:
    """Return the groups whose columns lie between this group's: theirs are interleaved."""
    return [
        other
        for other in others
        if other is not group
        and other.size == group.size
        and any(_is_interleaved(group, other, reader) for reader in dict(_columns(group)))
    ]


def _is_interleaved(group: Group, other: Group, reader: str) -> bool:
    own, others = (dict(_columns(each)).get(reader) for each in (group, other))
    if own is None or others is None:
        return False
    first, second = own[0].sort().values, others[0].sort().values
    return bool(first[0] < second[-1] and second[0] < first[-1])


def merge_by_rank(groups: Sequence[Group]) -> Group:
    """Return one group of groups of one size: channel i of it is channel i of each."""
    first = groups[0]
    return replace(
        first,
        members=tuple(member for group in groups for member in group.members),
        followers=tuple(member for group in groups for member in group.followers),
    )


def _candidates(group: Group) -> Iterator[Group]:
    """Yield groups of blocks that the readers of the channels suggest, the smallest blocks first."""
    if len({member.module for member in group.members if member.side == "out"}) > 1:
        yield group  # of several layers, rank by rank
    parts, steps = set[int](), set[int]()
    for _, (columns, units) in _columns(group):
        read = units.unique()
        step = _step(read)
        if step == 1 and len(read) < group.size:  # a slice
            parts.add(group.size // gcd(int(read[0]), int(read[-1]) + 1, group.size))
        elif step > 1:  # a strided slice
            steps.add(step)
        jump = _jump(columns, units)
        if jump > 1:  # a shuffle
            parts.add(group.size // jump)
            steps.add(jump)
    ranks = torch.arange(group.size)
    for count in sorted(parts | steps):
        if group.size % count or group.size // count < 2:
            continue
        if count in parts:
            yield _tied(group, ranks % (group.size // count))
        if count in steps:
            yield _tied(group, ranks // count)


def _columns(group: Group) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield (reader, (its columns, the channels that they read))."""
    for member in (*group.members, *group.followers):
        if member.side == "in":
            yield member.module, (member.index, member.root)


def _step(positions: Tensor) -> int:
    """Return the distance of equally spaced positions; 0 where they are not, or there is only one."""
    distances = positions.diff().unique()
    return int(distances[0]) if len(distances) == 1 else 0


def _jump(columns: Tensor, units: Tensor) -> int:
    """Return how far apart the channels of neighbouring columns are in a shuffle of all; else 0."""
    order = units[columns.argsort()]
    jump = int(order[1] - order[0]) if len(order) > 1 else 0
    if jump < 2 or len(order) % jump:
        return 0
    return jump if torch.equal(order, torch.arange(len(order)).view(-1, jump).T.flatten()) else 0


def _tied(group: Group, blocks: Tensor) -> Group:
    """Return the group with blocks for channels; `blocks` int64 [size] is each channel's block."""
    members, followers = (
        tuple(replace(member, root=blocks[member.root]) for member in side)
        for side in (group.members, group.followers)
    )
    return replace(group, size=int(blocks.max()) + 1, members=members, followers=followers)
