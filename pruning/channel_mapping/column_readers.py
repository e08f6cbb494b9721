"""Which columns read which units: the network itself is asked, and not its operators.

The units of a layer are numbered in binary: pass b perturbs those whose bit b is 1, its twin those whose bit
is 0. A column of one unit changes in exactly one pass of each pair, and the bits spell the unit; a column
that changes in both reads several: these are searched for by ever smaller blocks of units. Layers that reach
no reader in common share their passes, and so do blocks that may change no column in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.channel_mapping.perturbation import AGAIN, PUSHES, reader_dim
from pruning.channel_mapping.probe import Probe
from pruning.channel_mapping.unit_search import UnitSearch

SINGLES = 4  # units that are perturbed alone to see whether every unit reaches everything
IDLE_DRAWS = 4  # more draws that show nothing new end it; two less before any has shown more
NEARLY = 0.9  # of pairs of unit and column: what is missing is too small to be seen


@dataclass(frozen=True)
class Reads:
    """What reads what. Positions are int64 tensors of one length: column i of the reader reads unit i.

    `single`: (reader, layer) -> (columns, units) that are read alone; `several`: the same, for columns that
    read more than one unit of the layer; `mixed`: (reader, layer) -> columns that read all of its units.
    `order`: the layers in order of their first call; `widths`: reader -> its number of columns.
    """

    order: tuple[str, ...]
    widths: Mapping[str, int]
    single: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    several: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    mixed: Mapping[tuple[str, str], Tensor]


@dataclass
class _Seen:
    """What was seen so far, by (reader, layer): see `Reads`."""

    single: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    several: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    mixed: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    codes: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)


def find_reads(probe: Probe) -> Reads:
    """Return what reads what in a network in eval mode, in float64. ValueError where it cannot be run."""
    probe.record(0)
    order = tuple(dict.fromkeys(name for name, _ in probe.base if name in probe.layers))
    units = {name: _unit_count(probe, name) for name in order}
    widths = {
        name: int(call.read.shape[reader_dim(probe.watched.get(name), call.read)])
        for (name, _), call in probe.base.items()
    }
    reach, seen = _find_reach(probe, order, units), _Seen()
    _find_mixed(probe, reach, units, seen)
    reach = {name: tuple(r for r in reach[name] if (r, name) not in seen.mixed) for name in order}
    for push in PUSHES[:2]:
        _decode(probe, reach, units, seen, push)
    hidden = _hidden(probe, reach, units, widths, seen)
    _decode(probe, hidden, units, seen, PUSHES[2])
    _draw_again(probe, reach, units, widths, seen)
    unclear: dict[str, dict[str, Tensor]] = {}
    for (reader, name), (ones, zeros) in seen.codes.items():
        is_single, is_read = (ones ^ zeros).all(0), (ones | zeros).any(0)
        if is_single.any():
            columns, powers = is_single.nonzero().flatten(), 2 ** torch.arange(len(ones))
            seen.single[reader, name] = columns, (ones[:, columns].long() * powers[:, None]).sum(0)
        if (is_read & ~is_single).any():
            unclear.setdefault(name, {})[reader] = is_read & ~is_single
    _look_closely(probe, unclear, units, seen)
    return Reads(order, widths, seen.single, seen.several, seen.mixed)


def _draw_again(
    probe: Probe,
    reach: Mapping[str, Sequence[str]],
    units: Mapping[str, int],
    widths: Mapping[str, int],
    seen: _Seen,
) -> None:
    """Perturb with other draws as long as they show more: a ReLU behind a norm hides half of its columns."""
    idle = IDLE_DRAWS - 2
    for push in AGAIN:
        before = _count_read(seen)
        _decode(probe, _hidden(probe, reach, units, widths, seen), units, seen, push)
        idle = 0 if _count_read(seen) > before else idle + 1
        if idle > IDLE_DRAWS:
            break


def _count_read(seen: _Seen) -> int:
    """Return how many columns are known to read a unit, over all pairs of reader and layer."""
    return sum(int((ones | zeros).any(0).sum()) for ones, zeros in seen.codes.values())


def _hidden(
    probe: Probe,
    reach: Mapping[str, Sequence[str]],
    units: Mapping[str, int],
    widths: Mapping[str, int],
    seen: _Seen,
) -> dict[str, tuple[str, ...]]:
    """Return the layers to be perturbed once more: of which no unit, or for which no column, was seen."""
    read_columns = {name: torch.zeros(width, dtype=torch.bool) for name, width in widths.items()}
    again: set[str] = set()
    for name in reach:
        read_units = torch.zeros(units[name], dtype=torch.bool)
        for reader in reach[name]:
            ones, zeros = seen.codes[reader, name]
            is_read = (ones | zeros).any(0)
            read_columns[reader] |= is_read
            if (is_read & ~(ones | zeros).all(0)).any():
                again.add(name)
            columns = ((ones ^ zeros).all(0)).nonzero().flatten()
            numbers = (ones[:, columns].long() * 2 ** torch.arange(len(ones))[:, None]).sum(0)
            read_units[numbers[numbers < units[name]]] = True
        if reach[name] and not read_units.all():
            again.add(name)
    for reader, name in seen.mixed:
        read_columns[reader][seen.mixed[reader, name]] = True
    for name, readers in reach.items():
        if any(not read_columns[reader].all() for reader in readers):
            again.add(name)
    return {name: tuple(reach[name]) for name in reach if name in again}


def _find_mixed(
    probe: Probe, reach: Mapping[str, Sequence[str]], units: Mapping[str, int], seen: _Seen
) -> None:
    """See which readers every unit of a layer reaches in full, by the example of some units."""
    wide = {name: readers for name, readers in reach.items() if units[name] > SINGLES and readers}
    for names in batches(wide, tuple(wide)):
        some = {
            name: torch.randperm(units[name], generator=torch.Generator().manual_seed(0))[:SINGLES]
            for name in names
        }
        codes = {name: _one_hot(some[name], units[name], passes=SINGLES) for name in names}
        changed = probe.changed(codes, "both", SINGLES, _readers(reach, names))
        for name in names:
            for reader in reach[name]:
                change = changed[reader]
                if change.any() and change[:, change.any(0)].all() and change.any(0).sum() > 1:
                    seen.mixed[reader, name] = change.any(0).nonzero().flatten()


def _unit_count(probe: Probe, name: str) -> int:
    answer = probe.base[name, 0].answer
    assert answer is not None
    return int(answer.shape[reader_dim(probe.layers[name], answer)])


def _find_reach(probe: Probe, order: Sequence[str], units: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return layer -> the readers that any of its units reach."""
    reach: dict[str, set[str]] = {name: set() for name in order}
    for push in PUSHES[:2]:
        codes = {
            name: torch.eye(len(order), dtype=torch.bool)[:, [number]].expand(-1, units[name])
            for number, name in enumerate(order)
        }
        for reader, change in probe.changed(codes, push, len(order)).items():
            for number in change.any(1).nonzero().flatten().tolist():
                reach[order[number]].add(reader)
    return {name: tuple(sorted(readers)) for name, readers in reach.items()}


