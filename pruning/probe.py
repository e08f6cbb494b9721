"""Run a network whose layers answer what they are told, and see what changes where they answer otherwise.

Every layer with weights is a *wall*: it answers noise, whatever it reads, save for a perturbation of some of
its units. The perturbation passes activations, norms, sums, concatenations and reshapes, and stops at the
inputs of the next layers, where one sees which columns have changed. As no layer computes anything, a pass
costs what is between the layers. Several passes lie side by side in one batch. `reads` says which units are
perturbed, and what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
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
SIDES = (8, 16, 32, 64, 96, 128)  # of the images that are tried in place of larger ones
CHUNK = 3_000_000  # numbers that the largest answer takes in one batch of passes
PUSHES = ("both", "up", "down", "low")
Key = tuple[str, int]  # (module, number of its call)


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
        again = self._calls(images[:1])[LOGITS, 0].read
        if not torch.allclose(again, first[LOGITS, 0].read, rtol=1e-6, equal_nan=True):
            raise ValueError(
                f"{type(self.net).__name__} gives other outputs when it is run again: it is random in eval "
                "mode, or keeps values from one call to the next"
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
        self.images = images[:1]
        # A reader whose images do not lie side by side (a norm over the batch mixes them) would seem blind.
        self.is_batched = both.keys() == first.keys() and all(
            call.read_dim is not None for call in first.values()
        )

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

    def changed(
        self, codes: Mapping[str, Tensor], push: str, passes: int, readers: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return reader -> bool [passes, columns]: which of its columns change when units are perturbed.

        `codes`: layer -> bool [passes, units], the units that each pass perturbs. `readers` are those to look
        at, all unless given; a pass ends at the last of them.
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
                {name: code[start : start + chunk] for name, code in codes.items()},
                is_batched=is_batched,
                readers=readers,
            )
            for start in range(0, passes, chunk)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _changed(
        self,
        codes: Mapping[str, Tensor],
        *,
        is_batched: bool,
        passes: int = 0,
        readers: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        passes = len(next(iter(codes.values()))) if codes else passes
        copies = passes + 1 if is_batched else 1  # the first copy is not perturbed
        result: dict[str, Tensor] = {}
        counts: dict[str, Iterator[int]] = {name: count() for name in self.watched}
        pending = {key for key in self.base if readers is None or key[0] in readers}

        def on_read(name: str, number: int, read: Tensor) -> None:
            call = self.base.get((name, number))
            if call is None:
                raise _OtherPathError(name)
            if (name, number) not in pending:
                return
            dim = reader_dim(self.watched.get(name), read)
            if not is_batched:
                base = self.reads.setdefault((name, number), read.clone())
                same_shape = base.shape == read.shape
                both = torch.stack([base, read]) if same_shape and passes else None
            else:
                both = _copies(read, call.read_dim, copies)
            change = _changes(both, dim, read.shape[dim], passes)
            result[name] = result[name] | change if name in result else change
            pending.remove((name, number))
            if not pending:
                raise _AllSeen

        def answer(name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            number = next(counts[name])
            read = args[0] if args else kwargs["input"]
            on_read(name, number, read)
            call = self.base[name, number]
            answer = self.answers[name, number]
            batch = call.answer_dim if is_batched else None
            return _answer(answer, batch, copies, codes.get(name), self.kind, reader_dim(layer, read))

        def watch(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            on_read(name, next(counts[name]), args[0] if args else kwargs["input"])

        images = self.images.expand(copies, *self.images.shape[1:])
        with self._walls(answer, watch), suppress(_AllSeen):
            on_read(LOGITS, 0, self._forward(images))
        if pending:
            raise _OtherPathError(min(pending)[0])
        return result

    def changed_by(
        self, codes: Mapping[str, tuple[Tensor, Tensor]], readers: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return reader -> bool [1, columns]: what changes when entries of tensors between the layers do.

        `codes`: name -> (tensor of the network, bool of its shape). `readers` as in `changed`.
        """
        changes = [self._changed_by(codes, push, readers) for push in ("both", "up", "low")]
        return {name: changes[0][name] | changes[1][name] | changes[2][name] for name in changes[0]}

    def _changed_by(
        self, codes: Mapping[str, tuple[Tensor, Tensor]], push: str, readers: Collection[str] | None
    ) -> dict[str, Tensor]:
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
            return self._changed({}, is_batched=False, passes=1, readers=readers)
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


class _AllSeen(Exception):  # noqa: N818  # no error: it ends a pass early
    """Every reader that is looked at has been called."""


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
            if not math.isfinite(scale):  # weights of NaN: the law of cutting refuses the network
                return None
            if torch.allclose(torch.cat([first, second], dim), both, rtol=1e-6, atol=1e-9 * scale):
                return dim
    return None


def reader_dim(module: nn.Module | None, read: Tensor) -> int:
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


@torch.no_grad()
def smallest_images(net: nn.Module, example_input: Tensor) -> Tensor:
    """Return the smallest square images, on meta, on which a network makes the same calls as on the example.

    What reads what does not depend on the size, and small images are faster.
    """
    if example_input.dim() != 4 or example_input.shape[2] != example_input.shape[3]:
        return example_input
    small_net = deepcopy(net).eval()
    sides = [side for side in SIDES if side < example_input.shape[3]]
    order = _call_order(small_net, example_input.shape[3], example_input) if sides else ()
    for side in sides:
        if order and _call_order(small_net, side, example_input) == order:
            shape = (len(example_input), example_input.shape[1], side, side)
            return torch.empty(shape, dtype=example_input.dtype, device="meta")
    return example_input


def _call_order(net: nn.Module, side: int, like: Tensor) -> tuple[str, ...]:
    """Return the layers in order of their calls on one image; none where the network does not run."""
    parameter = next(parameter for parameter in net.parameters() if parameter.is_floating_point())
    calls: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, layer in prunable_layers(net).items()
    ]
    try:
        logits = net(torch.zeros((1, like.shape[1], side, side)).to(parameter))
    except FORWARD_ERRORS:
        return ()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(calls) if isinstance(logits, Tensor) and torch.isfinite(logits).all() else ()
