"""From what reads what to channel groups: what has to go together, and what is left whole and why.

A column goes with every unit that it reads, a unit of a grouped convolution with the inputs and outputs of
its group, and layers that share a weight share their units. What is connected by that is one *channel* of
the network: it goes whole or stays. Channels made by the same layer compete with each other and are one
group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pruning.channel_mapping.column_readers import Reads
from pruning.channel_mapping.parameter_slices import Slices
from pruning.channel_mapping.probe import LOGITS
from pruning.masking import (
    Conv,
    Group,
    Member,
    members_of,
    prunable_layers,
    unit_dim,
    unit_members,
    width_of,
)

Node = tuple[str, str]  # ("unit" or "column", module)
CLASSES = "its units are classes: they reach the logits"
PROTECTED = "protected"
UNREAD = "no layer is seen that reads its units"
WHOLE = "its units are mixed (a norm, softmax or sum over channels): none can go without the others"


@dataclass(frozen=True)
class ChannelGroups:
    """The groups of a network by the name of their root layer, and layer -> why it is left whole.

    `mixed` are those of one unit, of several rows, of which nothing can go without the others: all of a
    norm's width, or an attention of one head.
    """

    groups: Mapping[str, Group]
    whole: Mapping[str, str]
    mixed: Mapping[str, Group]


@dataclass
class Graph:
    """Units and columns as numbered nodes, and the edges between those that go together."""

    starts: dict[Node, int] = field(default_factory=dict)
    size: int = 0
    edges: list[Tensor] = field(default_factory=list)

    def add(self, node: Node, count: int) -> None:
        self.starts[node] = self.size
        self.size += count

    def tie(self, first: Node, positions: Tensor, second: Node, others: Tensor) -> None:
        """Tie positions of two modules, pair by pair."""
        self.edges.append(torch.stack([positions + self.starts[first], others + self.starts[second]]))

    def tie_all(self, node: Node, positions: Tensor) -> None:
        """Tie positions of one module to each other."""
        if len(positions):
            self.tie(node, positions, node, positions[:1].expand(len(positions)))

    def labels(self) -> Tensor:
        """Return int64 [nodes]: the number of each node's connected part."""
        from scipy.sparse import coo_array  # here: a start of the program loads no scipy
        from scipy.sparse.csgraph import connected_components

        pairs = torch.cat(self.edges, 1).numpy() if self.edges else torch.empty(2, 0).numpy()
        matrix = coo_array((torch.ones(pairs.shape[1]).numpy(), (pairs[0], pairs[1])), (self.size, self.size))
        return torch.from_numpy(connected_components(matrix, directed=False)[1]).long()


def connect(net: nn.Module, reads: Reads) -> Graph:
    """Return the graph of a network: every column tied to the units that it reads, and so on."""
    layers, graph = prunable_layers(net), Graph()
    for name in reads.order:
        graph.add(("unit", name), width_of(layers[name], "out"))
    for reader, width in reads.widths.items():
        graph.add(("column", reader), width)
    for pairs in (reads.single, reads.several):
        for (reader, maker), (columns, units) in pairs.items():
            graph.tie(("column", reader), columns, ("unit", maker), units)
    for (reader, maker), columns in reads.mixed.items():
        units = torch.arange(width_of(layers[maker], "out"))
        graph.tie_all(("unit", maker), units)
        graph.tie(("column", reader), columns, ("unit", maker), units[:1].expand(len(columns)))
    first_by_weight: dict[int, str] = {}
    for name in reads.order:
        layer = layers[name]
        if isinstance(layer, Conv) and layer.groups > 1:
            _tie_conv_groups(graph, name, layer)
        first = first_by_weight.setdefault(id(layer.weight), name)
        if first != name:
            for node, side in (("unit", "out"), ("column", "in")):
                positions = torch.arange(width_of(layer, side))
                graph.tie((node, first), positions, (node, name), positions)
    return graph


