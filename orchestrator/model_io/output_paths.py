"""Where exported files go: made aside, on the same disk, and moved once they are whole."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import ExportError, UsageError
from orchestrator.model_io.model_lookup import ModelSource
from orchestrator.system.files import FULL

UNUSUAL = re.compile(r"[^\w.=-]+")
LONGEST_NAME = 48  # characters of a run's name, which may be of any length


def stem_of(model: ModelSource) -> str:
    """Return the name of a network's files without their ending: that of its run, and the start of its id."""
    name = UNUSUAL.sub("-", model.name).strip("-.")
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME + 1].rpartition("-")[0] or name[:LONGEST_NAME]
    return f"{name}-{model.run_id[:8]}" if model.run_id else name


def metadata_path(path: Path) -> Path:
    """Return FILE.json beside FILE."""
    return path.with_name(f"{path.name}.json")


def parts_of(path: Path, companions: Sequence[str]) -> list[Path]:
    """Return the files that belong to an exported FILE, itself last: where that is there, all are."""
    return [*(path.with_suffix(suffix) for suffix in companions), metadata_path(path), path]


def check_free(paths: Sequence[Path]) -> None:
    """Raise UsageError where one of the files exists, or where a file stands in the place of its folder."""
    for path in reversed(paths):  # lexists: a broken link counts, too
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already; remove it, or name another file with --out")
    for folder in {folder for path in paths for folder in path.parents}:
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is no folder; name another place with --out")


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A temporary folder for what `target` will be. ExportError where it or the target cannot be written."""
    place = next(folder for folder in target.parents if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=place) as folder:
            yield Path(folder)
    except OSError as error:
        reason = "no room is left" if error.errno in FULL else error.strerror or str(error)
        raise ExportError(f"{target} cannot be written: {reason}; --out names another place") from error


def move_folder(source: Path, target: Path, last: str) -> None:
    """Move a whole folder; where the target is there, and empty, its files, with `last` as the last."""
    if not target.exists():
        move([source.rename(source.with_name(target.name))], target.parent)
        return
    move(sorted(source.iterdir(), key=lambda path: path.name == last), target)


def move(paths: Sequence[Path], folder: Path) -> None:
    """Move files into a folder, which is made; of a failure nothing is left behind."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    moved: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.replace(folder / path.name)
            moved.append(folder / path.name)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):  # others may have put something there
                parent.rmdir()
        raise
