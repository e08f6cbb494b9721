"""Types of the values of a space file, with their checks, canonical forms and JSON Schema."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import core_schema

import models
from orchestrator.config import Control, Start, When
from orchestrator.data.augmentation import augmentations
from orchestrator.data.datasets import DATASETS
from orchestrator.errors import unknown_name
from orchestrator.space import values
from orchestrator.space.stopping_rules import pruners
from orchestrator.space.techniques import TECHNIQUES
from orchestrator.space.values import Value, is_range
from orchestrator.training.lr_schedules import lr_schedules
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from pruning.allocation import SCOPES_BY_ALLOCATION
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.mask_selection import SCOPES
from pruning.registry import Registry
from pruning.schedules import schedules
from pruning.target_amounts import QUANTITIES

T = TypeVar("T")
MAX_SEED = 2**63 - 1
MAX_EPOCHS = 1_000_000


class StrictModel(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, serialize_by_alias=True)


ONE_OR_MORE = GetPydanticSchema(  # a list of at least one value; a single value is a list of one
    lambda source, handler: core_schema.no_info_before_validator_function(values.as_list, handler(source)),
    lambda schema, handler: (lambda array: {"anyOf": [array["items"], array]})(handler(schema)),
)


def method_schema(names: Iterable[str]) -> GetPydanticSchema:
    """Return the JSON Schema of a method: text, or a mapping with `method`; the names are examples."""
    mapping = {"type": "object", "properties": {"method": {"type": "string"}}, "required": ["method"]}
    # In a lambda, so that a registry is read only when a schema is asked for.
    return GetPydanticSchema(
        get_pydantic_json_schema=lambda schema, handler: {
            "anyOf": [{"type": "string"}, mapping],
            "examples": list(names),
        }
    )


def one_of(kind: str, allowed: Collection[str]) -> GetPydanticSchema:
    """Return a check that text is one of a few names; others are refused with the nearest ones."""

    def check(name: str) -> str:
        if name not in allowed:
            raise ValueError(unknown_name(kind, name, allowed))
        return name

    return GetPydanticSchema(
        lambda source, handler: core_schema.no_info_after_validator_function(check, handler(source)),
        lambda schema, handler: {"type": "string", "enum": list(allowed)},
    )


def _no_bool(value: Value) -> Value:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


def _no_range(value: Value) -> Value:
    if is_range(value):
        raise ValueError("a seed is never searched for: every point is run for each seed of a list")
    return value


def _no_allocation(value: Value) -> Value:
    if isinstance(value, str) and value in SCOPES_BY_ALLOCATION and value not in SCOPES:
        raise ValueError(f"{value} is an allocation: write allocate: [{value}] in place of scope")
    return value


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 would have another key than 0.0


def _method(registry: Registry) -> PlainValidator:
    return PlainValidator(partial(values.canonical_method, registry=registry))


def _model_names() -> list[str]:
    return [*models.BUILDERS, *(f"{library}.NAME" for library in models.LIBRARIES)]


_FRACTION = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]}
_LIMITS = {name: {"type": ["number", "string"]} for name in QUANTITIES}
_MAPPING = {"type": "object", "properties": _LIMITS, "additionalProperties": _FRACTION}
_AMOUNT = {"anyOf": [*_FRACTION["anyOf"], _MAPPING]}
Axis = Annotated[tuple[T, ...], Field(min_length=1), ONE_OR_MORE]
Integer = Annotated[int, BeforeValidator(_no_bool)]
Version = Annotated[Literal[1], BeforeValidator(_no_bool)]
Finite = Annotated[
    float, BeforeValidator(_no_bool), Field(allow_inf_nan=False), AfterValidator(_positive_zero)
]

Model = Annotated[str, PlainValidator(values.canonical_model), method_schema(_model_names())]
DatasetName = Annotated[str, PlainValidator(values.canonical_dataset), method_schema(DATASETS)]
BatchSize = Annotated[Integer, Field(ge=1, le=MAX_SEED)]
TechniqueName = Annotated[str, PlainValidator(values.canonical_technique), method_schema(TECHNIQUES)]
Criterion = Annotated[str, _method(criteria), method_schema(criteria)]
Granularity = Annotated[str, _method(granularities), method_schema(granularities)]
Allocate = Annotated[str, one_of("allocation", tuple(SCOPES_BY_ALLOCATION))]
Scope = Annotated[str, one_of("scope", SCOPES), BeforeValidator(_no_allocation)]
Schedule = Annotated[str, _method(schedules), method_schema(schedules)]
Amount = Annotated[float | str, PlainValidator(values.canonical_amount), WithJsonSchema(_AMOUNT)]
Recovery = Annotated[str, _method(recoveries), method_schema(recoveries)]
StopRule = Annotated[str, _method(pruners), method_schema(pruners)]
WhenName = Annotated[str, one_of("when", get_args(When))]
Preparation = Annotated[str, _method(preparations), method_schema(preparations)]
Distillation = Annotated[str, _method(distillations), method_schema(distillations)]
ControlName = Annotated[str, one_of("control", get_args(Control))]
StartName = Annotated[str, one_of("start", get_args(Start))]
Seed = Annotated[Integer, Field(ge=0, le=MAX_SEED), BeforeValidator(_no_range)]

Epochs = Annotated[Integer, Field(ge=1, le=MAX_EPOCHS)]
Optimizer = Annotated[str, one_of("optimizer", OPTIMIZERS)]
Positive = Annotated[Finite, Field(gt=0)]
NotNegative = Annotated[Finite, Field(ge=0)]
Momentum = Annotated[Finite, Field(ge=0, lt=1)]
LrSchedule = Annotated[str, PlainValidator(values.canonical_lr_schedule), method_schema(lr_schedules)]
WarmupEpochs = Annotated[Integer, Field(ge=0, le=MAX_EPOCHS)]
Augmentation = Annotated[str, PlainValidator(values.canonical_augmentation), method_schema(augmentations)]
