"""Parts of other packages, by their entry points: each is imported when its name is asked for, not before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class PluginError(ValueError):
    """A part of another package that cannot be had; one line with the package and the reason."""


@cache
def entries(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by their names; of two packages with one name the first has it."""
    known: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        first = known.setdefault(entry.name, entry)
        if first.value != entry.value:
            warn_once(f"{entry.name!r} of {package_of(entry)} is left out: {package_of(first)} has that name")
    return MappingProxyType(dict(sorted(known.items())))


def package_of(entry: EntryPoint) -> str:
    """The name of the distribution that an entry point is of, or else of its package."""
    return entry.dist.name if entry.dist is not None else top_package(entry)


def top_package(entry: EntryPoint) -> str:
    return entry.module.partition(".")[0]


@cache
def load(kind: str, entry: EntryPoint) -> object:
    """What an entry point stands for. PluginError where its package cannot be imported."""
    try:
        return entry.load()
    except Exception as error:  # whatever another package's code may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PluginError(
            f"{kind} {entry.name!r} of the package {package_of(entry)} cannot be imported ({reason}); "
            "mend the package or uninstall it"
        ) from error


def warn_taken(kind: str, entry: EntryPoint) -> None:
    """Say once that a part of another package is left out, as a part of this one has its name."""
    warn_once(
        f"{kind} {entry.name!r} of the package {package_of(entry)} is left out: the name is taken; "
        "choose another one in its entry point"
    )


@cache
def warn_once(text: str) -> None:
    LOG.warning("warning: %s", text)


class Plugins(MutableMapping[str, T], Generic[T]):
    """Our own parts by name, and those of an entry point group, each imported when it is looked up."""

    def __init__(self, kind: str, group: str, own: Mapping[str, T]) -> None:
        self.kind, self.group = kind, group
        self._own = dict(own)

    def __getitem__(self, name: str) -> T:
        others = entries(self.group)
        if name in self._own:
            if name in others:
                warn_taken(self.kind, others[name])
            return self._own[name]
        part: T = load(self.kind, others[name])  # type: ignore[assignment]  # as the group promises
        return part

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in entries(self.group)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in entries(self.group) if name not in self._own)

    def __len__(self) -> int:
        return len(self._own.keys() | entries(self.group).keys())

    def __setitem__(self, name: str, part: T) -> None:
        self._own[name] = part

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def working(self) -> Iterator[tuple[str, T]]:
        """Every name and part; one that cannot be imported is left out with a warning."""
        for name in self:
            try:
                yield name, self[name]
            except PluginError as error:
                warn_once(str(error))


def problems(groups: Collection[tuple[str, str]]) -> Iterator[tuple[EntryPoint, str]]:
    """Every entry point of the (kind, group) pairs, and what is wrong with it; empty text for nothing."""
    for kind, group in groups:
        for entry in entries(group).values():
            try:
                load(kind, entry)
                yield entry, ""
            except PluginError as error:
                yield entry, str(error)
