"""Files of weights that lie about what is in them, and how such a file has to be refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from time import process_time

import pytest

from orchestrator.errors import StoreError
from orchestrator.model_io.state_dict_files import read_state_dict

EMPTY = pickle.dumps({}, 2)


def refused(path: Path, match: str) -> None:
    """In a second of this processor, in one line."""
    started = process_time()
    with pytest.raises(StoreError, match=match) as caught:
        read_state_dict(path)
    assert process_time() - started < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def archive(
    path: Path, content: bytes, more: dict[str, bytes] | None = None, *, packed: bool = False
) -> Path:
    """A zip as torch.save has it, with this pickle and more entries."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in (more or {}).items():
            file.writestr(name, data)
    return path


def view(
    *,
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
) -> bytes:
    """The instructions of one tensor: a view of storage 0."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = (
        f"(X\x07\0\0\0storagectorch\n{kind}\nX\x01\0\0\x000X\x03\0\0\0cpu".encode() + number(count) + b"tQ"
    )
    inner = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"tR"


def number(value: int) -> bytes:
    data = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def mapping(*tensors: bytes) -> bytes:
    names = (b"X\x06\0\0\0" + b"%06d" % n + tensor for n, tensor in enumerate(tensors))
    return b"\x80\x02}(" + b"".join(names) + b"u."


def lying(folder: Path, *tensors: bytes, size: int = 16) -> Path:
    return archive(folder / "net.pth", mapping(*tensors), {"archive/data/0": bytes(size)})
