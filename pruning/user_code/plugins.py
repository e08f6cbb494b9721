"""Plug-ins: methods, models and data sets of other packages, added by entry points.

A plug-in is imported when its name is asked for, not before. This module itself needs the standard library
alone, so that help and shell completion load no torch.
"""

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
REASON_LENGTH = 300  # characters of another package's error


class PluginError(ValueError):
    """A plug-in that cannot be imported or used; one line with its package and the reason.

    `warning` is the text where nobody asked for its name. All plug-ins that fail for one reason share it, so
    that it is logged once.
    """

    def __init__(self, text: str, *, warning: str = "") -> None:
        super().__init__(text)
        self.warning = warning or text


def all_entry_points() -> tuple[EntryPoint, ...]:
    """Return the entry points of every installed package; of a package installed twice, the first's.

    Packages whose entry points cannot be read are left out: see `unreadable_packages`.
    """
    return _read_entry_points()[0]


def unreadable_packages() -> tuple[str, ...]:
    """Return a line for each package whose entry points cannot be read: torch does not import beside one."""
    return _read_entry_points()[1]


def clear_caches() -> None:
    """Forget what was read and imported: packages may have been installed since."""
    for cached in (_read_entry_points, entry_points, _load, _import):
        cached.cache_clear()


@cache
def _read_entry_points() -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    readable: list[EntryPoint] = []
    broken: list[str] = []
    folders: set[str] = set()
    for distribution in distributions():
        folder = _folder_name(distribution)
        if folder in folders:
            continue
        folders.add(folder)
        try:
            readable += distribution.entry_points
        except Exception as error:  # noqa: BLE001  # whatever a damaged file makes of the parser
            broken.append(
                f"the entry points of the package {_name_of(distribution)} cannot be read "
                f"({_reason(error)}); mend the package or uninstall it"
            )
    return tuple(readable), tuple(broken)


@cache
def entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name; the first of two packages with one name wins."""
    for line in unreadable_packages():
        warn_once(line)
    by_name: dict[str, EntryPoint] = {}
    for entry in (entry for entry in all_entry_points() if entry.group == group):
        first = by_name.setdefault(entry.name, entry)
        if first.value != entry.value:
            warn_once(
                f"{entry.name!r} of {package_name(entry)} is left out: {package_name(first)} has that name"
            )
    return MappingProxyType(dict(sorted(by_name.items())))


def package_name(entry: EntryPoint) -> str:
    """Return the name of an entry point's distribution, or of its module where it has none."""
    return _name_of(entry.dist) if entry.dist is not None else top_level_module(entry)


def _name_of(distribution: Distribution) -> str:
    try:
        name = distribution.metadata["Name"]
    except Exception:  # noqa: BLE001  # METADATA is missing or no text: each Python has its own error for it
        name = None
    return _printable(str(name or _folder_name(distribution)))


def _folder_name(distribution: Distribution) -> str:
    """Return `name` of the folder `name-1.dist-info`: known without reading a file."""
    return str(getattr(distribution, "_path", "unnamed")).rpartition("/")[2].partition("-")[0].lower()


def top_level_module(entry: EntryPoint) -> str:
    return entry.value.partition(":")[0].partition(".")[0].strip()


def load_plugin(kind: str, entry: EntryPoint) -> object:
    """Return the object that an entry point names. PluginError where it cannot be imported."""
    plugin = _load(entry)
    if isinstance(plugin, _Failure):
        package, advice = package_name(entry), "mend the package or uninstall it"
        raise PluginError(
            f"{kind} {entry.name!r} of the package {package} cannot be imported ({plugin.reason}); {advice}",
            warning=f"parts of the package {package} are left out: {plugin.reason}; {advice}",
        ) from plugin.error
    return plugin


class _Failure:
    """A failed import as a value, so that the cache keeps it and nothing is tried twice."""

    def __init__(self, error: BaseException | None, reason: str) -> None:
        self.error, self.reason = error, reason


