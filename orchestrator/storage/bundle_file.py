"""A sweep in a zip: a few files of fixed names, each with its SHA-256, read without trust in any of them.

Nothing is unpacked to a disk, no name of the file becomes a path, and nothing of it is a pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import StoreError
from orchestrator.storage.manifest import make_entry, parse_json_object
from orchestrator.system.files import open_regular, size_of

FORMAT = 1
ABOUT = "bundle.json"
SPACE, PLAN, RUNS = "space.yaml", "plan.json", "runs.json"
ENVIRONMENT, CODE, MASKS = "environment.json", "code.json", "masks.safetensors"
SOURCE = "source/"
MB = 1_000_000
LIMITS = {  # member -> the most bytes that are read of it
    ABOUT: MB,
    SPACE: MB,
    ENVIRONMENT: MB,
    CODE: 16 * MB,
    PLAN: 64 * MB,
    RUNS: 256 * MB,  # 4.4 kB a run
    MASKS: 128 * MB,
    # The network of --from.
    SOURCE + "arch.json": MB,
    SOURCE + "manifest.json": MB,
    SOURCE + "weights.safetensors": 1024 * MB,
    SOURCE + "masks.safetensors": 128 * MB,
}
REQUIRED = (ABOUT, SPACE, PLAN, RUNS, ENVIRONMENT)
LARGEST_FILE = sum(LIMITS.values())
TIME = (1980, 1, 1, 0, 0, 0)  # the earliest of a zip: equal sweeps give equal files
# The end of a zip: its number of entries, and the bytes of its directory. zipfile would make objects of a
# directory of any length, so that both are compared with what a bundle has before zipfile sees the file.
END, END_SIGN = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
LARGEST_DIRECTORY = 4096
LARGEST_COMMENT = 65_535
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class BundleFile:
    """The content of a bundle: `about` is bundle.json, `members` the other files."""

    where: str
    about: Mapping[str, Any]  # JSON
    members: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """Return a member as text; "" where it is not there. StoreError for no UTF-8."""
        try:
            return self.members.get(name, b"").decode()
        except UnicodeDecodeError as error:
            raise StoreError(f"{self.where}: {name} is no UTF-8 text") from error

    def source_files(self) -> dict[str, bytes]:
        """Return the files of the network that the sweep starts from, by name; none for one from scratch."""
        return {n.removeprefix(SOURCE): data for n, data in self.members.items() if n.startswith(SOURCE)}

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a member. StoreError for anything else."""
        return parse_json_object(self.members[name], f"{self.where}: {name}")


def dump_bundle(about: Mapping[str, object], members: Mapping[str, bytes]) -> bytes:
    """Return the zip of a bundle, the same for equal content. ValueError for a name that it has not."""
    if unknown := members.keys() - LIMITS.keys() | ({ABOUT} & members.keys()):
        raise ValueError(f"a bundle has no {sorted(unknown)[0]}")
    entries = {name: vars(make_entry(data)) for name, data in members.items()}
    head = json.dumps({"format": FORMAT, **about, "members": entries}, indent=1, sort_keys=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {ABOUT: head.encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, TIME), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_bundle(path: Path) -> BundleFile:
    """Read a bundle, and check every file of it against its SHA-256.

    Raises StoreError, in one line, for a file that is no bundle, that is damaged, or that is too large.
    """
    try:
        with open_regular(path, follow_links=True) as file:
            contents = _read_members(file, str(path))
    except StoreError:
        raise
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or "it ends too early"
        raise StoreError(f"{path} cannot be read as a bundle: {reason}") from error
    about = parse_json_object(contents.pop(ABOUT), f"{path}: {ABOUT}")
    if about.get("format") != FORMAT:
        raise StoreError(
            f"{path} is a bundle of the format {about.get('format')!r:.40}, and this version reads {FORMAT}"
        )
    _check_digests(contents, about.get("members"), str(path))
    return BundleFile(str(path), about, contents)


def _read_members(file: BinaryIO, where: str) -> dict[str, bytes]:
    if size_of(file) > LARGEST_FILE:
        raise StoreError(f"{where} has more than {LARGEST_FILE:,} bytes, and is refused")
    _check_directory(file, where)
    with zipfile.ZipFile(file) as archive:
        names = [info.filename for info in archive.infolist()]
        if len(set(names)) != len(names) or not set(names) <= LIMITS.keys():
            strange = next((name for name in names if name not in LIMITS), names[0])
            raise StoreError(f"{where} holds {strange[:80]!r} beside, or twice, what a bundle has; refused")
        if missing := [name for name in REQUIRED if name not in names]:
            raise StoreError(f"{where} is no bundle of a sweep: it has no {missing[0]}")
        return {info.filename: _read_member(archive, info, where) for info in archive.infolist()}


def _check_directory(file: BinaryIO, where: str) -> None:
    """Raise StoreError for a file without a zip's end, and for more entries than a bundle has."""
    size = size_of(file)
    tail_size = min(size, LARGEST_COMMENT + END.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    start = tail.rfind(END_SIGN)
    if start < 0 or len(tail) - start < END.size:
        raise StoreError(f"{where} is no zip, or is cut off; `orchestrate bundle SWEEP` writes bundles")
    _, _, _, _, entries, directory, _, comment = END.unpack_from(tail, start)
    if entries > len(LIMITS) or directory > LARGEST_DIRECTORY or comment:
        raise StoreError(f"{where} is no bundle of a sweep: {entries} files in it, or a comment")
    file.seek(0)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    """Return the bytes of a member: what it claims to be, and what it is, are within its limit."""
    limit = LIMITS[info.filename]
    if info.file_size <= limit:
        with archive.open(info) as member:
            data = member.read(limit + 1)
        if len(data) <= limit:
            return data
    raise StoreError(f"{where}: {info.filename} has more than {limit:,} bytes, and is refused")


def _check_digests(contents: Mapping[str, bytes], entries: object, where: str) -> None:
    if not isinstance(entries, dict) or entries.keys() != contents.keys():
        raise StoreError(f"{where}: {ABOUT} does not name the files that are in it")
    for name, data in contents.items():
        entry = entries[name]
        if not isinstance(entry, dict) or entry.get("sha256") != hashlib.sha256(data).hexdigest():
            raise StoreError(f"{where}: {name} is not as it was written: its SHA-256 differs")
