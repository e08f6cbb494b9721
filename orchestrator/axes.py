"""The axes of a space and the recipe of its trainings: what a space file may say, closed and typed."""

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
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

import models
from orchestrator import values
from orchestrator.augmentation import AUGMENTATIONS
from orchestrator.config import Control, Train, When, method_name
from orchestrator.datasets import DATASETS
from orchestrator.distillation import distillations
from orchestrator.errors import unknown
from orchestrator.preparation import preparations
from orchestrator.recovery import recoveries
from orchestrator.stops import stops
from orchestrator.techniques import TECHNIQUES
from orchestrator.training import LR_SCHEDULES, OPTIMIZERS
from orchestrator.values import Value
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Registry
from pruning.schedules import schedules
from pruning.step import SCOPES

T = TypeVar("T")
MAX_SEED = 2**63 - 1
MAX_EPOCHS = 1_000_000


class _OneOrMore:
    """A list of at least one value; a value alone is a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(values.as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


class _Named:
    """A method in an editor's eyes: text, or a mapping with `method`; the known names are examples."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = names  # a registry is read only when a schema is asked for

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = {"type": "object", "properties": {"method": {"type": "string"}}, "required": ["method"]}
        return {"anyOf": [{"type": "string"}, mapping], "examples": list(self.names)}


class _Choice:
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
            raise ValueError(unknown(self.kind, name, self.allowed))
        return name


def _no_bool(value: Value) -> Value:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 would have another key than 0.0


def _method(registry: Registry) -> Callable[[Value], str]:
    return partial(values.method, registry=registry)


_FRACTION = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]}
Axis = Annotated[tuple[T, ...], Field(min_length=1), _OneOrMore()]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False), AfterValidator(_positive_zero)]

Model = Annotated[str, PlainValidator(values.model), _Named(models.BUILDERS)]
DatasetName = Annotated[str, PlainValidator(values.dataset), _Named(DATASETS)]
BatchSize = Annotated[Whole, Field(ge=1, le=MAX_SEED)]
TechniqueName = Annotated[str, PlainValidator(values.technique), _Named(TECHNIQUES)]
Criterion = Annotated[str, PlainValidator(_method(criteria)), _Named(criteria)]
Granularity = Annotated[str, PlainValidator(_method(granularities)), _Named(granularities)]
Scope = Annotated[str, _Choice("scope", SCOPES)]
Schedule = Annotated[str, PlainValidator(_method(schedules)), _Named(schedules)]
Amount = Annotated[float, PlainValidator(values.amount), WithJsonSchema(_FRACTION)]
Recovery = Annotated[str, PlainValidator(_method(recoveries)), _Named(recoveries)]
StopRule = Annotated[str, PlainValidator(_method(stops)), _Named(stops)]
Moment = Annotated[str, _Choice("when", get_args(When))]
Preparation = Annotated[str, PlainValidator(_method(preparations)), _Named(preparations)]
Distillation = Annotated[str, PlainValidator(_method(distillations)), _Named(distillations)]
Check = Annotated[str, _Choice("control", get_args(Control))]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]