@cache
def _load(entry: EntryPoint) -> object:
    match = entry.pattern.match(entry.value)
    if match is None:
        return _Failure(None, f"its entry point is {entry.value!r}, and not MODULE:NAME")
    module = _import(match["module"])
    if isinstance(module, _Failure) or not match["attr"]:
        return module
    try:
        return attrgetter(match["attr"])(module)
    except Exception as error:  # noqa: BLE001  # a module may compute its names
        return _Failure(error, _reason(error))


@cache
def _import(module: str) -> object:
    try:
        with redirect_stdout(sys.stderr):  # our stdout is for results
            return import_module(module)
    except KeyboardInterrupt:  # Ctrl-C
        raise
    except BaseException as error:  # noqa: BLE001  # whatever another package's code may raise, SystemExit too
        return _Failure(error, _reason(error))


def _reason(error: BaseException) -> str:
    return _printable(" ".join(f"{type(error).__name__}: {error}".split()))[:REASON_LENGTH]


def _printable(text: str) -> str:
    """Escape the characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def unusable_error(kind: str, entry: EntryPoint, reason: str) -> PluginError:
    """Return the error for a plug-in that can be imported and is not what its group is for."""
    package = package_name(entry)
    return PluginError(
        f"{kind} {entry.name!r} of the package {package} cannot be used: its entry point {entry.value!r} "
        f"{reason}",
        warning=f"parts of the package {package} are left out: {entry.value!r} is no such part as its entry "
        "points say",
    )


def warn_name_taken(kind: str, entry: EntryPoint) -> None:
    """Log once that a plug-in is left out because this package uses its name."""
    warn_once(
        f"{kind} {entry.name!r} of the package {package_name(entry)} is left out: the name is taken; "
        "choose another one in its entry point"
    )


@cache
def warn_once(text: str) -> None:
    LOG.warning("warning: %s", text)


class Plugins(MutableMapping[str, T], Generic[T]):
    """The built-in objects of one kind by name, and the plug-ins of an entry point group.

    A plug-in is imported when it is looked up. `is_valid` checks it; `expected` says in the error what it has
    to be.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, T],
        *,
        is_valid: Callable[[object], bool],
        expected: str,
    ) -> None:
        self.kind, self.group = kind, group
        self._built_in = dict(built_in)
        self._is_valid, self._expected = is_valid, expected

    def __getitem__(self, name: str) -> T:
        plugins = entry_points(self.group)
        if name in self._built_in:
            if name in plugins:
                warn_name_taken(self.kind, plugins[name])
            return self._built_in[name]
        plugin: T = load_plugin(self.kind, plugins[name])  # type: ignore[assignment]  # checked on the next line
        if not self._is_valid(plugin):
            reason = f"names a value of type {type(plugin).__name__}, and not {self._expected}"
            raise unusable_error(self.kind, plugins[name], reason)
        return plugin

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in entry_points(self.group)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._built_in, *entry_points(self.group)]))

    def __len__(self) -> int:
        return len(self._built_in.keys() | entry_points(self.group).keys())

    def __setitem__(self, name: str, value: T) -> None:
        self._built_in[name] = value

    def __delitem__(self, name: str) -> None:
        del self._built_in[name]

    def iter_importable(self) -> Iterator[tuple[str, T]]:
        """Yield every name and object; plug-ins that cannot be imported are left out with a warning."""
        for name in self:
            try:
                yield name, self[name]
            except PluginError as error:
                warn_once(error.warning)


def iter_problems(groups: Collection[tuple[str, str]]) -> Iterator[tuple[EntryPoint, str]]:
    """Yield every entry point of the (kind, group) pairs with what is wrong with it: "" for nothing."""
    for kind, group in groups:
        for entry in entry_points(group).values():
            try:
                load_plugin(kind, entry)
                yield entry, ""
            except PluginError as error:
                yield entry, str(error)
