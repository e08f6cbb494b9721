"""The schema of a space file: axes, search and objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from orchestrator.config import method_name
from orchestrator.errors import unknown_name
from orchestrator.space import hyperparameters, values
from orchestrator.space.hyperparameters import HyperparameterAxes
from orchestrator.space.search_constraints import Constraint, parse_constraint
from orchestrator.space.types import (
    Allocate,
    Amount,
    Augmentation,
    Axis,
    BatchSize,
    ControlName,
    Criterion,
    DatasetName,
    Distillation,
    Epochs,
    Granularity,
    Integer,
    LrSchedule,
    Model,
    Momentum,
    NotNegative,
    Optimizer,
    Positive,
    Preparation,
    Recovery,
    Schedule,
    Scope,
    Seed,
    StartName,
    StrictModel,
    TechniqueName,
    WarmupEpochs,
    WhenName,
    one_of,
)
from orchestrator.space.values import Choice, Range, Ranged, Value
from orchestrator.trial.metrics import Measurement

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


class AxisValues(StrictModel):
    """A list of values or a range for each axis; empty where the file does not name the axis."""

    model: Axis[Model] = ()
    dataset: Axis[DatasetName] = ()
    batch_size: Ranged[BatchSize] = ()
    technique: Axis[TechniqueName] = ()
    criterion: Axis[Criterion] = ()
    granularity: Axis[Granularity] = ()
    scope: Axis[Scope] = ()
    allocate: Axis[Allocate] = ()
    schedule: Axis[Schedule] = ()
    amount: Ranged[Amount] = ()
    recover: Axis[Recovery] = ()
    when: Axis[WhenName] = ()
    prepare: Axis[Preparation] = ()
    distill: Axis[Distillation] = ()
    control: Axis[ControlName] = ()
    start: Axis[StartName] = ()
    seed: Axis[Seed] = ()
    train_epochs: Ranged[Epochs] = Field((), alias="train.epochs")
    train_optimizer: Axis[Optimizer] = Field((), alias="train.optimizer")
    train_lr: Ranged[Positive] = Field((), alias="train.lr")
    train_momentum: Ranged[Momentum] = Field((), alias="train.momentum")
    train_nesterov: Axis[bool] = Field((), alias="train.nesterov")
    train_weight_decay: Ranged[NotNegative] = Field((), alias="train.weight_decay")
    train_schedule: Axis[LrSchedule] = Field((), alias="train.schedule")
    train_warmup_epochs: Ranged[WarmupEpochs] = Field((), alias="train.warmup_epochs")
    train_clip_norm: Ranged[NotNegative] = Field((), alias="train.clip_norm")
    train_augment: Axis[Augmentation] = Field((), alias="train.augment")
    train_channels_last: Axis[bool] = Field((), alias="train.channels_last")
    train_label_smoothing: Ranged[Momentum] = Field((), alias="train.label_smoothing")
    train_mixup: Ranged[NotNegative] = Field((), alias="train.mixup")
    train_ema: Ranged[Momentum] = Field((), alias="train.ema")

    def non_empty(self) -> dict[str, Choice]:
        """Return the choices of the axes that have one, by their names in a file."""
        choices: dict[str, Choice] = {
            field.alias or name: getattr(self, name) for name, field in AxisValues.model_fields.items()
        }
        return {axis: choice for axis, choice in choices.items() if choice}


class Axes(AxisValues):
    """`axes:` of a space, with defaults. `options` are those of methods, such as `pq_index.gamma`."""

    model: Axis[Model]
    dataset: Axis[DatasetName]
    batch_size: Ranged[BatchSize] = (64,)
    schedule: Axis[Schedule] = ("one_shot",)
    when: Axis[WhenName] = ("after",)
    prepare: Axis[Preparation] = ("none",)
    distill: Axis[Distillation] = ("none",)
    control: Axis[ControlName] = ("none",)
    amount: Ranged[Amount]
    seed: Axis[Seed] = (0,)
    options: HyperparameterAxes = Field(default_factory=dict, alias="METHOD.OPTION")

    @model_validator(mode="before")
    @classmethod
    def _split_options(cls, data: Any) -> Any:  # plain YAML, of any type
        return hyperparameters.split_hyperparameters(data)

    @model_validator(mode="after")
    def _check_technique(self) -> Axes:
        if self.technique and (self.criterion or self.granularity or self.scope):
            raise ValueError("give technique, or criterion, granularity and scope; not both")
        if self.allocate and self.scope:
            raise ValueError(
                "give allocate or scope, not both: uniform is scope layer, and global is scope global"
            )
        return self


class Exclude(AxisValues):
    """One entry of `exclude:`; a method without options matches it with any options."""

    @field_validator(*METHOD_AXES, mode="wrap")
    @classmethod
    def _drop_defaults(cls, value: Value, check: ValidatorFunctionWrapHandler) -> tuple[str, ...]:
        texts: tuple[str, ...] = check(value)
        methods = [values.read_method(item, "method") for item in values.as_list(value)]
        pairs = zip(texts, methods, strict=True)
        return tuple(text if options else method_name(text) for text, (_, options) in pairs)

    @model_validator(mode="after")
    def _check_not_empty(self) -> Exclude:
        if not self.non_empty():
            raise ValueError("an empty entry excludes everything; name an axis, or leave it out")
        return self

    def matches(self, point: dict[str, Value]) -> bool:
        """Whether every axis that both have has, in `point`, one of the entry's values."""
        choices = self.non_empty().items()
        return all(_contains(choice, point[axis]) for axis, choice in choices if axis in point)


