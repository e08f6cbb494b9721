"""A network as files, without pickle: arch.json, weights and masks as safetensors, and a manifest.

Masked tensors keep their living values alone, in order; masks are packed, eight entries a byte. A
state that recovery did not train keeps its masks and the name of its parent, not the weights again.
The manifest lists every file's size and SHA-256, and its own SHA-256 is kept apart from the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.bench import State
from orchestrator.errors import StoreError
from pruning.masking import Masks

ARCH, WEIGHTS, MASKS, MANIFEST = "arch.json", "weights.safetensors", "masks.safetensors", "manifest.json"
LARGEST_HEADER = 10_000_000  # bytes; a longer one is an attack on the parser, no network


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds. `weights` is None where they are the parent's, under `masks`."""

    arch: Mapping[str, Any]  # JSON
    weights: dict[str, Tensor] | None
    masks: Masks

    def state(self) -> State:
        """The state that was saved; StoreError where its weights are with its parent."""
        if self.weights is None:
            raise StoreError(f"this model holds masks only; its weights are those of {self.arch['parent']}")
        return State(self.weights, self.masks, **self.arch["spent"])


def save(folder: Path, state: State, *, arch: Mapping[str, Any], parent: str | None = None) -> str:
    """Write a state into an empty folder; the manifest's SHA-256 comes back.

    `arch` says how to build the network; with `parent`, the key of a dense network, the weights are
    left out, since they are the parent's with the dead ones at zero.
    """
    spent = {
        "epochs": state.epochs,
        "train_seconds": state.train_seconds,
        "train_flops": state.train_flops,
        "micro_batch": state.micro_batch,
    }
    shapes = {name: list(mask.shape) for name, mask in state.masks.items()}
    content = {**arch, "spent": spent, "mask_shapes": shapes, "parent": parent}
    (folder / ARCH).write_text(json.dumps(content, indent=1, sort_keys=True))
    if parent is None:
        living = {
            name: tensor[state.masks[name]] if name in state.masks else tensor
            for name, tensor in state.weights.items()
        }
        save_file({name: tensor.contiguous() for name, tensor in living.items()}, folder / WEIGHTS)
    if state.masks:
        save_file({name: _pack(mask) for name, mask in state.masks.items()}, folder / MASKS)
    files = {path.name: _entry(path.read_bytes()) for path in sorted(folder.iterdir())}
    text = json.dumps(files, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load(folder: Path, *, manifest_sha256: str) -> Saved:
    """Read a folder after checking every byte of it; StoreError names the file that is not as written."""
    content = read_checked(folder, manifest_sha256=manifest_sha256)
    arch = json.loads(content[ARCH])
    masks = {
        name: _unpack(packed, arch["mask_shapes"][name])
        for name, packed in _tensors(content.get(MASKS)).items()
    }
    if arch["parent"] is not None:
        return Saved(arch, None, masks)
    weights = _tensors(content[WEIGHTS])
    for name, mask in masks.items():
        weights[name] = torch.zeros(mask.shape, dtype=weights[name].dtype).masked_scatter_(
            mask, weights[name]
        )
    return Saved(arch, weights, masks)


def looks_whole(folder: Path | None, manifest_sha256: str) -> bool:
    """Whether the manifest is the one written and every file has its size; True for a folder elsewhere.

    A quick look, for thousands of folders; `load` compares every byte.
    """
    if folder is None:
        return True
    try:
        text = (folder / MANIFEST).read_bytes()
        sizes = {name: entry["bytes"] for name, entry in json.loads(text).items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
    return whole and hashlib.sha256(text).hexdigest() == manifest_sha256


def read_checked(folder: Path, *, manifest_sha256: str) -> dict[str, bytes]:
    """The bytes of every file that the manifest names, each compared with its size and hash."""
    try:
        text = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != manifest_sha256:
            raise StoreError(f"{folder / MANIFEST} is not the manifest that was written with this run")
        content = {}
        for name, entry in json.loads(text).items():
            content[name] = (folder / name).read_bytes()
            if _entry(content[name]) != entry:
                raise StoreError(f"{folder / name} is not as it was written: its size or SHA-256 differs")
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}; the saved model is not whole") from error
    return content


def _tensors(data: bytes | None) -> dict[str, Tensor]:
    if data is None:
        return {}
    if int.from_bytes(data[:8], "little") > LARGEST_HEADER:
        raise StoreError(f"a safetensors header of more than {LARGEST_HEADER} bytes is refused")
    return dict(tensors_of(data))


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).reshape(shape)
