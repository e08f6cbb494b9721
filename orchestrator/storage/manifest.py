"""Read and check manifest.json: the names, sizes and SHA-256 of the files of a saved model."""

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
CODE = "code.json"  # the user's own files that built and pruned the network
NAMES = (ARCH, WEIGHTS, MASKS, CODE)
LARGEST_MANIFEST = 10_000  # bytes; three names with their sizes and hashes take 400


class FileSource(Protocol):
    """The files of one folder, on this disk or in a remote store. Their content is not trusted."""

    @property
    def where(self) -> str:
        """The folder's name in errors."""

    def sizes(self) -> Mapping[str, int]:
        """Return name -> bytes of every file; StoreError for anything but plain files."""

    def read(self, name: str, size: int) -> bytes:
        """Read at most `size` + 1 bytes, so that a longer file shows. StoreError if the file is gone."""


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
            infos = {path.name: path.lstat() for path in sorted(self.path.iterdir())}
        except OSError as error:
            raise _incomplete(error) from error
        for name, info in infos.items():
            if not stat.S_ISREG(info.st_mode):
                raise StoreError(
                    f"{self.path / name} is no plain file, and is refused: links are not followed"
                )
        return {name: info.st_size for name, info in infos.items()}

    def read(self, name: str, size: int) -> bytes:
        try:
            # A plain file of the listing may be a link or a FIFO by now.
            return read_regular(self.path / name, at_most=size, follow_links=False)
        except OSError as error:
            raise _incomplete(error) from error


@dataclass(frozen=True)
class FilesInMemory:
    """Files that were read already, by name; `where` says of what."""

    where: str
    contents: Mapping[str, bytes]

    def sizes(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.contents.items()}

    def read(self, name: str, size: int) -> bytes:
        if name not in self.contents:
            raise StoreError(f"{self.where} has no {name}")
        return self.contents[name][: size + 1]


@dataclass(frozen=True)
class ManifestEntry:
    """The size and SHA-256 of one file."""

    bytes: int
    sha256: str


def make_entry(data: bytes) -> ManifestEntry:
    """Return the manifest's entry for a file of this content."""
    return ManifestEntry(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The manifest of a saved model, whose files are checked as they are read."""

    files: FileSource
    entries: Mapping[str, ManifestEntry]
    text: bytes
    sha256: str

    def read(self, name: str, *, at_most: int) -> bytes:
        """Read a file of at most `at_most` bytes; StoreError if its size or hash is not the entry's."""
        entry, path = self.entries[name], f"{self.files.where}/{name}"
        if entry.bytes > at_most:
            raise StoreError(f"{path} has {entry.bytes} bytes; at most {at_most} are allowed")
        data = self.files.read(name, entry.bytes)
        if make_entry(data) != entry:
            raise StoreError(f"{path} is not as it was written: its size or SHA-256 differs")
        return data


def read_manifest(files: FileSource, *, manifest_sha256: str | None) -> Manifest:
    """Read the manifest, and check the names and sizes of the files beside it.

    `manifest_sha256` is stored apart from the files; without it, they can only be compared with each other.
    StoreError, in one line, for unknown names, and for missing or additional files.
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
        raise StoreError(
            f"{files.where} holds {extra[0][:80]!r}, which {MANIFEST} does not name; this is refused"
        )
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


def _parse_entry(path: str, name: str, value: object) -> ManifestEntry:
    if name not in NAMES:
        raise StoreError(
            f"{path} names {name[:80]!r}; a saved network has {', '.join(NAMES)} and nothing else"
        )
    if not isinstance(value, dict) or value.keys() != {"bytes", "sha256"}:
        raise StoreError(f"{path}: {name} has something else than bytes and sha256")
    size, sha256 = value["bytes"], value["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str):
        raise StoreError(f"{path}: {name} has no whole number of bytes, or no SHA-256")
    return ManifestEntry(size, sha256)


def parse_json_object(text: bytes, path: str) -> dict[str, Any]:  # any JSON value
    """Parse a JSON object; StoreError for anything else, and for names that occur twice."""
    try:
        value = json.loads(text, object_pairs_hook=_reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a {type(value).__name__} instead of an object")
    return value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # any JSON value
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _incomplete(error: OSError) -> StoreError:
    return StoreError(f"{error.filename}: {error.strerror}; the saved network is not whole")


def sizes_match(folder: Path | None, manifest_sha256: str) -> bool:
    """Whether the manifest's hash and every file's size are right; True without a local folder.

    A quick check of thousands of folders; `load_model` checks every byte.
    """
    if folder is None:
        return True
    try:
        text = read_regular(folder / MANIFEST, at_most=LARGEST_MANIFEST)
        sizes = {name: entry["bytes"] for name, entry in json.loads(text).items()}
        is_whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False
    return is_whole and hashlib.sha256(text).hexdigest() == manifest_sha256
