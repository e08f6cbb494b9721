"""Files of torch.save: other instructions in the pickle, other entries in the zip, other bytes."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st

from orchestrator.model_io.state_dict_files import read_state_dict

from .edits import NUMBERS, edited

GLOBALS = [
    "os system",
    "builtins eval",
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    "torch Size",
]
GLOBALS += [
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch._utils _rebuild_sparse_tensor",
    "a\x1bb c",
]
GLOBALS += [
    "torch._utils _rebuild_qtensor",
    "torch ComplexFloatStorage",
    "torch._utils _rebuild_meta_tensor_no_storage",
]
PLAIN = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None]


@cache
def contents(zipped: bool) -> bytes:
    file = io.BytesIO()
    shared = torch.arange(12, dtype=torch.float32)
    state = OrderedDict(a=shared[:6].reshape(2, 3), b=shared[6:], c=torch.ones(2, 2).t(), n=torch.tensor(3))
    half = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    torch.save({"state_dict": {**state, "h": half}, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@cache
def entries() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(contents(True))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def instructions() -> tuple[bytes, ...]:
    name = next(name for name in entries() if name.endswith("/data.pkl"))
    data = entries()[name]
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    return tuple(data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True))


@st.composite
def instruction(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["same", "plain", "number", "global", "get", "put", "text", "long"]))
    number = draw(st.sampled_from(NUMBERS))
    if kind == "same":
        return draw(st.sampled_from(instructions()))
    if kind == "plain":
        return draw(st.sampled_from(PLAIN))
    if kind == "number":
        return b"J" + struct.pack("<I", number % 2**32)
    if kind == "global":
        return b"c" + draw(st.sampled_from(GLOBALS)).replace(" ", "\n").encode() + b"\n"
    if kind == "get":
        return b"h" + bytes([draw(st.integers(0, 255))])
    if kind == "put":
        return b"r" + struct.pack("<I", number % 2**32)
    if kind == "text":
        return b"X" + struct.pack("<I", draw(st.sampled_from([2, 2**31, 2**32 - 1]))) + b"ab"
    value = number.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(value)]) + value


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    steps = list(instructions())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(steps)))
        kind = draw(st.sampled_from(["insert", "replace", "delete", "swap", "repeat"]))
        if kind == "insert":
            steps.insert(at, draw(instruction()))
        elif kind == "repeat":
            steps[at:at] = [draw(instruction())] * draw(st.sampled_from([2, 100, 20_000]))
        elif at < len(steps):
            if kind == "replace":
                steps[at] = draw(instruction())
            elif kind == "delete":
                del steps[at]
            else:
                other = draw(st.integers(0, len(steps) - 1))
                steps[at], steps[other] = steps[other], steps[at]
    return b"".join(steps)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """The zip again: with another pickle, entries more or less, compressed, larger than they are."""
    found = dict(entries())
    pickle = next(name for name in found if name.endswith("/data.pkl"))
    found[pickle] = draw(pickles())
    if draw(st.integers(0, 3)) == 0:
        del found[draw(st.sampled_from(sorted(found)))]
    file = io.BytesIO()
    packed = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(file, "w", packed) as archive:
        for name, data in found.items():
            archive.writestr(name, data)
        if draw(st.integers(0, 5)) == 0:
            archive.writestr(
                draw(st.sampled_from(["archive/data.pkl", "x/y/data.pkl", "archive/constants.pkl", "x"])),
                b"x",
            )
    data = file.getvalue()
    return draw(edited([data], most=2)) if draw(st.integers(0, 2)) == 0 else data


def torch_files() -> st.SearchStrategy[bytes]:
    return st.one_of(archives(), archives(), edited([contents(True), contents(False)]))


def read_torch_file(folder: Path, data: bytes) -> None:
    path = folder / "crafted.pth"
    path.write_bytes(data)
    found = read_state_dict(path)
    assert (
        sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= 2 * len(data) + 64_000_000
    )
    for tensor in found.values():
        tensor.contiguous().double().sum()
