"""Ask a network which columns read which units, instead of reading its operators.

Every layer with weights is a *wall*: it answers what it answered before, whatever it reads, save for a
perturbation of some of its units. The perturbation passes activations, norms, sums, concatenations and
reshapes, and stops at the inputs of the next layers, where one sees which columns have changed. As no layer
computes anything, a pass costs what is between the layers.

The units of a layer are numbered in binary: pass b perturbs those whose bit b is 1, its twin those whose
bit is 0. A column of one unit changes in exactly one pass of each pair, and the bits spell the unit; a
column that changes in both reads several, which are then perturbed one by one. The passes of a layer lie
side by side in one batch, and layers that reach no column in common share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checks import FORWARD_ERRORS, one_line
from pruning.masking import prunable_layers

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
LOGITS = "the logits"  # the last reader; no module has a name with a space
CHANGE = 1e-12  # of the largest value that is read; float64 itself is off by 1e-16 or so
CHUNK = 3_000_000  # numbers that the largest answer takes in one batch of passes
SINGLES = 4  # units that are perturbed alone to see whether every unit reaches everything
NEARLY = 0.9  # of pairs of unit and column: what is missing is too small to be seen
Key = tuple[str, int]  # (module, number of its call)


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
class Call:
    """One call of a layer or norm, of one image: what it read and answered, and where the batch lies."""

    read: Tensor
    answer: Tensor | None
    read_dim: int | None = None
    answer_dim: int | None = None


@dataclass
class Probe:
    """A network whose layers answer what they answered before. `readers` are modules besides the layers."""

    net: nn.Module
    example: Tensor
    readers: Mapping[str, nn.Module]
    base: dict[Key, Call] = field(default_factory=dict)
    answers: dict[Key, Tensor] = field(default_factory=dict)
    reads: dict[Key, Tensor] = field(default_factory=dict)
    kind: str = ""
    is_batched: bool = True

    def __post_init__(self) -> None:
        self.layers = prunable_layers(self.net)
        self.watched: dict[str, nn.Module] = {**self.layers, **self.readers}

    def record(self, draw: int) -> None:
        """Run the network itself on two images, together and alone. ValueError where it does not run."""
        generator = torch.Generator().manual_seed(draw)
        shape = (2, *self.example.shape[1:])
        images = torch.randn(shape, generator=generator, dtype=torch.float64)
        images = images.to(self.example.device) * (1.0, 3.0, 0.3)[draw % 3]
        first, second = (self._calls(image[None]) for image in images)
        if first.keys() != second.keys():
            raise ValueError(
                f"{type(self.net).__name__} takes another path for another image: its channels cannot be "
                "traced"
            )
        try:
            both = self._calls(images)
        except FORWARD_ERRORS:
            both = {}
        self.base = first
        for key, call in first.items():
            if key in both and call.answer is not None:
                call.answer_dim = _batch_dim(call.answer, second[key].answer, both[key].answer)
            call.read_dim = _batch_dim(call.read, second[key].read, both[key].read) if key in both else None
        self.images, self.is_batched = images[:1], both.keys() == first.keys()

    def _calls(self, images: Tensor) -> dict[Key, Call]:
        calls: dict[Key, Call] = {}
        counts: dict[str, Iterator[int]] = {name: count() for name in self.watched}

        def on_call(name: str, module: nn.Module, args: Any, kwargs: Any, answer: Any) -> None:
            read = args[0] if args else kwargs.get("input")
            if isinstance(read, Tensor) and isinstance(answer, Tensor):
                is_wall = name in self.layers
                calls[name, next(counts[name])] = Call(read.clone(), answer.clone() if is_wall else None)

        handles = [
            module.register_forward_hook(partial(on_call, name), with_kwargs=True)
            for name, module in self.watched.items()
        ]
        try:
            logits = self._forward(images)
        finally:
            for handle in handles:
                handle.remove()
        calls[LOGITS, 0] = Call(logits, None)
        return calls

    @torch.no_grad()
    def _forward(self, images: Tensor) -> Tensor:
        try:
            logits = self.net(images.clone())
        except FORWARD_ERRORS as error:
            raise ValueError(f"{type(self.net).__name__} does not run: {one_line(error)}") from error
        if not isinstance(logits, Tensor):
            raise ValueError(f"{type(self.net).__name__} returns a {type(logits).__name__}, and no logits")
        return logits

    def push(self, kind: str) -> None:
        """Choose what the layers answer from now on, and which way units are perturbed."""
        if kind == self.kind:
            return
        self.kind, self.reads = kind, {}
        for number, (key, call) in enumerate(self.base.items()):
            if call.answer is not None:
                self.answers[key] = _answer_of(call.answer, kind, seed=number)

    def changed(self, codes: Mapping[str, Tensor], push: str, passes: int) -> dict[str, Tensor]:
        """Return reader -> bool [passes, columns]: which of its columns change when units are perturbed.

        `codes`: layer -> bool [passes, units], the units that each pass perturbs.
        """
        is_batched = self.is_batched and all(
            call.answer_dim is not None for (name, _), call in self.base.items() if name in codes
        )
        self.push(push)
        if not is_batched and not self.reads:
            self._changed({}, is_batched=False)  # nothing perturbed: the reads to compare with
        if not passes:
            return {}
        largest = max((c.answer.numel() for c in self.base.values() if c.answer is not None), default=1)
        chunk = max(1, min(128, CHUNK // largest)) if is_batched else 1
        pieces = [
            self._changed(
                {name: code[start : start + chunk] for name, code in codes.items()}, is_batched=is_batched
            )
            for start in range(0, passes, chunk)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _changed(
        self, codes: Mapping[str, Tensor], *, is_batched: bool, passes: int = 0
    ) -> dict[str, Tensor]:
        passes = len(next(iter(codes.values()))) if codes else passes
        copies = passes + 1 if is_batched else 1  # the first copy is not perturbed
        result: dict[str, Tensor] = {}
        counts: dict[str, Iterator[int]] = {name: count() for name in self.watched}

        def on_read(name: str, number: int, read: Tensor) -> None:
            call = self.base.get((name, number))
            if call is None:
                raise _OtherPathError(name)
            dim = _channel_dim(self.watched.get(name), read)
            if not is_batched:
                base = self.reads.setdefault((name, number), read.clone())
                same_shape = base.shape == read.shape
                both = torch.stack([base, read]) if same_shape and passes else None
            else:
                both = _copies(read, call.read_dim, copies)
            change = _changes(both, dim, read.shape[dim], passes)
            result[name] = result[name] | change if name in result else change

        def answer(name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            number = next(counts[name])
            read = args[0] if args else kwargs["input"]
            on_read(name, number, read)
            call = self.base[name, number]
            answer = self.answers[name, number]
            batch = call.answer_dim if is_batched else None
            return _answer(answer, batch, copies, codes.get(name), self.kind, _channel_dim(layer, read))

        def watch(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            on_read(name, next(counts[name]), args[0] if args else kwargs["input"])

        images = self.images.expand(copies, *self.images.shape[1:])
        with self._walls(answer, watch):
            on_read(LOGITS, 0, self._forward(images))
        for name in self.watched.keys() - result.keys():
            if (name, 0) in self.base:
                raise _OtherPathError(name)
        return result

    def changed_by(self, codes: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return reader -> bool [1, columns]: what changes when entries of tensors between the layers do.

        `codes`: name -> (tensor of the network, bool of its shape).
        """
        changes = [self._changed_by(codes, push) for push in ("both", "up", "low")]
        return {name: changes[0][name] | changes[1][name] | changes[2][name] for name in changes[0]}

    def _changed_by(self, codes: Mapping[str, tuple[Tensor, Tensor]], push: str) -> dict[str, Tensor]:
        self.push(push)
        if not self.reads:
            self._changed({}, is_batched=False)
        before = [(tensor, tensor.detach().clone()) for tensor, _ in codes.values()]
        try:
            for tensor, code in codes.values():
                generator = torch.Generator().manual_seed(tensor.numel())
                size = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).add_(0.5).to(tensor)
                largest = max(float(tensor.detach().abs().max()), 1e-3)
                tensor.data.add_(size * largest * code)
            return self._changed({}, is_batched=False, passes=1)
        finally:
            for tensor, value in before:
                tensor.data.copy_(value)

    @contextmanager
    def _walls(self, answer: Any, watch: Any) -> Iterator[None]:
        """Let every layer answer by `answer`, and pass what other readers read to `watch`."""
        handles = []
        forwards = {name: vars(layer).get("forward") for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            vars(layer)["forward"] = partial(answer, name, layer)
        for name, module in self.readers.items():
            handles.append(module.register_forward_pre_hook(partial(watch, name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, layer in self.layers.items():
                del vars(layer)["forward"]
                if forwards[name] is not None:
                    vars(layer)["forward"] = forwards[name]


class _OtherPathError(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: the network takes another path for other values: it cannot be traced")


def _batch_dim(first: Tensor, second: Tensor | None, both: Tensor | None) -> int | None:
    """Return the dimension along which two images lie one after the other; None where there is none."""
    if second is None or both is None or first.shape != second.shape or first.dim() != both.dim():
        return None
    for dim in range(first.dim()):
        shape = list(first.shape)
        shape[dim] *= 2
        if shape == list(both.shape):
            scale = float(both.abs().max())
            if torch.allclose(torch.cat([first, second], dim), both, rtol=1e-6, atol=1e-9 * scale):
                return dim
    return None


def _channel_dim(module: nn.Module | None, read: Tensor) -> int:
    """Return where the columns of a reader lie, counted from the end: the batch may be split in front."""
    if module is None or isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.modules.conv._ConvNd):
        return -len(module.kernel_size) - 1
    return 1 - read.dim()


def _copies(read: Tensor, batch: int | None, copies: int) -> Tensor | None:
    """Return [copies, ...]: the copies of a batch one by one; None where they do not lie side by side."""
    if batch is None:
        return None
    stacked: Tensor = read.movedim(batch, 0).unflatten(0, (copies, -1)).movedim(1, batch + 1)
    return stacked


def _changes(copies: Tensor | None, dim: int, columns: int, passes: int) -> Tensor:
    """Return bool [passes, columns]: where a copy differs from the first."""
    if copies is None:
        return torch.zeros(passes, columns, dtype=torch.bool)
    base = copies[:1]
    differences = (copies[1:] - base).abs_().nan_to_num_(nan=float("inf"), posinf=float("inf"))
    per_column = differences.movedim(dim, 1).flatten(2).amax(2)
    finite = base[torch.isfinite(base)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return (per_column > CHANGE * scale).cpu()


def _answer(
    answer: Tensor, batch: int | None, copies: int, codes: Tensor | None, push: str, dim: int
) -> Tensor:
    """Return the answer once for each copy, each but the first with its own units perturbed."""
    if batch is None:
        return (
            answer.clone() if codes is None else answer + _push(answer, push) * _along(codes[0], dim, answer)
        )
    stacked = answer[None].expand(copies, *answer.shape).clone()
    if codes is not None:
        pushed = _push(answer, push)
        for number, code in enumerate(codes, start=1):
            stacked[number].add_(pushed * _along(code, dim, answer))
    # One image after the other along the dimension of the batch, as the network itself lays them.
    return stacked.movedim(0, batch).flatten(batch, batch + 1)


def _answer_of(recorded: Tensor, push: str, *, seed: int) -> Tensor:
    """Return noise of deviation 1 in the shape of a layer's answer: little is closed or saturated then.

    It is positive where units are pushed up or down: a gate or ReLU that is closed hides what it would pass
    on. "low" is for what acts on negative values alone, the slopes of a PReLU.
    """
    generator = torch.Generator().manual_seed(1000 * PUSHES.index(push) + seed)
    noise = torch.randn(recorded.shape, generator=generator, dtype=torch.float64).to(recorded)
    if push == "both":
        return noise
    return noise.abs_().add_(0.1).mul_(-1.0 if push == "low" else 1.0)


def _push(answer: Tensor, push: str) -> Tensor:
    """Return what is added to perturbed units: upwards or downwards beyond zero, or both ways by less."""
    generator = torch.Generator().manual_seed(answer.numel())
    size = torch.rand(answer.shape, generator=generator, dtype=torch.float64).add_(0.5).to(answer)
    largest = float(answer.abs().max())
    if push == "both":
        sign = torch.rand(answer.shape, generator=generator, dtype=torch.float64).to(answer).sub_(0.5).sign_()
        return size.mul_(sign).mul_(0.5 * largest)
    return size.mul_((3.0 if push == "up" else -3.0) * largest)


def _along(code: Tensor, dim: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return code.to(like).reshape(shape)


PUSHES = ("both", "up", "down", "low")


@torch.no_grad()
def open_norms(net: nn.Module) -> None:
    """Give the norms of a network scales about 1, small shifts and no statistics, in place.

    A scale of 0, or statistics far from the noise that layers answer, would close what follows.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in net.modules() if isinstance(module, NORMS)):
        for name, tensor in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            if name in ("weight", "running_var"):
                tensor.copy_(noise + 0.5)
            else:
                tensor.copy_(0.1 * (noise - 0.5))


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
        name: int(call.read.shape[_channel_dim(probe.watched.get(name), call.read)])
        for (name, _), call in probe.base.items()
    }
    reach, seen = _find_reach(probe, order, units), _Seen()
    _find_mixed(probe, reach, units, seen)
    reach = {name: tuple(r for r in reach[name] if (r, name) not in seen.mixed) for name in order}
    for push in PUSHES[:2]:
        _decode(probe, reach, units, seen, push)
    hidden = _hidden(probe, reach, units, widths, seen)
    _decode(probe, hidden, units, seen, PUSHES[2])
    unclear: dict[str, dict[str, Tensor]] = {}
    for (reader, name), (ones, zeros) in seen.codes.items():
        is_single, is_read = (ones ^ zeros).all(0), (ones | zeros).any(0)
        if is_single.any():
            columns, powers = is_single.nonzero().flatten(), 2 ** torch.arange(len(ones))
            seen.single[reader, name] = columns, (ones[:, columns].long() * powers[:, None]).sum(0)
        if (is_read & ~is_single).any():
            unclear.setdefault(name, {})[reader] = is_read & ~is_single
    for name, open_columns in unclear.items():
        _look_closely(probe, name, units[name], open_columns, seen)
    return Reads(order, widths, seen.single, seen.several, seen.mixed)


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
    for names in _batches(wide, tuple(wide)):
        some = {
            name: torch.randperm(units[name], generator=torch.Generator().manual_seed(0))[:SINGLES]
            for name in names
        }
        codes = {name: _one_hot(some[name], units[name]) for name in names}
        changed = probe.changed(codes, "both", SINGLES)
        for name in names:
            for reader in reach[name]:
                change = changed[reader]
                if change.any() and change[:, change.any(0)].all() and change.any(0).sum() > 1:
                    seen.mixed[reader, name] = change.any(0).nonzero().flatten()


def _unit_count(probe: Probe, name: str) -> int:
    answer = probe.base[name, 0].answer
    assert answer is not None
    return int(answer.shape[_channel_dim(probe.layers[name], answer)])


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


def _batches(reach: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[list[str]]:
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
    for names in _batches(open_layers, tuple(open_layers)):
        bits = max(max(1, (units[name] - 1).bit_length()) for name in names)
        codes = {}
        for name in names:
            is_one = (torch.arange(units[name])[None] >> torch.arange(bits)[:, None]) & 1 == 1
            codes[name] = torch.cat([is_one, ~is_one])
        changed = probe.changed(codes, push, 2 * bits)
        for name in names:
            for reader in reach[name]:
                own_bits = max(1, (units[name] - 1).bit_length())
                ones, zeros = changed[reader][:own_bits], changed[reader][bits : bits + own_bits]
                if (reader, name) in seen.codes:
                    ones, zeros = (
                        a | b for a, b in zip(seen.codes[reader, name], (ones, zeros), strict=True)
                    )
                seen.codes[reader, name] = ones, zeros


def _look_closely(probe: Probe, name: str, units: int, unclear: Mapping[str, Tensor], seen: _Seen) -> None:
    """Perturb the units of a layer one by one, to see which of them the unclear columns read."""
    codes = _one_hot(torch.arange(units), units)
    some = codes[torch.randperm(units, generator=torch.Generator().manual_seed(1))[: 2 * SINGLES]]
    seen_of_some = probe.changed({name: some}, PUSHES[1], len(some))
    if units > 64 and all(
        seen_of_some[r][:, columns].float().mean() > NEARLY for r, columns in unclear.items()
    ):
        for reader, columns in unclear.items():  # every unit but for what is too small to be seen
            seen.mixed[reader, name] = columns.nonzero().flatten()
        return
    changed = [probe.changed({name: codes}, push, units) for push in PUSHES[:2]]
    for reader, columns in unclear.items():
        pairs = ((changed[0][reader] | changed[1][reader]) & columns).nonzero()
        seen.several[reader, name] = pairs[:, 1], pairs[:, 0]


def _one_hot(positions: Tensor, size: int) -> Tensor:
    return torch.zeros(len(positions), size, dtype=torch.bool).index_put_(
        (torch.arange(len(positions)), positions), torch.tensor(True)
    )


@dataclass(frozen=True)
class Slices:
    """Slices of a tensor between the layers: reader -> (columns, the slices that act on them)."""

    module: str
    tensor: str
    dim: int
    size: int
    columns: Mapping[str, tuple[Tensor, Tensor]]


def find_slices(probe: Probe, removable: Mapping[str, Tensor]) -> list[Slices]:
    """Return the parameters and buffers between the layers whose slices act on columns one by one.

    `removable`: reader -> bool [columns], those that belong to a channel which can go. Every slice along a
    dimension is changed, by the same code as units are; a dimension of which a removable column sees several
    slices is left out.
    """
    tensors = {
        (name, leaf): tensor
        for name, module in probe.net.named_modules()
        if name not in probe.watched and not isinstance(module, nn.LayerNorm)
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if tensor.is_floating_point() and tensor.numel() > 1
    }
    reach: dict[str, tuple[str, ...]] = {}
    keys = {f"{name}.{leaf}": (name, leaf) for name, leaf in tensors}
    for label, key in keys.items():
        tensor = tensors[key]
        changed = probe.changed_by({label: (tensor, torch.ones_like(tensor, dtype=torch.bool))})
        readers = tuple(r for r, change in changed.items() if change.any())
        if any((changed[r][0] & removable[r]).any() for r in readers if r in removable):
            reach[label] = readers
    found: list[Slices] = []
    for labels in _batches(reach, tuple(reach)):
        for dim in range(max(tensors[keys[label]].dim() for label in labels)):
            sizes = {
                label: tensors[keys[label]].shape[dim] for label in labels if tensors[keys[label]].dim() > dim
            }
            sizes = {label: size for label, size in sizes.items() if size > 1}
            if sizes:
                found += _decode_slices(
                    probe,
                    {label: (keys[label], tensors[keys[label]]) for label in sizes},
                    dim,
                    reach,
                    removable,
                )
    return found


def _decode_slices(
    probe: Probe,
    tensors: Mapping[str, tuple[tuple[str, str], Tensor]],
    dim: int,
    reach: Mapping[str, Sequence[str]],
    removable: Mapping[str, Tensor],
) -> list[Slices]:
    bits = max((tensor.shape[dim] - 1).bit_length() for _, tensor in tensors.values())
    passes: list[dict[str, Tensor]] = []
    for value in (True, False):
        for bit in range(bits):
            codes = {}
            for label, (_, tensor) in tensors.items():
                code = ((torch.arange(tensor.shape[dim]) >> bit) & 1 == 1) == value
                shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                codes[label] = tensor, code.to(tensor.device).reshape(shape).expand(tensor.shape)
            passes.append(probe.changed_by(codes))
    found = []
    for label, ((name, leaf), tensor) in tensors.items():
        columns: dict[str, tuple[Tensor, Tensor]] = {}
        is_clear, own_bits = True, (tensor.shape[dim] - 1).bit_length()
        for reader in reach[label]:
            changes = torch.cat([change[reader] for change in passes])
            ones, zeros = changes[:own_bits], changes[bits : bits + own_bits]
            is_single = (ones ^ zeros).all(0)
            if reader in removable and ((ones | zeros).any(0) & ~is_single & removable[reader]).any():
                is_clear = False
            positions = is_single.nonzero().flatten()
            powers = 2 ** torch.arange(own_bits)[:, None]
            columns[reader] = positions, (ones[:, positions].long() * powers).sum(0)
        if is_clear:
            found.append(Slices(name, leaf, dim, tensor.shape[dim], columns))
    return found
