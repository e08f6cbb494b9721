"""The schema of a space file: axes, training recipe, search and objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from orchestrator.config import Train, method_name
from orchestrator.errors import unknown_name
from orchestrator.space import hyperparameters, values
from orchestrator.space.hyperparameters import Options
from orchestrator.space.ranges import Choice, Range, Ranged
from orchestrator.space.types import (
    Amount,
    Augmentation,
    Axis,
    BatchSize,
    Check,
    Closed,
    Criterion,
    DatasetName,
    Distillation,
    Epochs,
    Granularity,
    LrSchedule,
    Model,
    Moment,
    Momentum,
    NotNegative,
    OneOf,
    Optimizer,
    Positive,
    Preparation,
    Recovery,
    Schedule,
    Scope,
    Seed,
    Starting,
    TechniqueName,
    WarmupEpochs,
    Whole,
)
from orchestrator.space.values import Value
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
    channels_last: bool = Train.channels_last


class AxisValues(Closed):
    """Values for each axis, or a range of numbers; empty where nothing is said of it."""

    model: Axis[Model] = ()
    dataset: Axis[DatasetName] = ()
    batch_size: Ranged[BatchSize] = ()
    technique: Axis[TechniqueName] = ()
    criterion: Axis[Criterion] = ()
    granularity: Axis[Granularity] = ()
    scope: Axis[Scope] = ()
    schedule: Axis[Schedule] = ()
    amount: Ranged[Amount] = ()
    recover: Axis[Recovery] = ()
    when: Axis[Moment] = ()
    prepare: Axis[Preparation] = ()
    distill: Axis[Distillation] = ()
    control: Axis[Check] = ()
    start: Axis[Starting] = ()
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

    def given(self) -> dict[str, Choice]:
        """The values of every axis that has some, by its name in a file."""
        named = {field.alias or name: name for name, field in AxisValues.model_fields.items()}
        found: dict[str, Choice] = {axis: getattr(self, name) for axis, name in named.items()}
        return {axis: chosen for axis, chosen in found.items() if chosen}


class Axes(AxisValues):
    """`axes:`; what is left out has one value. `options`: those of methods, as `pq_index.gamma`."""

    model: Axis[Model]
    dataset: Axis[DatasetName]
    batch_size: Ranged[BatchSize] = (64,)
    schedule: Axis[Schedule] = ("one_shot",)
    when: Axis[Moment] = ("after",)
    prepare: Axis[Preparation] = ("none",)
    distill: Axis[Distillation] = ("none",)
    control: Axis[Check] = ("none",)
    amount: Ranged[Amount]
    seed: Axis[Seed] = (0,)
    options: Options = Field(default_factory=dict, alias="METHOD.OPTION")

    @model_validator(mode="before")
    @classmethod
    def _options_apart(cls, data: Any) -> Any:  # plain YAML, of any type
        return hyperparameters.split_hyperparameters(data)

    @model_validator(mode="after")
    def _one_way_to_name_a_technique(self) -> Axes:
        if self.technique and (self.criterion or self.granularity or self.scope):
            raise ValueError("give technique, or criterion, granularity and scope; not both")
        return self


class Exclude(AxisValues):
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


def _holds(chosen: Choice, value: Value) -> bool:
    if isinstance(chosen, Range):
        return chosen.holds(value)
    return value in chosen or (isinstance(value, str) and method_name(value) in chosen)


AXIS_NAMES = tuple(field.alias or name for name, field in AxisValues.model_fields.items())
AxisName = Annotated[str, OneOf("axis", AXIS_NAMES)]

ON_TEST_IMAGES = ("accuracy", "top5", "loss")
DRIVING = tuple(f"final/{field.name}" for field in fields(Measurement) if field.name not in ON_TEST_IMAGES)
DEFAULT = "final/val_accuracy"
MAX_TRIALS = 10_000
Direction = Literal["max", "min"]


def _check_names(objectives: Mapping[str, Direction]) -> Mapping[str, Direction]:
    if not objectives:
        raise ValueError(f"no objective is given; write {{{DEFAULT}: max}}, or leave it out")
    for name in objectives:
        plain = name.removeprefix("final/")
        if plain in ON_TEST_IMAGES:
            better = "final/val_loss" if plain == "loss" else DEFAULT
            raise ValueError(f"{name} is of the test images, by which nothing is chosen; take {better}")
        if name not in DRIVING:
            raise ValueError(unknown_name("objective", name, DRIVING))
    return objectives


def _default() -> dict[str, Direction]:
    return {DEFAULT: "max"}


Objectives = Annotated[dict[str, Direction], AfterValidator(_check_names)]


class Search(Closed):
    """`trials` counts points, each run for every seed; the first `startup` of tpe are drawn at random.

    `objectives`: final metrics of validation images and costs, and which way is better; for `random`, too,
    which points are shown as the best. `seed` is that of the sampler.
    """

    method: Literal["grid", "random", "tpe"] = "grid"
    trials: Annotated[Whole, Field(ge=1, le=MAX_TRIALS)] | None = None
    objectives: Objectives = Field(default_factory=_default)
    seed: Seed = 0
    startup: Annotated[Whole, Field(ge=0, le=MAX_TRIALS)] = 10

    @property
    def points(self) -> int:
        """How many points a search is to find; 0 for a grid, which has its own."""
        return self.trials or 0

    @model_validator(mode="after")
    def _fitting(self) -> Search:
        given = sorted(self.model_fields_set - {"method"})
        if self.method == "grid" and given:
            raise ValueError(f"a grid has no {' and no '.join(given)}: that is for random and tpe")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"{self.method} needs a number of points: trials: 60")
        if self.method != "tpe" and "startup" in given:
            raise ValueError("startup is for tpe: random draws every point at random")
        return self