def batches(reach: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[list[str]]:
    """Return the layers in sets of which no two reach a reader in common."""
    batches: list[tuple[list[str], set[str]]] = []
    for name in order:
        for names, readers in batches:
            if readers.isdisjoint(reach[name]):
                names.append(name)
                readers.update(reach[name])
                break
        else:
            batches.append(([name], set(reach[name])))
    return [names for names, _ in batches]


def _decode(
    probe: Probe, reach: Mapping[str, Sequence[str]], units: Mapping[str, int], seen: _Seen, push: str
) -> None:
    """Add to `seen.codes`, bool [bits, columns] each: in which of the twin passes a column has changed."""
    open_layers = {name: readers for name, readers in reach.items() if readers}
    for names in batches(open_layers, tuple(open_layers)):
        bits = max(max(1, (units[name] - 1).bit_length()) for name in names)
        codes = {}
        for name in names:
            is_one = (torch.arange(units[name])[None] >> torch.arange(bits)[:, None]) & 1 == 1
            codes[name] = torch.cat([is_one, ~is_one])
        changed = probe.changed(codes, push, 2 * bits, _readers(reach, names))
        for name in names:
            for reader in reach[name]:
                own_bits = max(1, (units[name] - 1).bit_length())
                ones, zeros = changed[reader][:own_bits], changed[reader][bits : bits + own_bits]
                if (reader, name) in seen.codes:
                    ones, zeros = (
                        a | b for a, b in zip(seen.codes[reader, name], (ones, zeros), strict=True)
                    )
                seen.codes[reader, name] = ones, zeros


def _look_closely(
    probe: Probe, unclear: Mapping[str, Mapping[str, Tensor]], units: Mapping[str, int], seen: _Seen
) -> None:
    """See which units the unclear columns read, by passes of few units: layer -> reader -> columns."""
    some = {
        name: torch.randperm(units[name], generator=torch.Generator().manual_seed(1))[: 2 * SINGLES]
        for name in unclear
    }
    readers = {name: tuple(columns) for name, columns in unclear.items()}
    nearly_all: set[str] = set()
    for names in batches(readers, tuple(readers)):
        codes = {name: _one_hot(some[name], units[name], passes=2 * SINGLES) for name in names}
        changed = probe.changed(codes, PUSHES[1], 2 * SINGLES, _readers(readers, names))
        for name in names:
            passes = len(some[name])
            shares = [changed[r][:passes, columns].float().mean() for r, columns in unclear[name].items()]
            if units[name] > 64 and min(shares) > NEARLY:
                nearly_all.add(name)
                for reader, columns in unclear[name].items():
                    seen.mixed[reader, name] = columns.nonzero().flatten()
    readers = {name: names for name, names in readers.items() if name not in nearly_all}
    for names in batches(readers, tuple(readers)):
        searches = {name: UnitSearch.start(units[name], unclear[name]) for name in names}
        while running := {name: search for name, search in searches.items() if search.is_open}:
            for search in running.values():
                search.split()
            most = max(search.passes for search in running.values())
            codes = {name: search.codes(most) for name, search in running.items()}
            both = [probe.changed(codes, push, most, _readers(readers, running)) for push in PUSHES[:2]]
            for search in running.values():
                search.narrow({reader: both[0][reader] | both[1][reader] for reader in search.readers})
        for name, search in searches.items():
            for reader, (columns, numbers) in search.pairs().items():
                seen.several[reader, name] = columns, numbers


def _readers(reach: Mapping[str, Sequence[str]], names: Iterable[str]) -> set[str]:
    return {reader for name in names for reader in reach[name]}


def _one_hot(positions: Tensor, size: int, *, passes: int) -> Tensor:
    """Return bool [passes, size]: pass i has position i alone; passes beyond the positions have none."""
    codes = torch.zeros(passes, size, dtype=torch.bool)
    codes[torch.arange(len(positions)), positions] = True
    return codes