def _contains(choice: Choice, value: Value) -> bool:
    if isinstance(choice, Range):
        return choice.contains(value)
    return value in choice or (isinstance(value, str) and method_name(value) in choice)


AXIS_NAMES = tuple(field.alias or name for name, field in AxisValues.model_fields.items())
AxisName = Annotated[str, one_of("axis", AXIS_NAMES)]

ON_TEST_IMAGES = ("accuracy", "top5", "loss")
OBJECTIVE_NAMES = tuple(
    f"final/{field.name}" for field in fields(Measurement) if field.name not in ON_TEST_IMAGES
)
DEFAULT_OBJECTIVE = "final/val_accuracy"
MAX_TRIALS = 10_000
Direction = Literal["max", "min"]


def _check_metric(kind: str, name: str) -> None:
    metric = name.removeprefix("final/")
    if metric in ON_TEST_IMAGES:
        better = "final/val_loss" if metric == "loss" else DEFAULT_OBJECTIVE
        raise ValueError(f"{name} is of the test images, by which nothing is chosen; take {better}")
    if name not in OBJECTIVE_NAMES:
        raise ValueError(unknown_name(kind, name, OBJECTIVE_NAMES))


def _check_objectives(objectives: Mapping[str, Direction]) -> Mapping[str, Direction]:
    if not objectives:
        raise ValueError(f"no objective is given; write {{{DEFAULT_OBJECTIVE}: max}}, or leave it out")
    for name in objectives:
        _check_metric("objective", name)
    return objectives


def _check_constraints(constraints: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in constraints.items():
        _check_metric("constraint", name)
        parse_constraint(name, text)
    return constraints


def _default_objectives() -> dict[str, Direction]:
    return {DEFAULT_OBJECTIVE: "max"}


Objectives = Annotated[dict[str, Direction], AfterValidator(_check_objectives)]
Constraints = Annotated[dict[str, str], AfterValidator(_check_constraints)]


class Search(StrictModel):
    """How points are found. `trials` is the number of points, each of which is run for every seed.

    The first `startup` points of tpe are random. `objectives`: metrics of the validation images or costs, and
    whether more or less is better; for `random` they decide which points are reported as the best.
    `constraints`: metric -> what it has to be, `"<= 50%"`; tpe looks for points that keep to them, and
    the best points do. `seed` is the sampler's.
    """

    method: Literal["grid", "random", "tpe"] = "grid"
    trials: Annotated[Integer, Field(ge=1, le=MAX_TRIALS)] | None = None
    objectives: Objectives = Field(default_factory=_default_objectives)
    constraints: Constraints = Field(default_factory=dict)
    seed: Seed = 0
    startup: Annotated[Integer, Field(ge=0, le=MAX_TRIALS)] = 10

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(parse_constraint(name, text) for name, text in self.constraints.items())

    @property
    def points(self) -> int:
        """The number of points to find; 0 for a grid, whose axes decide."""
        return self.trials or 0

    @model_validator(mode="after")
    def _check_method(self) -> Search:
        keys = sorted(self.model_fields_set - {"method"})
        if self.method == "grid" and keys:
            raise ValueError(f"a grid has no {' and no '.join(keys)}: that is for random and tpe")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"{self.method} needs a number of points: trials: 60")
        if self.method != "tpe" and "startup" in keys:
            raise ValueError("startup is for tpe: random draws every point at random")
        return self
