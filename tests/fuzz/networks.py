"""The files of a saved network: manifest, arch.json and safetensors, of which one or two lie."""

from __future__ import annotations

import hashlib
import json
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

import models
from orchestrator.model_io.formats import load_safetensors
from orchestrator.model_io.state_dict_files import read_state_dict
from orchestrator.storage import model_files
from orchestrator.storage.manifest import LocalFolder, read_manifest, sizes_match
from orchestrator.storage.model_files import ModelSpec
from orchestrator.trial.context import NetworkState

from .edits import NUMBERS, changed, edited, scalars

ARCH: dict[str, Any] = {  # JSON
    "model": "mlp(widths=[4])",
    "input_shape": [1, 8, 8],
    "num_classes": 10,
    "cut_widths": None,
    "mask_shapes": {"hidden.0.weight": [4, 64]},
    "parent": None,
    "classes": None,
}
MODELS = [
    "mlp(widths=[1000000000])",
    "mlp(widths=[1000000, 1000000])",
    "cnn(widths=[1000000])",
    "slp",
    "densenet121",
]
MODELS += [
    "mlp(widths=" + "[" * 400,
    "mlp(widths=[" + "1," * 480 + "])",
    "cnn(widths=[4])",
    "mlp(widths=[4], bias=True)",
]


@cache
def saved() -> dict[str, bytes]:
    """A small masked network, as it is written."""
    net = models.build(ARCH["model"], input_shape=(1, 8, 8), num_classes=10)
    mask = torch.arange(4 * 64).reshape(4, 64) % 3 == 0
    with TemporaryDirectory() as place:
        about = {name: ARCH[name] for name in ("model", "input_shape", "num_classes", "cut_widths")}
        model_files.save_model(
            Path(place), NetworkState(net.state_dict(), {"hidden.0.weight": mask}), arch=about
        )
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def _json(content: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(content, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def json_texts(name: str) -> st.SearchStrategy[bytes]:
    """A JSON file of a saved network: other values, or other bytes."""
    content = json.loads(saved()[name])
    leaves = scalars() | st.sampled_from(MODELS)
    texts = st.tuples(changed(content, leaves), st.booleans()).map(
        lambda pair: _json(pair[0], ascii_only=pair[1])
    )
    return texts | edited([saved()[name]])


def arch_files() -> st.SearchStrategy[bytes]:
    return json_texts("arch.json")


def read_arch(folder: Path, data: bytes) -> None:
    plan = ModelSpec.from_json(data, "arch.json")
    plan.meta_state_dict()
    plan.check_activations()


def manifests() -> st.SearchStrategy[bytes]:
    return json_texts("manifest.json")


def read_manifest_of(folder: Path, data: bytes) -> None:
    _write(folder, {**saved(), "manifest.json": data})
    sizes_match(folder, hashlib.sha256(data).hexdigest())
    manifest = read_manifest(LocalFolder(folder), manifest_sha256=None)
    for name in manifest.entries:
        manifest.read(name, at_most=100_000)


@st.composite
def headers(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with another header before the same numbers, or other bytes."""
    if draw(st.booleans()):
        return draw(edited([data]))
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    kinds = st.sampled_from(
        ["F32", "F64", "BF16", "F16", "BOOL", "U8", "I64", "F8_E4M3", "F4", "C64", "U16", "", "F32 "]
    )
    shapes = st.lists(st.sampled_from(NUMBERS) | st.integers(0, 70), max_size=5)
    header = _json(draw(changed(content, scalars() | kinds | shapes)), ascii_only=draw(st.booleans()))
    said = draw(
        st.sampled_from([len(header), len(header), len(header), len(header) + 1, 0, 2**63, 2**64 - 1])
    )
    return struct.pack("<Q", said) + header + data[8 + length :]


def safetensors_files() -> st.SearchStrategy[bytes]:
    return headers(saved()["weights.safetensors"])


def read_safetensors(folder: Path, data: bytes) -> None:
    path = folder / "crafted.safetensors"
    path.write_bytes(data)
    found = read_state_dict(path)
    assert sum(tensor.nbytes for tensor in found.values()) <= 2 * len(data) + 64_000_000


@st.composite
def folders(draw: st.DrawFn) -> dict[str, bytes]:
    """A saved network with one or two crafted files, and a manifest that vouches for them."""
    files = {name: data for name, data in saved().items() if name != "manifest.json"}
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True)):
        files[name] = draw(arch_files() if name == "arch.json" else headers(files[name]))
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return {**files, "manifest.json": json.dumps(entries).encode()}


def read_folder(folder: Path, files: dict[str, bytes]) -> None:
    _write(folder, files)
    found = model_files.load_model_from(LocalFolder(folder), manifest_sha256=None)
    assert set(found.masks) == set(found.spec.mask_shapes)


@st.composite
def exports(draw: st.DrawFn) -> bytes:
    """An exported safetensors file, whose metadata says how its network is built."""
    widths = {"hidden.0": [4, 64], "output": [10, 4]}
    content = {**json.loads(saved()["arch.json"]), "mask_shapes": {}, "cut_widths": widths}
    arch = draw(changed(content, scalars() | st.sampled_from(MODELS)))
    net = models.build(ARCH["model"], input_shape=(1, 8, 8), num_classes=10)
    data: bytes = save(net.state_dict(), {"arch": json.dumps(arch)})
    return draw(headers(data) | st.just(data))


def read_export(folder: Path, data: bytes) -> None:
    path = folder / "crafted.safetensors"
    path.write_bytes(data)
    load_safetensors(path)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
