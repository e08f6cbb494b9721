"""Shell completion, without loading any library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.formatting import first_control

Offers = list[tuple[str, str]]
ABOUT_LENGTH = 48  # typer wraps at the terminal's width, and fish takes the rest for another word


def kinds(incomplete: str) -> Offers:
    """What `list` lists."""
    from orchestrator.space.names import KINDS

    return _fitting(((kind, "") for kind in KINDS), incomplete)


def known(incomplete: str) -> Offers:
    """Whatever `show` tells of."""
    from orchestrator.space.names import KINDS, names

    found = [(name, about) for kind in KINDS for name, about in names(kind).items()]
    return _fitting(dict(reversed(found)).items(), incomplete)


def spaces(incomplete: str) -> Offers:
    """Named spaces, then space files and the folders on the way to one."""
    from orchestrator.space.names import names

    return [*_fitting(names("spaces").items(), incomplete), *_files(incomplete)]


def datasets(incomplete: str) -> Offers:
    from orchestrator.space.names import names

    return _fitting(names("datasets").items(), incomplete)


def stops(incomplete: str) -> Offers:
    from orchestrator.space.names import names

    none = {"none": "nothing is stopped, whatever the space says"}
    return _fitting({**names("stops"), **none}.items(), incomplete)


def sets(incomplete: str) -> Offers:
    """`KEY=`, and behind it the names that the axis takes; bash ends a word at `=` and sees only the keys.

    Of the options of methods, `METHOD.OPTION=`, nothing before the point: they are many.
    """
    from orchestrator.space.names import axis_values, hyperparameter_axes, settable_keys

    key, equals, given = incomplete.partition("=")
    if not equals:
        keys = [*settable_keys(), *(hyperparameter_axes() if "." in key else ())]
        return _fitting(((f"{name}=", "") for name in keys), incomplete)
    before, comma, last = given.rpartition(",")
    return [
        (f"{key}={before}{comma}{name}", about) for name, about in _fitting(axis_values(key).items(), last)
    ]


def sweeps(incomplete: str) -> Offers:
    """The spaces that have been run: each has a folder among the artifacts of a store on this disk."""
    from orchestrator.errors import StoreError
    from orchestrator.storage.uri import default_uri, store_folder

    try:
        folder = store_folder(default_uri(Path.cwd()))
    except StoreError:
        return []
    inside = [] if folder is None else _inside(folder / "artifacts")
    return _fitting(((path.name, "") for path in inside if path.is_dir()), incomplete)


def _fitting(found: Iterable[tuple[str, str]], incomplete: str) -> Offers:
    return [(name, _short(about)) for name, about in found if name.startswith(incomplete)]


def _short(about: str) -> str:
    return about if len(about) <= ABOUT_LENGTH else f"{about[: ABOUT_LENGTH - 1].rstrip()}…"


def _files(incomplete: str) -> Offers:
    folder, slash, start = incomplete.rpartition("/")
    found = [
        (f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}", "")
        for path in _inside(Path(f"{folder}{slash}" or ".").expanduser())
        if (path.is_dir() or path.suffix in (".yaml", ".yml"))
        and (start.startswith(".") or not path.name.startswith("."))
    ]
    return _fitting(found, incomplete)


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, save for names that a terminal would obey."""
    try:
        return sorted(path for path in folder.iterdir() if first_control(path.name) is None)
    except OSError:
        return []
