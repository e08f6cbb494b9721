"""Run a network whose layers answer what they are told, and see what changes where they answer otherwise.

Every layer with weights is a *wall*: it answers noise, whatever it reads, save for a perturbation of some of
its units. The perturbation passes activations, norms, sums, concatenations and reshapes, and stops at the
inputs of the next layers, where one sees which columns have changed. As no layer computes anything, a pass
costs what is between the layers. Several passes lie side by side in one batch. `reads` says which units are
perturbed, and what follows from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from pruning.channel_mapping.perturbation import (
    batch_dim,
    find_changes,
    noise_like,
    perturbed_answer,
    reader_dim,
    split_copies,
)
from pruning.checks import FORWARD_ERRORS, one_line
from pruning.eval_mode import share_parameters
from pruning.masking import prunable_layers

LOGITS = "the logits"  # the last reader; no module has a name with a space
CHUNK = 3_000_000  # numbers that the largest answer takes in one batch of passes
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
    batch: int = 1  # images that the network takes at once; "an image" below is a batch of these

    def __post_init__(self) -> None:
        self.layers = prunable_layers(self.net)
        self.watched: dict[str, nn.Module] = {**self.layers, **self.readers}

    def record(self, draw: int) -> None:
        """Run the network itself on two images, together and alone. ValueError where it does not run."""
        generator = torch.Generator().manual_seed(draw)
        size = self.batch
        shape = (2 * size, *self.example.shape[1:])
        images = torch.randn(shape, generator=generator, dtype=torch.float64)
        images = images.to(self.example.device) * (1.0, 3.0, 0.3)[draw % 3]
        before = share_parameters(self.net)
        first, again = self._calls(images[:size]), self._calls(images[:size])
        if not _same_logits(first, again):
            raise ValueError(f"{type(self.net).__name__} {_why_unequal(before, images[:size])}")
        second = self._calls(images[size:])
        if first.keys() != second.keys():
            raise ValueError(
                f"{type(self.net).__name__} takes another path for another image: its channels cannot be "
                "traced"
            )
        if not _same_logits(first, self._calls(images[:size])):
            raise ValueError(f"{type(self.net).__name__} {_why_unequal(before, images[:size])}")
        try:
            both = self._calls(images)
        except FORWARD_ERRORS:
            both = {}
        self.base = first
        for key, call in first.items():
            if key in both and call.answer is not None:
                call.answer_dim = batch_dim(call.answer, second[key].answer, both[key].answer)
            call.read_dim = batch_dim(call.read, second[key].read, both[key].read) if key in both else None
        self.images = images[:size]
        # A reader whose images do not lie side by side (a norm over the batch mixes them) would seem blind.
        # A reader of what is the same for every image (positions, say) has none to lie side by side.
        self.is_batched = both.keys() == first.keys() and all(
            call.read_dim is not None or _is_same(call, second[key], both[key]) for key, call in first.items()
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
                self.answers[key] = noise_like(call.answer, kind, seed=number)

    def changed(
        self, codes: Mapping[str, Tensor], push: str, passes: int, readers: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return reader -> bool [passes, columns]: which of its columns change when units are perturbed.

        `codes`: layer -> bool [passes, units], the units that each pass perturbs. `readers` are those to look
        at, all unless given; a pass ends at the last of them.
        """
        unbatched = {n for (n, _), call in self.base.items() if n in codes and call.answer_dim is None}
        if self.is_batched and 0 < len(unbatched) < len(codes):
            sides = (codes.keys() - unbatched, unbatched)
            first, second = (
                self.changed({name: codes[name] for name in side}, push, passes, readers) for side in sides
            )
            return {name: first[name] | second[name] for name in first.keys() & second.keys()}
        is_batched = self.is_batched and not unbatched
        self.push(push)
        if not is_batched and not self.reads:
            self._changed({}, is_batched=False)  # nothing perturbed: the reads to compare with
        if not passes:
            return {}
        largest = max((c.answer.numel() for c in self.base.values() if c.answer is not None), default=1)
        chunk = max(1, min(128, CHUNK // largest)) if is_batched else 1
        pieces: list[dict[str, Tensor] | None] = []
        for start in range(0, passes, chunk):
            some = {name: code[start : start + chunk] for name, code in codes.items()}
            is_empty = not is_batched and not any(code.any() for code in some.values())
            # The first is run all the same: it has the names and widths of the readers.
            run = None if is_empty and pieces else self._changed(some, is_batched=is_batched, readers=readers)
            pieces.append(run)
        blank = {name: torch.zeros_like(seen) for name, seen in (pieces[0] or {}).items()}
        return {name: torch.cat([(piece or blank)[name] for piece in pieces]) for name in blank}

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
            both = (
                split_copies(read, call.read_dim, copies)
                if is_batched
                else self._with_first_read((name, number), read, passes)
            )
            change = find_changes(both, dim, read.shape[dim], passes)
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
            return perturbed_answer(
                answer, batch, copies, codes.get(name), self.kind, reader_dim(layer, read)
            )

        def watch(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            on_read(name, next(counts[name]), args[0] if args else kwargs["input"])

        images = self.images.repeat(copies, *[1] * (self.images.dim() - 1))
        with self._walls(answer, watch), suppress(_AllSeen):
            on_read(LOGITS, 0, self._forward(images))
        if pending:
            raise _OtherPathError(min(pending)[0])
        return result

    def _with_first_read(self, key: Key, read: Tensor, passes: int) -> Tensor | None:
        """Return what was read at the first time and now, stacked; None where nothing is compared."""
        base = self.reads.setdefault(key, read.clone())
        if base.shape != read.shape:
            raise _OtherPathError(key[0])
        return torch.stack([base, read]) if passes else None

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
                # Once beyond zero: a ReLU hides what becomes of negative values.
                tensor.data.add_(size * (3.0 if push == "up" else 1.0) * largest * code)
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


def _same_logits(first: Mapping[Key, Call], again: Mapping[Key, Call]) -> bool:
    logits, repeated = first[LOGITS, 0].read, again[LOGITS, 0].read
    return torch.allclose(repeated, logits, rtol=1e-6, equal_nan=True)


@torch.no_grad()
def _why_unequal(net: nn.Module, image: Tensor) -> str:
    """Return why a network gives other outputs when it is run again."""
    copies = (share_parameters(net), share_parameters(net))
    first, second = (copy(image.clone()) for copy in copies)
    if torch.allclose(first, second, rtol=1e-6, equal_nan=True):
        return (
            "gives other outputs when it is run again: its result depends on what it keeps from one call to "
            "the next (a count of its calls, a running mean)"
        )
    return "gives other outputs when it is run again: it is random in eval mode"


def _is_same(*calls: Call) -> bool:
    """Return whether calls read the same, and answered it."""
    first, *others = [(call.read, call.read if call.answer is None else call.answer) for call in calls]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-6)
        for other in others
        for a, b in zip(first, other, strict=True)
    )


class _AllSeen(Exception):  # noqa: N818  # no error: it ends a pass early
    """Every reader that is looked at has been called."""


class _OtherPathError(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: the network takes another path for other values: it cannot be traced")
