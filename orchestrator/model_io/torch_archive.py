"""Locate the pickle and the storages in a file of torch.save: a zip, or the plain format before torch 1.6.

Neither torch nor zipfile reads them. What a file claims is compared with its size before anything is read, so
that no file takes more memory than it has bytes: zipfile would make objects of a directory of any length.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from orchestrator.model_io.pickle_reader import read_pickle
from orchestrator.system.files import size_of

LARGEST_PICKLE = 10_000_000  # bytes; efficientnet_v2_l's takes 180,000
LARGEST_DIRECTORY = 2_000_000  # bytes, of about 100 an entry
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the plain format
FEW_INSTRUCTIONS = 1000  # of a pickle that holds some numbers

ZIP_START = b"PK\x03\x04"
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
FULL, FULL_SHORT = 0xFFFFFFFF, 0xFFFF  # in place of a number that a zip64 field holds in 64 bits
ZIP64 = 1  # kind of that extra field
STORED, ENCRYPTED = 0, 1
COUNT_BYTES = 8  # before a storage of a plain file
Span = tuple[int, int]  # offset and number of bytes in the file
Value = Any  # see pickle_reader


class TorchFileError(ValueError):
    """It is no file of torch.save; the message says what is wrong."""


@dataclass(frozen=True)
class TorchArchive:
    """The object of a file as `read_pickle` returns it, and by key where its storages are."""

    content: Value
    storages: Mapping[str, Span]


def read_archive(file: BinaryIO) -> TorchArchive:
    """Read the pickle of an open file; TorchFileError or PickleError for what torch.save does not write."""
    file.seek(0)
    archive = _read_zip(file) if file.read(len(ZIP_START)) == ZIP_START else _read_plain(file)
    if sum(size for _, size in archive.storages.values()) > size_of(file):
        raise TorchFileError("its storages are larger than it is")
    return archive


def read_bytes(file: BinaryIO, offset: int, size: int) -> bytearray:
    """Read these bytes of the file; TorchFileError where it has fewer."""
    if offset < 0 or offset + size > size_of(file):
        raise TorchFileError("it ends too early")
    file.seek(offset)
    data = bytearray(file.read(size))
    if len(data) != size:
        raise TorchFileError("it ends too early")
    return data


def _read_zip(file: BinaryIO) -> TorchArchive:
    entries = _entries(file, *_directory(file))
    folders = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1 or folders[0].count("/") != 1:
        raise TorchFileError("it is a zip without one data.pkl")
    folder = folders[0]
    if f"{folder}constants.pkl" in entries:
        raise TorchFileError("it is a TorchScript program")
    if (
        f"{folder}byteorder" in entries
        and _read_small(file, entries[f"{folder}byteorder"], max_bytes=10) != b"little"
    ):
        raise TorchFileError("its numbers are big-endian")
    text = _read_small(file, entries[f"{folder}data.pkl"], max_bytes=LARGEST_PICKLE)
    pickled, prefix = read_pickle(io.BytesIO(text)), f"{folder}data/"
    spans = {key: entries[f"{prefix}{key}"] for key in pickled.storages if f"{prefix}{key}" in entries}
    for key, storage in pickled.storages.items():
        if key not in spans or spans[key][1] != storage.bytes:
            raise TorchFileError(f"storage {key[:80]!r} has not the {storage.bytes:,} bytes that it claims")
    return TorchArchive(pickled.value, spans)


def _read_plain(file: BinaryIO) -> TorchArchive:
    """As torch.save wrote until 1.6: five pickles, then each storage after its number of elements."""
    file.seek(0)
    window = io.BytesIO(file.read(LARGEST_PICKLE))
    if [read_pickle(window, max_instructions=FEW_INSTRUCTIONS).value for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise TorchFileError("it does not begin as torch.save writes it")
    system = read_pickle(window, max_instructions=FEW_INSTRUCTIONS).value
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("its numbers are big-endian")
    pickled, keys = read_pickle(window), read_pickle(window).value
    are_names = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not are_names or sorted(keys) != sorted(pickled.storages):
        raise TorchFileError("its storages are not those of its tensors")
    offset, spans = window.tell(), {}
    for key in keys:
        storage = pickled.storages[key]
        if int.from_bytes(read_bytes(file, offset, COUNT_BYTES), "little") != storage.count:
            raise TorchFileError(f"storage {key[:80]!r} has not the {storage.bytes:,} bytes that it claims")
        spans[key] = (offset + COUNT_BYTES, storage.bytes)
        offset += COUNT_BYTES + storage.bytes
    if offset != size_of(file):
        raise TorchFileError("it ends too early, or with something behind its storages")
    return TorchArchive(pickled.value, spans)


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """(offset, bytes, entries) of a zip's central directory, which has to end where the file does."""
    size = size_of(file)
    end = size - END.size
    if end < 0:
        raise TorchFileError("it is a zip that ends too early")
    fields = END.unpack(read_bytes(file, end, END.size))
    signature, disk, first_disk, disk_count, count, length, offset, comment = fields
    is_single = disk in (0, FULL_SHORT) and first_disk in (0, FULL_SHORT)
    if signature != b"PK\x05\x06" or comment or not is_single:
        raise TorchFileError("it is a zip that ends too early, or with something behind it")
    locator = end - END64_LOCATOR.size
    if locator >= 0 and (data := read_bytes(file, locator, END64_LOCATOR.size)).startswith(b"PK\x06\x07"):
        end = END64_LOCATOR.unpack(data)[2]
        if end != locator - END64.size:
            raise TorchFileError("it is a zip with something between its parts")
        *_, disk_count, count, length, offset = END64.unpack(read_bytes(file, end, END64.size))
    if offset + length != end or disk_count != count or count * CENTRAL.size > length:
        raise TorchFileError("it is a zip whose directory is elsewhere than it says")
    if length > LARGEST_DIRECTORY:
        raise TorchFileError(f"it is a zip with a directory of more than {LARGEST_DIRECTORY:,} bytes")
    return offset, length, count


