"""Files of data sets: find, download, check and read them.

The files of all but `digits` are torchvision's, in its layout under the data folder, each with a known MD5.
No byte of a file is parsed, and no pickle of CIFAR's is opened, before that MD5 has been checked.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from orchestrator.data.datasets import OWN, Raw, digits_file, info, read_digits
from orchestrator.data.downloads import DOWNLOAD_ERRORS, download, problem_of, reason_of
from orchestrator.data.paths import chosen_data_dir as chosen_data_dir
from orchestrator.data.paths import data_folder as data_folder
from orchestrator.data.paths import default_data_dir as default_data_dir
from orchestrator.data.paths import from_data_dir
from orchestrator.data.sources.base import Source
from orchestrator.data.sources.registry import find_source, stamps_of
from orchestrator.errors import DataError
from pruning.user_code.plugins import warn_once

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.decoded_files import Facts

# torchvision's class -> the folder below the data folder with all files that are parsed, and the archive.
LAYOUT = {
    "MNIST": ("MNIST/raw", ""),
    "FashionMNIST": ("FashionMNIST/raw", ""),
    "CIFAR10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "CIFAR100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}
_whole: set[tuple[str, str]] = set()  # (text, stamps) of sources that were read without an error


@from_data_dir
def file_stamps(name: str, data_dir: Path | None = None) -> list[list[str | int]] | None:
    """Return [path, size, time of the last change in ns] of every file of a data set that is there.

    Nothing is read, and nothing imported. None for a data set of another package, or of one's own function,
    whose files only it knows.
    Of a source with many files there is one stamp for all. DataError where it has none.
    """
    if (parsed := find_source(name)) is not None:
        return stamps_of(parsed) if parsed.is_stamped else None
    if name not in OWN or OWN[name].read is not None:
        return None
    root, source = data_folder(data_dir), OWN[name].source
    if source is None:
        return _stamps([digits_file()], digits_file().parent)
    folder, archive = LAYOUT[source]
    files = sorted((root / folder).iterdir()) if (root / folder).is_dir() else []
    return _stamps([*files, *([root / archive] if archive else [])], root)


def _stamps(files: Sequence[Path], root: Path) -> list[list[str | int]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [[str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


@from_data_dir
def verify(name: str, data_dir: Path | None = None) -> list[str]:
    """Return what is wrong with the files, a line each; empty where they can be read. Writes nothing."""
    if find_source(name) is not None or info(name).read is not None:
        try:
            read_raw(name, data_dir)
        except DataError as error:
            return [str(error).removeprefix(f"{name}: ")]
        return []
    source, root = _source(name), data_folder(data_dir)
    if source is None:
        return []
    files, archive = _files(source, root), _archive(source, root)
    problems = [problem for file, md5 in files if (problem := problem_of(file, md5)) is not None]
    if archive is None or not problems:
        return problems
    # Batches that are missing or corrupt are unpacked again: only the archive matters.
    problem = problem_of(*archive)
    return [] if problem is None else [problem]


@from_data_dir
def check_files(name: str, data_dir: Path | None = None) -> None:
    """DataError, one line, unless the files can be read. A source is read again where its files changed."""
    if (parsed := find_source(name)) is not None:
        if (name, str(stamps_of(parsed))) not in _whole:
            _read_source(name, parsed)
        return
    if problems := verify(name, data_dir):
        if info(name).read is not None:
            raise DataError(f"{name}: {problems[0]}")
        omitted = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(
            f"{name}: {problems[0]}{omitted}; put it there or run `orchestrate data fetch {name}`, "
            "or use the data set 'digits', which needs no files"
        )


@from_data_dir
def fetch(name: str, data_dir: Path | None = None) -> Path:
    """Download what is missing or corrupt, check its MD5, return the data folder. DataError on failure."""
    if (parsed := find_source(name)) is not None:
        if not parsed.fetch():
            check_files(name)
        return data_folder(data_dir)
    source, root = _source(name), data_folder(data_dir)
    if source is None:
        return root
    archive = _archive(source, root)
    mirrors = source.mirrors if archive is None else [source.url.removesuffix(source.filename)]
    files = _files(source, root) if archive is None else [archive]
    broken = [(file, md5) for file, md5 in files if problem_of(file, md5)] if verify(name, root) else []
    for file, md5 in broken:
        try:
            download([mirror + file.name for mirror in mirrors], file, md5)
        except DOWNLOAD_ERRORS as error:
            raise DataError(
                f"{name}: could not fetch {file.name} ({reason_of(error)}); put it by hand as {file} "
                f"(md5 {md5}), or use the data set 'digits', which needs no files"
            ) from error
    _unpack(name, source, root)
    return root


@from_data_dir
def read_raw(name: str, data_dir: Path | None = None) -> Raw:
    """Read a data set's arrays. DataError, one line, where a file is missing or corrupt."""
    if (parsed := find_source(name)) is not None:
        return _read_source(name, parsed)
    source, root = _source(name), data_folder(data_dir)
    if (reader := info(name).read) is not None:
        return _read_plugin(name, reader, root)
    if source is None:
        return read_digits()
    check_files(name, root)
    _unpack(name, source, root)
    return _read_cifar(name, source, root) if hasattr(source, "train_list") else _read_mnist(source, root)


