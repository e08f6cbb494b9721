"""manifest.json: names, sizes and SHA-256 of the files of a saved model."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import StoreError
from orchestrator.system.files import read_regular

ARCH, WEIGHTS, MASKS, MANIFEST = "arch.json", "weights.safetensors", "masks.safetensors", "manifest.json"
NAMES = (ARCH, WEIGHTS, MASKS)
LARGEST_MANIFEST = 10_000  # bytes; three names with their sizes and hashes take 400


class FileSource(Protocol):
    """Files in one folder, here or in a store elsewhere; nothing in them is trusted."""

    @property
    def where(self) -> str:
        """What an error calls the folder."""

    def sizes(self) -> Mapping[str, int]:
        """Name -> bytes of all that is there; StoreError for anything but plain files."""

    def read(self, name: str, size: int) -> bytes:
        """A file of this size; one that is longer comes back longer, by a byte. StoreError if it is gone."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this disk."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def sizes(self) -> Mapping[str, int]:
        if self.path.is_symlink():
            raise StoreError(f"{self.path} is a link; a saved network is a plain folder, and this is refused")
        try:
            found = {path.name: path.lstat() for path in sorted(self.path.iterdir())}
        except OSError as error:
            raise _incomplete(error) from error
        for name, info in found.items():
            if not stat.S_ISREG(info.st_mode):
                raise StoreError(
                    f"{self.path / name} is no plain file, and is refused: links are not followed"
                )
        return {name: info.st_size for name, info in found.items()}

    def read(self, name: str, size: int) -> bytes:
        try:
            # What was a plain file when it was listed may be a link, or a FIFO, by now.
            return read_regular(self.path / name, at_most=size, follow_links=False)
        except OSError as error:
            raise _incomplete(error) from error


@dataclass(frozen=True)
class ManifestEntry:
    """What a manifest says of one file."""

    bytes: int
    sha256: str


def make_entry(data: bytes) -> ManifestEntry:
    return ManifestEntry(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The files of a saved network as they were written, none of them read yet."""

    files: FileSource
    entries: Mapping[str, ManifestEntry]
    text: bytes
    sha256: str

    def read(self, name: str, *, at_most: int) -> bytes:
        """A file, compared with its size and hash; StoreError for a difference, or one that is too large."""
        entry, path = self.entries[name], f"{self.files.where}/{name}"
        if entry.bytes > at_most:
            raise StoreError(f"{path} has {entry.bytes} bytes; {at_most} is the most that it may have here")
        data = self.files.read(name, entry.bytes)
        if make_entry(data) != entry:
            raise StoreError(f"{path} is not as it was written: its size or SHA-256 differs")
        return data


def read_manifest(files: FileSource, *, manifest_sha256: str | None) -> Manifest:
    """The manifest, after a look at the names and sizes of all that lies beside it.

    Without `manifest_sha256`, which is kept apart from the files, they can only be compared with each
    other. StoreError, in one line, for a name that is no saved network's, or a file too many or too few.
    """
    sizes = files.sizes()
    path = f"{files.where}/{MANIFEST}"
    text = _manifest_text(files, sizes)
    sha256 = hashlib.sha256(text).hexdigest()
    if manifest_sha256 is not None and sha256 != manifest_sha256:
        raise StoreError(f"{path} is not the manifest that was written with this network")
    entries = {name: _parse_entry(path, name, entry) for name, entry in parse_json_object(text, path).items()}
    if ARCH not in entries:
        raise StoreError(f"{path} does not name {ARCH}; the saved network is not whole")
    if extra := sorted(sizes.keys() - entries.keys() - {MANIFEST}):
        raise StoreError(f"{files.where} holds {extra[0]!r}, which {MANIFEST} does not name; this is refused")
    for name, entry in entries.items():
        if name not in sizes:
            raise StoreError(f"{files.where}/{name} is not there; the saved network is not whole")
        if sizes[name] != entry.bytes:
            raise StoreError(f"{files.where}/{name} is not as it was written: its size or SHA-256 differs")
    return Manifest(files, entries, text, sha256)


def _manifest_text(files: FileSource, sizes: Mapping[str, int]) -> bytes:
    if MANIFEST not in sizes:
        raise StoreError(f"{files.where} has no {MANIFEST}; the saved network is not whole")
    if sizes[MANIFEST] > LARGEST_MANIFEST:
        raise StoreError(f"{files.where}/{MANIFEST} is larger than {LARGEST_MANIFEST} bytes, and is refused")
    return files.read(MANIFEST, sizes[MANIFEST])


def _parse_entry(path: str, name: str, given: object) -> ManifestEntry:
    if name not in NAMES:
        raise StoreError(f"{path} names {name!r}; a saved network has {', '.join(NAMES)} and nothing else")
    if not isinstance(given, dict) or given.keys() != {"bytes", "sha256"}:
        raise StoreError(f"{path}: {name} has something else than bytes and sha256")
    size, sha256 = given["bytes"], given["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str):
        raise StoreError(f"{path}: {name} has no whole number of bytes, or no SHA-256")
    return ManifestEntry(size, sha256)


def parse_json_object(text: bytes, path: str) -> dict[str, Any]:  # any JSON value
    """A JSON object in which no name stands twice; StoreError for anything else."""
    try:
        found = json.loads(text, object_pairs_hook=_reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no JSON that is written here: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds a {type(found).__name__} where an object is written")
    return found


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # any JSON value
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _incomplete(error: OSError) -> StoreError:
    return StoreError(f"{error.filename}: {error.strerror}; the saved network is not whole")


def sizes_match(folder: Path | None, manifest_sha256: str) -> bool:
    """Whether the manifest is the one written and every file has its size; True for a folder elsewhere.

    A quick look, for thousands of folders; `load` compares every byte.
    """
    if folder is None:
        return True
    try:
        text = read_regular(folder / MANIFEST, at_most=LARGEST_MANIFEST)
        sizes = {name: entry["bytes"] for name, entry in json.loads(text).items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False
    return whole and hashlib.sha256(text).hexdigest() == manifest_sha256
