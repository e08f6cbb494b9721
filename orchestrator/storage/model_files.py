"""Save and load a network as files without pickle: arch.json, safetensors and a manifest.

Of a masked tensor only the living values are saved, in order; masks are packed, eight entries a byte. A state
that recovery did not train is saved as its masks and the key of its parent, without weights. The manifest
lists every file's size and SHA-256; its own SHA-256 is stored apart from the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from orchestrator.errors import StoreError
from orchestrator.storage.manifest import (
    ARCH,
    CODE,
    MANIFEST,
    MASKS,
    WEIGHTS,
    FileSource,
    LocalFolder,
    Manifest,
    make_entry,
    read_manifest,
)
from orchestrator.storage.model_spec import LARGEST_ARCH, ModelSpec
from orchestrator.storage.tensor_files import (
    load_expected_tensors,
    max_file_bytes,
    pack_mask,
    packed_bytes,
    unpack_mask,
)
from orchestrator.system.files import write_file
from orchestrator.trial.context import NetworkState
from pruning import kept_code, own_code
from pruning.masking import Masks

LARGEST_CODE = 8_000_000  # bytes; several files of one's own, each with at most own_sources.MAX_BYTES


@dataclass(frozen=True, eq=False)
class SavedModel:
    """The content of a folder. `weights` is None if they are the parent's, with `masks` applied.

    `code` has the user's own files that built and pruned it, as `pruning.kept_code.dump` writes them.
    """

    spec: ModelSpec
    weights: dict[str, Tensor] | None
    masks: Masks
    manifest_sha256: str
    code: str = ""

    @property
    def arch(self) -> Mapping[str, Any]:  # JSON
        return self.spec.model_dump(mode="json")

    def state(self) -> NetworkState:
        """Return the saved state; StoreError if the parent has its weights."""
        if self.weights is None:
            raise StoreError(f"this model holds masks only; its weights are those of {self.spec.parent}")
        return NetworkState(self.weights, self.masks, **dict(self.spec.spent))


def save_model(
    folder: Path, state: NetworkState, *, arch: Mapping[str, Any], parent: str | None = None, code: str = ""
) -> str:
    """Write a state into an empty folder; return the manifest's SHA-256.

    `arch` says how to build the network; `code` is kept beside it, if there is any. With `parent`, the key of
    a dense network, no weights are written: they are the parent's with the dead ones at zero.
    """
    spent = {
        "epochs": state.epochs,
        "train_seconds": state.train_seconds,
        "train_flops": state.train_flops,
        "micro_batch": state.micro_batch,
    }
    shapes = {name: list(mask.shape) for name, mask in state.masks.items()}
    content = {**arch, "spent": spent, "mask_shapes": shapes, "parent": parent}
    write_file(folder / ARCH, json.dumps(content, indent=1, sort_keys=True))
    if parent is None:
        living = {
            name: tensor[state.masks[name]] if name in state.masks else tensor
            for name, tensor in state.weights.items()
        }
        write_file(folder / WEIGHTS, save({name: tensor.contiguous() for name, tensor in living.items()}))
    if state.masks:
        write_file(folder / MASKS, save({name: pack_mask(mask) for name, mask in state.masks.items()}))
    if code:
        write_file(folder / CODE, code)
    files = {path.name: vars(make_entry(path.read_bytes())) for path in sorted(folder.iterdir())}
    text = json.dumps(files, indent=1, sort_keys=True).encode()
    write_file(folder / MANIFEST, text)
    return hashlib.sha256(text).hexdigest()


def load_model(folder: Path, *, manifest_sha256: str) -> SavedModel:
    """Load a folder, with every byte checked; StoreError names the file that was changed."""
    return load_model_from(LocalFolder(folder), manifest_sha256=manifest_sha256)


def load_model_from(files: FileSource, *, manifest_sha256: str | None) -> SavedModel:
    """Load files from anywhere. Without the manifest's hash they are only compared with each other.

    arch.json is read first: it limits the size of the other files, and says which tensors they must have.
    """
    manifest = read_manifest(files, manifest_sha256=manifest_sha256)
    path = f"{files.where}/{ARCH}"
    spec = ModelSpec.from_json(manifest.read(ARCH, at_most=LARGEST_ARCH), path)
    code = read_kept_code(manifest)
    accept_code([spec.model], lambda: code, where=files.where)
    expected, parameters = spec.meta_state_dict(), spec.meta_parameters()
    if manifest_sha256 is None:  # the files may come from anybody
        spec.check_activations()
    for name, shape in spec.mask_shapes.items():
        if name not in parameters or list(parameters[name].shape) != shape:
            raise StoreError(
                f"{path}: mask_shapes: {name[:80]!r} with {shape} is no parameter of the network"
            )
    if (WEIGHTS in manifest.entries) is (spec.parent is not None):
        raise StoreError(f"{path}: a network has either weights or a parent that has them")
    if (MASKS in manifest.entries) is not bool(spec.mask_shapes):
        raise StoreError(f"{path}: mask_shapes and {MASKS} do not go together")
    masks = _load_masks(manifest, spec)
    weights = None if spec.parent else _load_weights(manifest, expected, masks)
    return SavedModel(spec, weights, masks, manifest.sha256, code)


def read_kept_code(manifest: Manifest) -> str:
    """Return the user's own files that a saved model keeps, unread; "" for none. StoreError for no text."""
    if CODE not in manifest.entries:
        return ""
    try:
        return manifest.read(CODE, at_most=LARGEST_CODE).decode()
    except UnicodeDecodeError as error:
        raise StoreError(f"{manifest.files.where}/{CODE} is no UTF-8 text") from error