def _entries(file: BinaryIO, start: int, length: int, count: int) -> dict[str, Span]:
    """Where every entry's content is; TorchFileError where one is compressed, repeated or overlaps."""
    directory, at = memoryview(read_bytes(file, start, length)), 0
    headers: list[tuple[int, int, str]] = []
    for _ in range(count):
        if at + CENTRAL.size > length:
            raise TorchFileError("it is a zip whose directory ends too early")
        fields = CENTRAL.unpack_from(directory, at)
        if fields[0] != b"PK\x01\x02":
            raise TorchFileError("it is a zip whose directory is damaged")
        name_length, extra_length, comment_length = fields[10:13]
        name = bytes(directory[at + CENTRAL.size :][:name_length]).decode("utf-8", "replace")
        extra = bytes(directory[at + CENTRAL.size + name_length :][:extra_length])
        packed, size, offset = _with_zip64((fields[8], fields[9], fields[16]), extra)
        if fields[3] & ENCRYPTED or fields[4] != STORED or packed != size:
            raise TorchFileError(
                f"{name[:80]!r} is compressed, as torch.save never does; unpack and zip it plainly"
            )
        headers.append((offset, size, name))
        at += CENTRAL.size + name_length + extra_length + comment_length
    if at != length or len({name for _, _, name in headers}) != count:
        raise TorchFileError("it is a zip in which a name stands twice")
    headers.sort()
    ends = [offset for offset, _, _ in headers[1:]] + [start]
    return {
        name: (_content_offset(file, offset, size, end, name), size)
        for (offset, size, name), end in zip(headers, ends, strict=True)
    }


def _content_offset(file: BinaryIO, offset: int, size: int, end: int, name: str) -> int:
    """Where the content of an entry begins; it has to end before the next entry."""
    fields = LOCAL.unpack(read_bytes(file, offset, LOCAL.size))
    start: int = offset + LOCAL.size + fields[9] + fields[10]
    if fields[0] != ZIP_START or fields[3] != STORED or start + size > end:
        raise TorchFileError(f"{name[:80]!r} is not where the zip's directory says")
    return start


def _with_zip64(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """The packed size, size and offset of an entry, those beyond 32 bits from its zip64 field."""
    values, wide = list(numbers), b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + length] if kind == ZIP64 else wide
        extra = extra[4 + length :]
    # The field has the full size before the packed one.
    for index in (1, 0, 2):
        if values[index] == FULL:
            if len(wide) < 8:
                raise TorchFileError("it is a zip that lacks a size")
            values[index], wide = int.from_bytes(wide[:8], "little"), wide[8:]
    return tuple(values)


def _read_small(file: BinaryIO, span: Span, *, max_bytes: int) -> bytearray:
    if span[1] > max_bytes:
        raise TorchFileError(f"a part of {span[1]:,} bytes, where {max_bytes:,} is the most")
    return read_bytes(file, *span)
