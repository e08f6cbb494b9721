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
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

import models
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
    parse_json_object,
    read_manifest,
)
from orchestrator.storage.tensor_files import (
    load_expected_tensors,
    max_file_bytes,
    pack_mask,
    packed_bytes,
    unpack_mask,
)
from orchestrator.system.determinism import seeded
from orchestrator.system.files import write_file
from orchestrator.trial.context import NetworkState
from orchestrator.trial.structure import BAD_SIZES, activation_conflict, activations, meta_module
from orchestrator.trial.unsaved_tensors import build_to_load
from pruning.masking import Masks
from pruning.user_code import own_code, stored_code

LARGEST_ARCH = 3_000_000  # bytes; densenet121 takes 40,000
LARGEST_CODE = 8_000_000  # bytes; several files of one's own, each with at most user_code.sources.MAX_BYTES

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Shape = tuple[Size, Size, Size]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingCost(_StrictModel):
    """The training cost of a saved network; `micro_batch` is the number of images per forward pass.

    `train_flops_effective` leaves out dead weights; models saved by earlier versions lack it.
    """

    epochs: Count
    train_seconds: Annotated[float, Field(ge=0)]
    train_flops: Count
    micro_batch: Count
    train_flops_effective: Count | None = None

    @property
    def state_fields(self) -> dict[str, Any]:  # int or float
        """The cost as fields of a NetworkState; where no other number is known, training counts as dense."""
        effective = self.train_flops if self.train_flops_effective is None else self.train_flops_effective
        return {**dict(self), "train_flops_effective": effective}


class ModelSpec(_StrictModel):
    """A network and the masks beside it. `parent`: the key of the dense network that has its weights.

    `classes`: the classes of a source model's outputs, such as `digits/5`, if they are known.
    """

    model: Annotated[str, Field(max_length=models.MAX_TEXT)]
    input_shape: Shape
    num_classes: Annotated[int, Field(ge=2, le=1_000_000)]
    cut_widths: dict[str, list[Size]] | None = None
    spent: TrainingCost
    mask_shapes: dict[str, list[Size]]
    parent: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    classes: list[Annotated[str, Field(max_length=200)]] | None = None

    @classmethod
    def from_json(cls, text: bytes, path: str) -> ModelSpec:
        """Parse arch.json; StoreError, in one line, that names the first invalid field."""
        parse_json_object(text, path)  # refuses names that occur twice, which pydantic accepts
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part)[:80] for part in first["loc"]) or "it"
            raise StoreError(f"{path}: {field}: {first['msg'][:200]}; the network is not built") from error

    @property
    def architecture(self) -> tuple[str, Shape, int]:
        """Model, input shape and number of classes: the network before channels are cut out."""
        return self.model, self.input_shape, self.num_classes

    def meta_state_dict(self) -> Mapping[str, Tensor]:
        """Return the expected state dict, on device `meta`. StoreError for a network that is too large."""
        return _meta_module(*self.architecture).state_dict()

    def meta_parameters(self) -> Mapping[str, Tensor]:
        """Return the expected parameters, on device `meta`. StoreError for a network that is too large."""
        return dict(_meta_module(*self.architecture).named_parameters())

    def build_network(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Build the network with these weights, on the CPU, in eval mode. StoreError if it is too large."""
        self.check_activations()
        with seeded(0):  # what is drawn is overwritten
            net = build_to_load(self._build)
        net.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        return net.eval()

    def build_fresh_network(self) -> nn.Module:
        """Build the network with its first weights, as it is traced before it is trained; in eval mode."""
        with seeded(0):
            return self._build().eval()

    def _build(self) -> nn.Module:
        return models.build(self.model, input_shape=self.input_shape, num_classes=self.num_classes)

    def check_activations(self) -> None:
        """Raise StoreError if two images have too many activations. The first call imports for 1 s."""
        _check_activations(*self.architecture)


@lru_cache(maxsize=8)
def _meta_module(model: str, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    try:
        return meta_module((model, input_shape, num_classes))
    except BAD_SIZES as error:
        raise _build_error(model, input_shape, error) from error


@lru_cache(maxsize=8)
def _check_activations(model: str, input_shape: tuple[int, int, int], num_classes: int) -> None:
    net = _meta_module(model, input_shape, num_classes)
    try:
        count = activations(net, torch.empty((2, *input_shape), device="meta"))
    except BAD_SIZES as error:
        raise _build_error(model, input_shape, error) from error
    if reason := activation_conflict((model, input_shape, num_classes), count):
        raise StoreError(reason)


def _build_error(model: str, input_shape: tuple[int, int, int], error: Exception) -> StoreError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return StoreError(f"a network that cannot be built: {model[:80]} for {input_shape}: {reason}")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """The content of a folder. `weights` is None if they are the parent's, with `masks` applied.

    `code` has the user's own files that built and pruned it, as `stored_code.dump` writes them.
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
        return NetworkState(self.weights, self.masks, **self.spec.spent.state_fields)


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
        "train_flops_effective": state.train_flops_effective,
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

    StoreError where neither the files are at hand nor kept copies are trusted; see `stored_code.accept_kept`.
    """
    for text in methods:
        name = own_code.NAME_AT_START.match(text.strip())
        if name is None:
            continue
        try:
            stored_code.accept_kept(name[0], read_code)
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
