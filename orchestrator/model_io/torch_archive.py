"""Files of torch.save, the zip of today and the plain one of before 1.6: where each storage's bytes lie.

Both are read without torch and without zipfile's unpacking. What a file claims is compared with its own size
before anything is read, so that no file takes more memory than it has bytes.
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
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # that of before
FEW = 1000  # instructions of a pickle that holds some numbers

ZIP_START = b"PK\x03\x04"
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64_PLACE = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
FULL, FULL_SHORT = 0xFFFFFFFF, 0xFFFF  # where the number stands elsewhere, in 64 bits
ZIP64 = 1  # the extra field's kind
STORED, ENCRYPTED = 0, 1
COUNT_BYTES = 8  # before a storage of a plain file
Value = Any  # see pickles


class TorchFileError(ValueError):
    """What is no file of torch.save; the message says what is wrong with it."""


@dataclass(frozen=True)
class Records:
    """The object of a file, as pickles reads it, and (offset, bytes) of its storages, by their key."""

    content: Value
    places: Mapping[str, tuple[int, int]]


def read_records(file: BinaryIO) -> Records:
    """Where all lies in an open file. TorchFileError or PickleError for what torch.save does not write."""
    file.seek(0)
    records = _zipped(file) if file.read(len(ZIP_START)) == ZIP_START else _plain(file)
    if sum(size for _, size in records.places.values()) > size_of(file):
        raise TorchFileError("its storages are larger than it is")
    return records


def read_part(file: BinaryIO, offset: int, size: int) -> bytearray:
    """These bytes of the file; TorchFileError where there are fewer."""
    if offset < 0 or offset + size > size_of(file):
        raise TorchFileError("it ends too early")
    file.seek(offset)
    data = bytearray(file.read(size))
    if len(data) != size:
        raise TorchFileError("it ends too early")
    return data


def _zipped(file: BinaryIO) -> Records:
    entries = _entries(file, *_directory(file))
    tops = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(tops) != 1 or tops[0].count("/") != 1:
        raise TorchFileError("it is a zip without one data.pkl")
    top = tops[0]
    if f"{top}constants.pkl" in entries:
        raise TorchFileError("it is a TorchScript program")
    if f"{top}byteorder" in entries and _small(file, entries[f"{top}byteorder"], most=10) != b"little":
        raise TorchFileError("its numbers are big-endian")
    found = read_pickle(io.BytesIO(_small(file, entries[f"{top}data.pkl"], most=LARGEST_PICKLE)))
    places = {key: entries[f"{top}data/{key}"] for key in found.storages if f"{top}data/{key}" in entries}
    for key, storage in found.storages.items():
        if key not in places or places[key][1] != storage.bytes:
            raise TorchFileError(f"storage {key[:80]!r} has not the {storage.bytes:,} bytes that it claims")
    return Records(found.value, places)


def _plain(file: BinaryIO) -> Records:
    """As torch.save wrote until 1.6: five pickles, then each storage behind its number of elements."""
    file.seek(0)
    window = io.BytesIO(file.read(LARGEST_PICKLE))
    if [read_pickle(window, most=FEW).value for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise TorchFileError("it does not begin as torch.save writes it")
    system = read_pickle(window, most=FEW).value
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("its numbers are big-endian")
    found, keys = read_pickle(window), read_pickle(window).value
    known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not known or sorted(keys) != sorted(found.storages):
        raise TorchFileError("its storages are not those of its tensors")
    at, places = window.tell(), {}
    for key in keys:
        storage = found.storages[key]
        if int.from_bytes(read_part(file, at, COUNT_BYTES), "little") != storage.count:
            raise TorchFileError(f"storage {key[:80]!r} has not the {storage.bytes:,} bytes that it claims")
        places[key] = (at + COUNT_BYTES, storage.bytes)
        at += COUNT_BYTES + storage.bytes
    if at != size_of(file):
        raise TorchFileError("it ends too early, or with something behind its storages")
    return Records(found.value, places)


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """(offset, bytes, entries) of a zip's central directory, which has to end where the file does."""
    size = size_of(file)
    end = size - END.size
    if end < 0:
        raise TorchFileError("it is a zip that ends too early")
    signature, disk, first_disk, here, count, length, offset, comment = END.unpack(
        read_part(file, end, END.size)
    )
    if (
        signature != b"PK\x05\x06"
        or comment
        or disk not in (0, FULL_SHORT)
        or first_disk not in (0, FULL_SHORT)
    ):
        raise TorchFileError("it is a zip that ends too early, or with something behind it")
    place = end - END64_PLACE.size
    if (
        place >= 0
        and (found := END64_PLACE.unpack(read_part(file, place, END64_PLACE.size)))[0] == b"PK\x06\x07"
    ):
        end = found[2]
        if end != place - END64.size:
            raise TorchFileError("it is a zip with something between its parts")
        *_, here, count, length, offset = END64.unpack(read_part(file, end, END64.size))
    if offset + length != end or here != count or count * CENTRAL.size > length:
        raise TorchFileError("it is a zip whose directory is elsewhere than it says")
    if length > LARGEST_DIRECTORY:
        raise TorchFileError(f"it is a zip with a directory of more than {LARGEST_DIRECTORY:,} bytes")
    return offset, length, count


