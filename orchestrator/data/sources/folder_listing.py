"""The files of a folder of images: one folder a class, with or without train/, val/ and test/ above.

Hidden files and folders are passed over; files that are no images by their names are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLIT_FOLDERS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLIT_FOLDERS |= {"test": "test"}
SPLIT_WORDS = {*SPLIT_FOLDERS, "training", "testing"}  # as other programs name the folders of splits


@dataclass(frozen=True)
class ImageFile:
    """An image by its path, its path below the folder, its class and its split (`train` where none is)."""

    path: Path
    name: str
    label: str
    split: str


@dataclass(frozen=True)
class Listing:
    """The images, sorted by split, class and name; the names of other files."""

    images: tuple[ImageFile, ...]
    others: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with a folder of their own, beside `train`."""
        return tuple(sorted({image.split for image in self.images}))


def list_images(root: Path) -> Listing:
    """Return what lies in a folder. DataError for links out of it, and for anything at the wrong depth."""
    top = _folders(root, root)
    if not top:
        raise DataError(f"{root} has no folders; put the images of each class into a folder of its own")
    images: list[ImageFile] = []
    others: list[str] = []
    if "train" in top and set(top) <= SPLIT_FOLDERS.keys():
        names = [SPLIT_FOLDERS[name] for name in top]
        if len(set(names)) < len(names):
            raise DataError(f"{root} has {', '.join(sorted(top))}; two of them are one split, leave one")
        classes = [
            (label, SPLIT_FOLDERS[split], folder)
            for split, below in top.items()
            for label, folder in _folders(below, root).items()
        ]
    else:
        classes = [(label, "train", folder) for label, folder in top.items()]
    for label, split, folder in classes:
        here, rest = _class_files(folder, root)
        if not here:
            raise DataError(f"{folder} has no image; fill it, or remove the folder")
        images += [ImageFile(path, str(path.relative_to(root)), label, split) for path in here]
        others += [str(path.relative_to(root)) for path in rest]
    return Listing(tuple(images), tuple(others))


def _folders(folder: Path, root: Path) -> dict[str, Path]:
    """Return name -> folder, sorted; images beside the folders are refused."""
    folders: dict[str, Path] = {}
    for entry in _entries(folder):
        _check_inside(entry, root)
        if entry.is_dir():
            folders[entry.name] = Path(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            raise DataError(f"{entry.path} lies beside the folders of the classes; put it into one")
    return folders


def _class_files(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    images: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder):
        _check_inside(entry, root)
        if entry.is_dir() and folder.parent == root and folder.name.lower() in SPLIT_WORDS:
            raise DataError(
                f"{folder} has folders as one of a split, but {root} has no folder train; name them train, "
                "val and test"
            )
        if entry.is_dir():
            raise DataError(f"{entry.path} is a folder within a class; put its images into that of the class")
        (images if entry.name.lower().endswith(SUFFIXES) else others).append(Path(entry.path))
    return images, others


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is not hidden, sorted by the bytes of its name."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    yield from (entry for entry in entries if not entry.name.startswith((".", "__MACOSX")))


def _check_inside(entry: os.DirEntry[str], root: Path) -> None:
    if not entry.is_symlink():
        return
    try:
        target = Path(entry.path).resolve(strict=True)
        target.stat()
    except FileNotFoundError as error:
        raise DataError(f"{entry.path} is a link to nothing; remove it") from error
    except (OSError, RuntimeError) as error:  # a link to itself; a folder that may not be entered
        reason = getattr(error, "strerror", None) or "it leads to itself"
        raise DataError(f"{entry.path} is a link that cannot be followed ({reason}); remove it") from error
    if not target.is_relative_to(root.resolve()):
        raise DataError(f"{entry.path} is a link out of the folder, to {target}; copy the images themselves")
