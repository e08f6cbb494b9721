"""Parts of other packages, by their entry points: each is imported when its name is asked for, not before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from operator import attrgetter
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")
LOG = logging.getLogger(__name__)
REASON_LENGTH = 300


class PluginError(ValueError):
    """A part of another package that cannot be had; one line with the package and the reason.

    `warning` is what is said where its name was not asked for: the same for all that fails for one reason.
    """

    def __init__(self, text: str, *, warning: str = "") -> None:
        super().__init__(text)
        self.warning = warning or text


def all_entries() -> tuple[EntryPoint, ...]:
    """The entry points of every package that is installed; of a package that is there twice, the first.

    One whose list of them cannot be read is left out: see `unreadable`.
    """
    return _read_all()[0]


def unreadable() -> tuple[str, ...]:
    """A line for each package whose list of entry points cannot be read: torch is not imported beside one."""
    return _read_all()[1]


def forget() -> None:
    """As if nothing had been read or imported yet: packages may have changed since."""
    for known in (_read_all, entries, _load, _import):
        known.cache_clear()


@cache
def _read_all() -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    known: list[EntryPoint] = []
    broken: list[str] = []
    seen: set[str] = set()
    for package in distributions():
        folder = _folder_name(package)
        if folder in seen:
            continue
        seen.add(folder)
        try:
            known += package.entry_points
        except Exception as error:  # noqa: BLE001  # whatever a crooked file makes of the parser
            broken.append(
                f"the entry points of the package {_name_of(package)} cannot be read ({_reason(error)}); "
                "mend the package or uninstall it"
            )
    return tuple(known), tuple(broken)


@cache
def entries(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by their names; of two packages with one name the first has it."""
    for line in unreadable():
        warn_once(line)
    known: dict[str, EntryPoint] = {}
    for entry in (entry for entry in all_entries() if entry.group == group):
        first = known.setdefault(entry.name, entry)
        if first.value != entry.value:
            warn_once(f"{entry.name!r} of {package_of(entry)} is left out: {package_of(first)} has that name")
    return MappingProxyType(dict(sorted(known.items())))


def package_of(entry: EntryPoint) -> str:
    """The name of the distribution that an entry point is of, or else of its package."""
    return _name_of(entry.dist) if entry.dist is not None else top_package(entry)


def _name_of(package: Distribution) -> str:
    """Its own name, or else that of the folder which describes it."""
    try:
        name = package.metadata["Name"]
    except Exception:  # noqa: BLE001  # there is no such file, or it is no text: each Python has its own error
        name = None
    return _plain(str(name or _folder_name(package)))


def _folder_name(package: Distribution) -> str:
    """Of `name-1.dist-info` the name: known without reading a file, and where METADATA is missing."""
    return str(getattr(package, "_path", "unnamed")).rpartition("/")[2].partition("-")[0].lower()


def top_package(entry: EntryPoint) -> str:
    return entry.value.partition(":")[0].partition(".")[0].strip()


def load(kind: str, entry: EntryPoint) -> object:
    """What an entry point stands for. PluginError where its package cannot be imported."""
    part = _load(entry)
    if isinstance(part, _Failure):
        package, do = package_of(entry), "mend the package or uninstall it"
        raise PluginError(
            f"{kind} {entry.name!r} of the package {package} cannot be imported ({part.reason}); {do}",
            warning=f"parts of the package {package} are left out: {part.reason}; {do}",
        ) from part.error
    return part


class _Failure:
    def __init__(self, error: BaseException | None, reason: str) -> None:
        self.error, self.reason = error, reason


@cache
def _load(entry: EntryPoint) -> object:
    match = entry.pattern.match(entry.value)
    if match is None:
        return _Failure(None, f"its entry point is {entry.value!r}, and not MODULE:NAME")
    part = _import(match["module"])
    try:
        is_whole = isinstance(part, _Failure) or not match["attr"]
        return part if is_whole else attrgetter(match["attr"])(part)
    except Exception as error:  # noqa: BLE001  # a module may compute its names
        return _Failure(error, _reason(error))


@cache  # a module that fails is run once, too
def _import(module: str) -> object:
    try:
        with redirect_stdout(sys.stderr):  # results alone are on stdout
            return import_module(module)
    except KeyboardInterrupt:  # Ctrl-C
        raise
    except BaseException as error:  # noqa: BLE001  # whatever another package's code may raise, SystemExit too
        return _Failure(error, _reason(error))


def _reason(error: BaseException) -> str:
    return _plain(" ".join(f"{type(error).__name__}: {error}".split()))[:REASON_LENGTH]


def _plain(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def wrong_part(kind: str, entry: EntryPoint, reason: str) -> PluginError:
    """For a part that can be imported, and is not what the group of its entry point is for."""
    package = package_of(entry)
    return PluginError(
        f"{kind} {entry.name!r} of the package {package} cannot be used: its entry point {entry.value!r} "
        f"{reason}",
        warning=f"parts of the package {package} are left out: {entry.value!r} is no such part as its entry "
        "points say",
    )


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
    """Our own parts by name, and those of an entry point group, each imported when it is looked up.

    `is_right` says whether what another package brings is what it has to be, which is the `expected`.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        own: Mapping[str, T],
        *,
        is_right: Callable[[object], bool],
        expected: str,
    ) -> None:
        self.kind, self.group = kind, group
        self._own = dict(own)
        self._is_right, self._expected = is_right, expected

    def __getitem__(self, name: str) -> T:
        others = entries(self.group)
        if name in self._own:
            if name in others:
                warn_taken(self.kind, others[name])
            return self._own[name]
        part: T = load(self.kind, others[name])  # type: ignore[assignment]  # checked on the next line
        if not self._is_right(part):
            got = type(part).__name__
            raise wrong_part(
                self.kind, others[name], f"names a value of type {got}, and not {self._expected}"
            )
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
                warn_once(error.warning)


def problems(groups: Collection[tuple[str, str]]) -> Iterator[tuple[EntryPoint, str]]:
    """Every entry point of the (kind, group) pairs, and what is wrong with it; empty text for nothing."""
    for kind, group in groups:
        for entry in entries(group).values():
            try:
                load(kind, entry)
                yield entry, ""
            except PluginError as error:
                yield entry, str(error)
