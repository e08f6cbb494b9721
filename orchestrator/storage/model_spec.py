"""Read and check arch.json, which says how a saved network is built."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

import models
from orchestrator.errors import StoreError
from orchestrator.storage.manifest import parse_json_object
from orchestrator.trial.network_size import BAD_SIZES, activation_conflict, activations, meta_module

LARGEST_ARCH = 3_000_000  # bytes; densenet121 takes 40,000

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
        with torch.device("meta"):  # no weights are drawn only to be overwritten
            net = models.build(self.model, input_shape=self.input_shape, num_classes=self.num_classes)
        net.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        return net.eval()

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
