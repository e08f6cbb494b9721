"""The files of a published data set: what is wrong with them, and how they are fetched and unpacked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.data.downloads import DOWNLOAD_ERRORS, download, problem_of, reason_of
from orchestrator.data.sources.published_datasets import PublishedFile
from orchestrator.errors import DataError

_whole: set[tuple[str, int, int, str]] = set()  # path, bytes, time of change, MD5 of files that were checked


def target_of(root: Path, file: PublishedFile) -> Path:
    """Return the file or folder that is read: the file itself, or what it unpacks to."""
    path = root / file.path
    return path.parent / file.unpacks if file.unpacks else path


def check_published(name: str, root: Path, files: Iterable[PublishedFile]) -> None:
    """Raise DataError with the first file that is missing or corrupt, and what to do."""
    for file in files:
        if (problem := _problem(root, file)) is None:
            continue
        command = f"`orchestrate data fetch {name}`"
        if not file.unpacks:
            where = f"put it there or run {command}" if file.urls else f"run {command}"
        elif (root / file.path).is_file():
            where = f"run {command}, which checks and unpacks it"
        else:
            where = f"run {command}, which unpacks it, and downloads it unless you put it there"
        raise DataError(f"{name}: {problem}; {where}")


def _problem(root: Path, file: PublishedFile) -> str | None:
    """Return what is missing or not as published. What was unpacked to a folder has no MD5 to check."""
    path, target = root / file.path, target_of(root, file)
    if not file.unpacks:
        return _checked_problem(path, file.md5)
    if target.exists():
        return None
    return f"{path} is not unpacked" if path.is_file() else f"{path} is missing (expected md5 {file.md5})"


def _checked_problem(file: Path, md5: str) -> str | None:
    """Return `problem_of`, from memory for a file that has not changed: a plan asks several times."""
    try:
        status = file.stat()
    except OSError:
        return problem_of(file, md5)
    entry = (str(file), status.st_size, status.st_mtime_ns, md5)
    problem = None if entry in _whole else problem_of(file, md5)
    if problem is None:
        _whole.add(entry)
    return problem


def fetch_published(name: str, root: Path, files: Iterable[PublishedFile]) -> None:
    """Download and unpack what is missing or corrupt. No archive is opened before its MD5 is checked."""
    files = tuple(files)
    for file in (file for file in files if file.urls):
        path, target = root / file.path, target_of(root, file)
        from_it = [other for other in files if not other.urls and target in (root / other.path).parents]
        if not any(_problem(root, part) for part in (file, *from_it)):
            continue
        if problem_of(path, file.md5):
            _download(name, path, file)
        if file.unpacks:
            _unpack(name, path, target, file)


def missing_files(root: Path, files: Iterable[PublishedFile]) -> Iterator[Path]:
    """Yield what is not there, without looking into files."""
    yield from (target for file in files if not (target := target_of(root, file)).exists())


def _download(name: str, path: Path, file: PublishedFile) -> None:
    try:
        download(file.urls, path, file.md5)
    except DOWNLOAD_ERRORS as error:
        again = f", and run `orchestrate data fetch {name}` again to unpack it" if file.unpacks else ""
        raise DataError(
            f"{name}: could not fetch {path.name} ({reason_of(error)}); put it by hand as {path} "
            f"(md5 {file.md5}){again}"
        ) from error


def _unpack(name: str, archive: Path, target: Path, file: PublishedFile) -> None:
    """Unpack an archive into a temporary folder beside it, then rename: a part of it is never read."""
    from models.torchvision_compat import datasets

    try:
        with TemporaryDirectory(dir=archive.parent, prefix=".unpack-") as folder:
            datasets.utils.extract_archive(str(archive), folder)
            if file.inner:
                datasets.utils.extract_archive(str(Path(folder) / file.inner), folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(Path(folder) / file.unpacks, target)
    except Exception as error:  # tarfile, zipfile and their decompressors: each has its own
        raise DataError(f"{name}: could not unpack {archive} to {target}: {reason_of(error)}") from error