def _entries(file: BinaryIO, start: int, length: int, count: int) -> dict[str, tuple[int, int]]:
    """(offset, bytes) of every entry's content; none compressed, twice there, or across another."""
    directory, at = memoryview(read_part(file, start, length)), 0
    headers: list[tuple[int, int, str]] = []
    for _ in range(count):
        if at + CENTRAL.size > length:
            raise TorchFileError("it is a zip whose directory ends too early")
        fields = CENTRAL.unpack_from(directory, at)
        if fields[0] != b"PK\x01\x02":
            raise TorchFileError("it is a zip whose directory is damaged")
        names, extras, comments = fields[10:13]
        name = bytes(directory[at + CENTRAL.size :][:names]).decode("utf-8", "replace")
        extra = bytes(directory[at + CENTRAL.size + names :][:extras])
        packed, size, offset = _wide((fields[8], fields[9], fields[16]), extra)
        if fields[3] & ENCRYPTED or fields[4] != STORED or packed != size:
            raise TorchFileError(
                f"{name[:80]!r} is compressed, as torch.save never does; unpack and zip it plainly"
            )
        headers.append((offset, size, name))
        at += CENTRAL.size + names + extras + comments
    if at != length or len({name for _, _, name in headers}) != count:
        raise TorchFileError("it is a zip in which a name stands twice")
    headers.sort()
    ends = [offset for offset, _, _ in headers[1:]] + [start]
    return {
        name: (_content(file, offset, size, end, name), size)
        for (offset, size, name), end in zip(headers, ends, strict=True)
    }


def _content(file: BinaryIO, offset: int, size: int, end: int, name: str) -> int:
    """Where the content of an entry begins; all of it has to end before the next."""
    fields = LOCAL.unpack(read_part(file, offset, LOCAL.size))
    begins: int = offset + LOCAL.size + fields[9] + fields[10]
    if fields[0] != ZIP_START or fields[3] != STORED or begins + size > end:
        raise TorchFileError(f"{name[:80]!r} is not where the zip's directory says")
    return begins


def _wide(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """The numbers that did not fit into 32 bits, out of the extra field of zip64."""
    found, wide = list(numbers), b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + length] if kind == ZIP64 else wide
        extra = extra[4 + length :]
    # The field has the full size before the packed one.
    for place in (1, 0, 2):
        if found[place] == FULL:
            if len(wide) < 8:
                raise TorchFileError("it is a zip with a size that is not said")
            found[place], wide = int.from_bytes(wide[:8], "little"), wide[8:]
    return tuple(found)


def _small(file: BinaryIO, place: tuple[int, int], *, most: int) -> bytearray:
    if place[1] > most:
        raise TorchFileError(f"a part of {place[1]:,} bytes, where {most:,} is the most")
    return read_part(file, *place)
