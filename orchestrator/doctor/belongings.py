"""The store and the data sets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.doctor.finding import Finding, State, gigabytes
from orchestrator.store.address import exists, shown, store_folder

if TYPE_CHECKING:
    from orchestrator.tracking.health import Health

LITTLE_ROOM, NO_ROOM = 2_000_000_000, 100_000_000  # bytes


def store(uri: str) -> Iterator[Finding]:
    """Where runs are kept, and whether it can be used; secrets of its address are not told."""
    folder = store_folder(uri)
    if folder is not None:
        yield _disk(folder)
    found = _health(uri)
    if found is None:
        yield Finding("store", "ok", f"{shown(uri)}: there is none yet, the first sweep makes it")
        return
    if found.problem:
        yield Finding("store", "broken", f"{shown(uri)}: {found.problem}", found.do)
    else:
        runs = "it answers" if found.runs is None else f"{found.runs} runs, schema up to date"
        yield Finding("store", "ok", f"{shown(uri)}: {runs}")


def _health(uri: str) -> Health | None:
    """How the store is; None where there is none yet, or one that was never made to its end."""
    if not exists(uri):
        return None
    from orchestrator.tracking.health import health, is_begun

    return health(uri) if is_begun(uri) else None


def _disk(folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        told = f"{place} cannot be written: {error.strerror}"
        return Finding("disk", "broken", told, "set MLFLOW_TRACKING_URI, or run from another folder")
    state: State = "broken" if free < NO_ROOM else "lacking" if free < LITTLE_ROOM else "ok"
    return Finding("disk", state, f"{gigabytes(free)} free at {place}", "" if state == "ok" else "make room")


def data() -> Iterator[Finding]:
    """Every data set: there and whole, or what is missing."""
    from orchestrator.data import path, verify
    from orchestrator.errors import DataError
    from orchestrator.images.datasets import OWN
    from orchestrator.images.digits import digits_file

    try:
        digits_file()
        yield Finding("digits", "ok", "inside scikit-learn")
    except DataError as error:
        yield Finding("digits", "broken", *str(error).removeprefix("digits: ").split("; "))
    place = path()
    for name in (name for name, info in OWN.items() if info.source is not None):
        problems = verify(name, place) if place.is_dir() else [f"there is no folder {place}"]
        if problems:
            yield Finding(name, "lacking", problems[0], f"`orchestrate data fetch {name}`, if you want it")
        else:
            yield Finding(name, "ok", f"whole, in {place}")


def plugins() -> Iterator[Finding]:
    """Every part of another package: whether it can be imported, and has a name of its own."""
    from extensions import package_of, problems
    from orchestrator.images.datasets import DATASETS
    from orchestrator.language.names import REGISTRIES, own_names

    # Not `models.BUILDERS.group`: `models` may be a folder of the same name, which `python` tells.
    kinds = {"models": ("model", "models.builder"), "datasets": ("data set", DATASETS.group)}
    kinds |= {plural: (kind, f"pruning.{kind}") for plural, (kind, _) in REGISTRIES.items()}
    for plural, (kind, group) in kinds.items():
        for entry, problem in problems([(kind, group)]):
            name = f"{kind} {entry.name}"
            if problem:
                yield Finding(name, "lacking", *problem.rsplit("; ", 1))
            elif entry.name in own_names(plural):
                told = f"of {package_of(entry)} is left out: the name is taken"
                yield Finding(name, "lacking", told, "choose another name in its entry point")
            else:
                yield Finding(name, "ok", f"of {package_of(entry)}")