Epochs = Annotated[Whole, Field(ge=1, le=MAX_EPOCHS)]
Optimizer = Annotated[str, _Choice("optimizer", OPTIMIZERS)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Momentum = Annotated[Real, Field(ge=0, lt=1)]
LrSchedule = Annotated[str, _Choice("learning-rate schedule", LR_SCHEDULES)]
WarmupEpochs = Annotated[Whole, Field(ge=0, le=MAX_EPOCHS)]
Augmentation = Annotated[str, _Choice("augmentation", AUGMENTATIONS)]


METHOD_AXES = (
    "model",
    "dataset",
    "technique",
    "criterion",
    "granularity",
    "schedule",
    "recover",
    "prepare",
    "distill",
)


class Closed(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, serialize_by_alias=True)


class Recipe(Closed):
    """`train:`, with the defaults of config.Train."""

    epochs: Epochs = Train.epochs
    optimizer: Optimizer = Train.optimizer
    lr: Positive = Train.lr
    momentum: Momentum = Train.momentum
    nesterov: bool = Train.nesterov
    weight_decay: NotNegative = Train.weight_decay
    schedule: LrSchedule = Train.schedule
    warmup_epochs: WarmupEpochs = Train.warmup_epochs
    clip_norm: NotNegative = Train.clip_norm
    augment: Augmentation = Train.augment


class Choices(Closed):
    """Values for each axis; empty where nothing is said of it."""

    model: Axis[Model] = ()
    dataset: Axis[DatasetName] = ()
    batch_size: Axis[BatchSize] = ()
    technique: Axis[TechniqueName] = ()
    criterion: Axis[Criterion] = ()
    granularity: Axis[Granularity] = ()
    scope: Axis[Scope] = ()
    schedule: Axis[Schedule] = ()
    amount: Axis[Amount] = ()
    recover: Axis[Recovery] = ()
    when: Axis[Moment] = ()
    prepare: Axis[Preparation] = ()
    distill: Axis[Distillation] = ()
    control: Axis[Check] = ()
    seed: Axis[Seed] = ()
    train_epochs: Axis[Epochs] = Field((), alias="train.epochs")
    train_optimizer: Axis[Optimizer] = Field((), alias="train.optimizer")
    train_lr: Axis[Positive] = Field((), alias="train.lr")
    train_momentum: Axis[Momentum] = Field((), alias="train.momentum")
    train_nesterov: Axis[bool] = Field((), alias="train.nesterov")
    train_weight_decay: Axis[NotNegative] = Field((), alias="train.weight_decay")
    train_schedule: Axis[LrSchedule] = Field((), alias="train.schedule")
    train_warmup_epochs: Axis[WarmupEpochs] = Field((), alias="train.warmup_epochs")
    train_clip_norm: Axis[NotNegative] = Field((), alias="train.clip_norm")
    train_augment: Axis[Augmentation] = Field((), alias="train.augment")

    def given(self) -> dict[str, tuple[Value, ...]]:
        """The values of every axis that has some, by its name in a file."""
        return {name: chosen for name, chosen in self.model_dump().items() if chosen}


class Axes(Choices):
    """`axes:`; what is left out has one value."""

    model: Axis[Model]
    dataset: Axis[DatasetName]
    batch_size: Axis[BatchSize] = (64,)
    schedule: Axis[Schedule] = ("one_shot",)
    when: Axis[Moment] = ("after",)
    prepare: Axis[Preparation] = ("none",)
    distill: Axis[Distillation] = ("none",)
    control: Axis[Check] = ("none",)
    amount: Axis[Amount]
    seed: Axis[Seed] = (0,)

    @model_validator(mode="after")
    def _one_way_to_name_a_technique(self) -> Axes:
        if self.technique and (self.criterion or self.granularity or self.scope):
            raise ValueError("give technique, or criterion, granularity and scope; not both")
        return self


class Exclude(Choices):
    """One entry of `exclude:`. A method without options stands for it with any options."""

    @field_validator(*METHOD_AXES, mode="wrap")
    @classmethod
    def _by_name(cls, given: Value, check: ValidatorFunctionWrapHandler) -> tuple[str, ...]:
        full: tuple[str, ...] = check(given)
        specs = [values.spec(value, "method") for value in values.as_list(given)]
        return tuple(text if options else name for text, (name, options) in zip(full, specs, strict=True))

    @model_validator(mode="after")
    def _something(self) -> Exclude:
        if not self.given():
            raise ValueError("an empty entry excludes everything; name an axis, or leave it out")
        return self

    def matches(self, point: dict[str, Value]) -> bool:
        """Whether every axis that `point` names and the entry speaks of has one of the entry's values."""
        said = {name: chosen for name, chosen in self.given().items() if name in point}
        return all(_holds(chosen, point[name]) for name, chosen in said.items())


def _holds(chosen: tuple[Value, ...], value: Value) -> bool:
    return value in chosen or (isinstance(value, str) and method_name(value) in chosen)


AXIS_NAMES = tuple(field.alias or name for name, field in Choices.model_fields.items())
AxisName = Annotated[str, _Choice("axis", AXIS_NAMES)]