def accept_code(methods: Iterable[str], read_code: Callable[[], str], *, where: str) -> None:
    """Let this process run the user's own files that methods in text form name, where that is safe.

    StoreError where neither the files are at hand nor kept copies are trusted; see `kept_code.accept_kept`.
    """
    for text in methods:
        name = own_code.NAME_AT_START.match(text.strip())
        if name is None:
            continue
        try:
            kept_code.accept_kept(name[0], read_code)
        except own_code.OwnCodeError as error:
            raise StoreError(f"{where}: {error}") from error


def read_verified_files(folder: Path, *, manifest_sha256: str) -> dict[str, bytes]:
    """Read every file that the manifest names, each compared with its size and hash."""
    manifest = read_manifest(LocalFolder(folder), manifest_sha256=manifest_sha256)
    return {name: manifest.read(name, at_most=entry.bytes) for name, entry in manifest.entries.items()}


def _load_masks(manifest: Manifest, spec: ModelSpec) -> Masks:
    shapes = {name: tuple(shape) for name, shape in spec.mask_shapes.items()}
    if not shapes:
        return {}
    sizes = {name: packed_bytes(shape) for name, shape in shapes.items()}
    data = manifest.read(MASKS, at_most=max_file_bytes(sum(sizes.values())))
    forms = {name: ((size,), torch.uint8) for name, size in sizes.items()}
    packed = load_expected_tensors(data, forms, f"{manifest.files.where}/{MASKS}")
    return {name: unpack_mask(packed[name], shape) for name, shape in shapes.items()}


def _load_weights(manifest: Manifest, expected: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Load the weights; dead values, which the file lacks, become zeros."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    forms = {
        name: ((int(masks[name].sum()),) if name in masks else tuple(tensor.shape), tensor.dtype)
        for name, tensor in expected.items()
    }
    data = manifest.read(WEIGHTS, at_most=max_file_bytes(size))
    weights = load_expected_tensors(data, forms, f"{manifest.files.where}/{WEIGHTS}")
    for name, mask in masks.items():
        zeros = torch.zeros(mask.shape, dtype=weights[name].dtype)
        weights[name] = zeros.masked_scatter_(mask, weights[name])
    return weights
