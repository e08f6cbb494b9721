"""The types of the values that a space file may hold: each is checked, and has one form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

import models
from orchestrator.config import Control, Start, When
from orchestrator.data.batches import AUGMENTATIONS
from orchestrator.data.datasets import DATASETS
from orchestrator.errors import unknown_name
from orchestrator.space import values
from orchestrator.space.pruners import pruners
from orchestrator.space.ranges import is_range
from orchestrator.space.techniques import TECHNIQUES
from orchestrator.space.values import Value
from orchestrator.training.optimizers import LR_SCHEDULES, OPTIMIZERS
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Registry
from pruning.schedules import schedules
from pruning.step import SCOPES

T = TypeVar("T")
MAX_SEED = 2**63 - 1
MAX_EPOCHS = 1_000_000


class Closed(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, serialize_by_alias=True)


class OneOrMore:
    """A list of at least one value; a value alone is a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(values.as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


class Named:
    """A method in an editor's eyes: text, or a mapping with `method`; the known names are examples."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = names  # a registry is read only when a schema is asked for

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = {"type": "object", "properties": {"method": {"type": "string"}}, "required": ["method"]}
        return {"anyOf": [{"type": "string"}, mapping], "examples": list(self.names)}


class OneOf:
    """One of a few names; others are refused with the nearest ones."""

    def __init__(self, kind: str, allowed: Collection[str]) -> None:
        self.kind, self.allowed = kind, allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "enum": list(self.allowed)}

    def _check(self, name: str) -> str:
        if name not in self.allowed:
            raise ValueError(unknown_name(self.kind, name, self.allowed))
        return name


def _no_bool(value: Value) -> Value:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


def _no_range(value: Value) -> Value:
    if is_range(value):
        raise ValueError("a seed is never searched for: every point is run for each seed of a list")
    return value


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 would have another key than 0.0


def _method(registry: Registry) -> Callable[[Value], str]:
    return partial(values.method, registry=registry)


_FRACTION = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]}
Axis = Annotated[tuple[T, ...], Field(min_length=1), OneOrMore()]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False), AfterValidator(_positive_zero)]

Model = Annotated[str, PlainValidator(values.model), Named(models.BUILDERS)]
DatasetName = Annotated[str, PlainValidator(values.dataset), Named(DATASETS)]
BatchSize = Annotated[Whole, Field(ge=1, le=MAX_SEED)]
TechniqueName = Annotated[str, PlainValidator(values.technique), Named(TECHNIQUES)]
Criterion = Annotated[str, PlainValidator(_method(criteria)), Named(criteria)]
Granularity = Annotated[str, PlainValidator(_method(granularities)), Named(granularities)]
Scope = Annotated[str, OneOf("scope", SCOPES)]
Schedule = Annotated[str, PlainValidator(_method(schedules)), Named(schedules)]
Amount = Annotated[float, PlainValidator(values.amount), WithJsonSchema(_FRACTION)]
Recovery = Annotated[str, PlainValidator(_method(recoveries)), Named(recoveries)]
StopRule = Annotated[str, PlainValidator(_method(pruners)), Named(pruners)]
Moment = Annotated[str, OneOf("when", get_args(When))]
Preparation = Annotated[str, PlainValidator(_method(preparations)), Named(preparations)]
Distillation = Annotated[str, PlainValidator(_method(distillations)), Named(distillations)]
Check = Annotated[str, OneOf("control", get_args(Control))]
Starting = Annotated[str, OneOf("start", get_args(Start))]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED), BeforeValidator(_no_range)]

Epochs = Annotated[Whole, Field(ge=1, le=MAX_EPOCHS)]
Optimizer = Annotated[str, OneOf("optimizer", OPTIMIZERS)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Momentum = Annotated[Real, Field(ge=0, lt=1)]
LrSchedule = Annotated[str, OneOf("learning-rate schedule", LR_SCHEDULES)]
WarmupEpochs = Annotated[Whole, Field(ge=0, le=MAX_EPOCHS)]
Augmentation = Annotated[str, OneOf("augmentation", AUGMENTATIONS)]