def mark_whole(name: str, stamps: list[list[str | int]]) -> None:
    """Note that a source with these stamps has been read without an error before."""
    _whole.add((name, str(stamps)))


def _read_source(name: str, source: Source) -> Raw:
    """Read a source. DataError where its files change meanwhile, or do not fit into memory."""
    before = stamps_of(source)
    _whole.discard((name, str(before)))  # what has no stamps may have changed
    try:
        raw = source.read()
    except MemoryError as error:
        raise DataError(f"{name} does not fit into memory; give fewer or smaller images") from error
    if stamps_of(source) != before:
        raise DataError(f"{name}: its files changed while they were read; leave them, and start again")
    for note in raw.notes:
        warn_once(f"{name}: {note}")
    mark_whole(name, before)
    return raw


def _read_plugin(name: str, reader: Callable[[Path], Raw], root: Path) -> Raw:
    """Read a data set of another package. DataError, one line, for whatever its reader raises."""
    try:
        return reader(root)
    except DataError:
        raise
    except Exception as error:  # whatever another package's code may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{name}: its own reader fails ({reason}); put its files into {root}") from error


def _source(name: str) -> Any:  # one of torchvision's untyped classes
    source = info(name).source
    if source is None:
        return None
    from models.torchvision_compat import datasets

    return getattr(datasets, source)


def _files(source: Any, root: Path) -> list[tuple[Path, str]]:
    """Return (file, MD5) of all that is parsed: MNIST's .gz files (unpacked: none), CIFAR's pickles."""
    if hasattr(source, "train_list"):
        files = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
        return [(root / source.base_folder / file, md5) for file, md5 in files]
    return [(root / source.__name__ / "raw" / file, md5) for file, md5 in source.resources]


def _archive(source: Any, root: Path) -> tuple[Path, str] | None:
    return (root / source.filename, source.tgz_md5) if hasattr(source, "tgz_md5") else None


def _unpack(name: str, source: Any, root: Path) -> None:
    """Unpack CIFAR's missing or corrupt pickles from the verified archive: checked first, then renamed."""
    archive = _archive(source, root)
    if archive is None:
        return
    broken = [(file, md5) for file, md5 in _files(source, root) if problem_of(file, md5)]
    if not broken:
        return
    folder = root / source.base_folder
    try:
        folder.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary, tarfile.open(archive[0]) as tar:
            for file, md5 in broken:
                target = Path(temporary) / file.name
                _unpack_member(tar, f"{source.base_folder}/{file.name}", target, md5)
                os.replace(target, file)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{name}: could not unpack {archive[0]} into {folder}: {error}") from error


def _unpack_member(tar: tarfile.TarFile, member: str, target: Path, md5: str) -> None:
    stream = tar.extractfile(member)
    if stream is None:
        raise KeyError(f"{member} is no file")
    with stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out)
    if problem := problem_of(target, md5):
        raise DataError(problem)


def _read_mnist(source: Any, root: Path) -> Raw:
    """Read MNIST's files from a temporary folder: what lies unpacked beside the .gz has no MD5 to check."""
    import numpy as np

    from models.torchvision_compat import datasets

    arrays: dict[str, NDArray[Any]] = {}  # uint8 images and int64 labels
    with TemporaryDirectory() as folder:
        for archive, _ in _files(source, root):
            datasets.utils.extract_archive(str(archive), folder)
            file = Path(folder) / archive.stem
            reader = "read_image_file" if "images" in file.name else "read_label_file"
            arrays[file.name] = getattr(datasets.mnist, reader)(str(file)).numpy()
    images = [arrays[f"{split}-images-idx3-ubyte"] for split in ("train", "t10k")]
    labels = [arrays[f"{split}-labels-idx1-ubyte"] for split in ("train", "t10k")]
    return Raw(np.concatenate(images)[:, None], np.concatenate(labels), len(labels[1]), tuple(source.classes))


def _read_cifar(name: str, source: Any, root: Path) -> Raw:
    """Read CIFAR's pickles, or the decoded file that was made of them."""
    import numpy as np

    from orchestrator.data.decoded_cache import read_shared

    known = info(name)
    decoded = read_shared(
        [file for file, _ in _files(source, root)],
        set_name={"name": name, "path": str(root)},
        shape=(sum(known.split_sizes), *known.input_shape),
        fill=partial(_fill_cifar, source, root),
        data_folder=root,
        name=name,
    )
    facts = decoded.facts
    labels = np.array(facts["labels"], dtype=np.int64)
    return Raw(decoded.pixels, labels, facts["own_test"], tuple(facts["classes"]), file=decoded.file)


def _fill_cifar(source: Any, root: Path, pixels: NDArray[np.uint8]) -> Facts:
    """Copy the images; torchvision checks the MD5 of every pickle again before it opens the first."""
    start, parts = 0, [source(root, train=is_train) for is_train in (True, False)]
    for part in parts:
        pixels[start : start + len(part.data)] = part.data.transpose(0, 3, 1, 2)
        start += len(part.data)
    labels = [label for part in parts for label in part.targets]
    return {"count": start, "labels": labels, "own_test": len(parts[1].targets), "classes": parts[0].classes}
