"""Shell completion, without loading any library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.formatting import first_control

Offers = list[tuple[str, str]]
ABOUT_LENGTH = 48  # typer wraps at the terminal's width, and fish takes the next line for another word


def kinds(incomplete: str) -> Offers:
    """Complete what `list` takes."""
    from orchestrator.space.names import KINDS

    return _matching(((kind, "") for kind in KINDS), incomplete)


def known(incomplete: str) -> Offers:
    """Complete any name that `show` describes."""
    from orchestrator.space.names import KINDS, names

    all_names = [(name, about) for kind in KINDS for name, about in names(kind).items()]
    return [*_library_models(incomplete), *_matching(dict(reversed(all_names)).items(), incomplete)]


def spaces(incomplete: str) -> Offers:
    """Complete named spaces, then space files and the folders on the way to one."""
    from orchestrator.space.names import names

    return [*_matching(names("spaces").items(), incomplete), *_files(incomplete)]


def datasets(incomplete: str) -> Offers:
    """Complete the names of data sets."""
    from orchestrator.space.names import names

    return _matching(names("datasets").items(), incomplete)


def stops(incomplete: str) -> Offers:
    """Complete the names of pruners, and none."""
    from orchestrator.space.names import names

    none = {"none": "nothing is stopped, whatever the space says"}
    return _matching({**names("stops"), **none}.items(), incomplete)


def stacks(incomplete: str) -> Offers:
    """Offer what `--stack` takes beside a number."""
    return _matching([("auto", "up to 16 trainings as one"), ("off", "each by itself")], incomplete)


def sets(incomplete: str) -> Offers:
    """Complete `KEY=`, and after it the names that the axis takes; bash completes only the keys.

    Options of methods, `METHOD.OPTION=`, are offered once the point is typed: they are many. bash ends a
    word at `=`.
    """
    from orchestrator.space.names import axis_values, hyperparameter_axes, settable_keys

    key, equals, values_text = incomplete.partition("=")
    if not equals:
        keys = [*settable_keys(), *(hyperparameter_axes() if "." in key else ())]
        return _matching(((f"{name}=", "") for name in keys), incomplete)
    before, comma, last = values_text.rpartition(",")
    offers = (_library_models(last) if key == "model" else []) or _matching(axis_values(key).items(), last)
    return [(f"{key}={before}{comma}{name}", about) for name, about in offers]


def sweeps(incomplete: str) -> Offers:
    """Complete spaces that have been run: each has a folder of artifacts in a store on this disk."""
    from orchestrator.errors import StoreError
    from orchestrator.storage.uri import default_uri, store_folder

    try:
        folder = store_folder(default_uri(Path.cwd()))
    except StoreError:
        return []
    paths = [] if folder is None else _list(folder / "artifacts")
    return _matching(((path.name, "") for path in paths if path.is_dir()), incomplete)


def _library_models(incomplete: str) -> Offers:
    """Complete `torchvision.`: the models of a library are offered once its name is typed."""
    from orchestrator.space.names import library_names

    library, point, _ = incomplete.partition(".")
    return _matching(((name, "") for name in library_names(library)), incomplete) if point else []


def _matching(offers: Iterable[tuple[str, str]], incomplete: str) -> Offers:
    return [(name, _short(about)) for name, about in offers if name.startswith(incomplete)]


def _short(about: str) -> str:
    return about if len(about) <= ABOUT_LENGTH else f"{about[: ABOUT_LENGTH - 1].rstrip()}…"


def _files(incomplete: str) -> Offers:
    folder, slash, start = incomplete.rpartition("/")
    files = [
        (f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}", "")
        for path in _list(Path(f"{folder}{slash}" or ".").expanduser())
        if (path.is_dir() or path.suffix in (".yaml", ".yml"))
        and (start.startswith(".") or not path.name.startswith("."))
    ]
    return _matching(files, incomplete)


def _list(folder: Path) -> list[Path]:
    """Return the files of a folder, save those with control characters in their names."""
    try:
        return sorted(path for path in folder.iterdir() if first_control(path.name) is None)
    except OSError:
        return []