def _tie_conv_groups(graph: Graph, name: str, layer: Conv) -> None:
    """Tie the inputs and outputs of each group of a grouped convolution: they go as a whole."""
    columns, units = torch.arange(layer.in_channels), torch.arange(layer.out_channels)
    per_group = layer.in_channels // layer.groups
    firsts = units // (layer.out_channels // layer.groups) * per_group
    graph.tie(("unit", name), units, ("column", name), firsts)
    graph.tie(("column", name), columns, ("column", name), columns // per_group * per_group)


def make_groups(
    net: nn.Module, reads: Reads, *, outputs: Collection[str], protected: Collection[str]
) -> ChannelGroups:
    """Return the channel groups, in order of registration of their root layers."""
    graph = connect(net, reads)
    labels, layers = graph.labels(), prunable_layers(net)
    at = {node: labels[start : start + _count(layers, reads, node)] for node, start in graph.starts.items()}
    is_read = torch.zeros(int(labels.max()) + 1, dtype=torch.bool)
    for name in reads.order:
        is_read[at["column", name]] = True
    reasons: dict[int, str] = dict.fromkeys((~is_read).nonzero().flatten().tolist(), UNREAD)
    classes = {*outputs, *(layer for reader, layer in _pairs(reads) if reader == LOGITS)}
    for names, reason in ((protected, PROTECTED), (classes, CLASSES)):
        for name in names:
            if ("unit", name) in at:
                reasons |= dict.fromkeys(at["unit", name].unique().tolist(), reason)
    reasons |= dict.fromkeys(at["column", LOGITS].unique().tolist(), CLASSES)
    groups: dict[str, Group] = {}
    whole: dict[str, str] = {}
    mixed: dict[str, Group] = {}
    seen: set[int] = set()
    is_grouped = torch.zeros(len(is_read), dtype=torch.bool)
    for name in [name for name in layers if ("unit", name) in at]:
        channels = _ordered_unique(at["unit", name])
        free = [c for c in channels.tolist() if c not in reasons and not is_grouped[c]]
        is_apart = not is_grouped[channels].any()  # no other layer's group has units of it
        if len(free) == 1 and is_apart and len(at["unit", name]) > 1:
            whole[name] = WHOLE
            if int(free[0]) not in seen:
                seen.add(int(free[0]))
                mixed[name] = _group(net, name, torch.tensor(free), at, reads)
        if any(c in reasons for c in channels.tolist()) and not free:
            whole[name] = next(reasons[c] for c in channels.tolist() if c in reasons)
        if len(free) > 1 or (free and len(at["unit", name]) == 1):
            groups[name] = _group(net, name, torch.tensor(free), at, reads)
            is_grouped[free] = True
    return ChannelGroups(groups, whole, mixed)


def _pairs(reads: Reads) -> Iterable[tuple[str, str]]:
    return (*reads.single, *reads.several, *reads.mixed)


def _count(layers: Mapping[str, nn.Module], reads: Reads, node: Node) -> int:
    kind, name = node
    return reads.widths[name] if kind == "column" else width_of(layers[name], "out")


def _ordered_unique(values: Tensor) -> Tensor:
    return torch.tensor(list(dict.fromkeys(values.tolist())))


def _group(net: nn.Module, root: str, channels: Tensor, at: Mapping[Node, Tensor], reads: Reads) -> Group:
    """Return the group of these channels, whose units are numbered in the order of the root's rows."""
    number = torch.full((int(max(int(part.max()) for part in at.values())) + 1,), -1)
    number[channels] = torch.arange(len(channels))
    members: list[Member] = []
    followers: list[Member] = []
    layers = prunable_layers(net)
    for name in [root, *(reader for reader in reads.order if reader != root)]:
        members += unit_members(name, layers[name], number[at["unit", name]])
    for name in reads.widths:
        if name not in layers and name != LOGITS:
            members += members_of(name, "norm", number[at["column", name]])
    for name in reads.order:
        column_members = members_of(name, "in", number[at["column", name]])
        layer = layers[name]
        if isinstance(layer, Conv) and layer.groups > 1:
            followers += column_members
            followers += members_of(name, "out", number[at["unit", name]]) if layer.transposed else []
        else:
            members += [_in_dim(member, layer) for member in column_members]
    return Group(root, len(channels), tuple(members), tuple(followers))


def _in_dim(member: Member, layer: nn.Module) -> Member:
    if unit_dim(layer) == 0:
        return member
    return replace(member, parameter="weight")


def removable_columns(groups: Iterable[Group], reads: Reads) -> dict[str, Tensor]:
    """Return reader -> bool [columns]: those that belong to a group."""
    columns = {name: torch.zeros(width, dtype=torch.bool) for name, width in reads.widths.items()}
    for group in groups:
        for member in (*group.members, *group.followers):
            if member.side == "in":
                columns[member.module][member.index] = True
    return columns


def add_slices(groups: Iterable[Group], slices: Sequence[Slices]) -> tuple[Group, ...]:
    """Return the groups with the slices of other parameters that act on their channels, as followers.

    Groups that share a parameter slice by slice (a PReLU behind two layers) become one.
    """
    joined = list(groups)
    for each in slices:
        _join_shared(joined, each)
    return tuple(
        replace(group, followers=(*group.followers, *(m for s in slices for m in _slice_members(group, s))))
        for group in joined
    )


def _join_shared(groups: list[Group], slices: Slices) -> None:
    """Make one of the groups, in place, that have one slice for each channel, and all of them the same."""
    first_by_index: dict[tuple[int, ...], int] = {}
    for group in list(groups):
        members = _slice_members(group, slices)
        if not members or sorted(members[0].root.tolist()) != list(range(group.size)):
            continue
        number = groups.index(group)
        first = first_by_index.setdefault(tuple(members[0].index.tolist()), number)
        if first == number:
            continue
        other = groups[first]
        roots = torch.empty(group.size, dtype=torch.int64)
        roots[members[0].root] = _slice_members(other, slices)[0].root
        moved, followers = (
            tuple(replace(member, root=roots[member.root]) for member in part)
            for part in (group.members, group.followers)
        )
        groups[first] = replace(
            other, members=(*other.members, *moved), followers=(*other.followers, *followers)
        )
        del groups[number]


def _slice_members(group: Group, slices: Slices) -> list[Member]:
    """Return the positions of a tensor that go with a group's channels; none where a slice has several."""
    roots = torch.full((slices.size,), -1)
    for member in (*group.members, *group.followers):
        if member.side != "in" or member.module not in slices.columns:
            continue
        columns, numbers = slices.columns[member.module]
        root_of_column = torch.full((1 + max([int(member.index.max()), *columns.tolist()]),), -1)
        root_of_column[member.index] = member.root
        own = root_of_column[columns]
        for number, root in zip(numbers[own >= 0].tolist(), own[own >= 0].tolist(), strict=True):
            if number >= slices.size or int(roots[number]) not in (-1, root):
                return []
            roots[number] = root
    index = (roots >= 0).nonzero().flatten()
    if not len(index):
        return []
    return [Member(slices.module, "slice", index, roots[index], slices.tensor, slices.dim)]
