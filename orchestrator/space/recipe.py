"""`train:` of a space file: the fields of a recipe, or a named one with fields of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetPydanticSchema, model_validator

from orchestrator.config import Train
from orchestrator.space.types import (
    Augmentation,
    Epochs,
    LrSchedule,
    Momentum,
    NotNegative,
    Optimizer,
    Positive,
    StrictModel,
    WarmupEpochs,
    one_of,
)
from orchestrator.space.values import Value
from orchestrator.training.recipes import RECIPES, NamedRecipe

FIELD = "recipe"
RecipeName = Annotated[str, one_of("recipe", RECIPES)]


class Recipe(StrictModel):
    """`train:`, with the defaults of config.Train, or of the named recipe, which is no field of its own."""

    recipe: RecipeName = Field(default="", exclude=True)
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
    label_smoothing: Momentum = Train.label_smoothing
    mixup: NotNegative = Train.mixup
    ema: Momentum = Train.ema

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:  # plain YAML, of any type
        named = named_recipe(data)
        return data if named is None else {**changed_fields(named.train), **data}


# A recipe's name stands for a mapping with that name.
TrainKey = Annotated[
    Recipe,
    BeforeValidator(lambda value: as_mapping(value)),
    GetPydanticSchema(
        get_pydantic_json_schema=lambda schema, handler: {
            "anyOf": [{"type": "string", "enum": list(RECIPES)}, handler(schema)]
        }
    ),
]


def as_mapping(value: Value) -> Value:
    """Return a recipe's name as the mapping that it stands for, anything else as it is."""
    return {FIELD: value} if isinstance(value, str) else value


def named_recipe(value: Value) -> NamedRecipe | None:
    """Return the recipe that `train:` names; None where it names none, or none that is known."""
    mapping = as_mapping(value)
    name = mapping.get(FIELD) if isinstance(mapping, Mapping) else None
    return RECIPES.get(name) if isinstance(name, str) else None


def with_batch_size(data: Any) -> Any:  # plain YAML, of any type
    """Return a space with the batch size of its named recipe, where it has an axis of none."""
    if not isinstance(data, Mapping) or not isinstance(axes := data.get("axes"), Mapping):
        return data
    named = named_recipe(data.get("train"))
    if "batch_size" in axes or named is None:
        return data
    return {**data, "axes": {**axes, "batch_size": [named.batch_size]}}


def changed_fields(train: Train) -> dict[str, Any]:
    """Return the fields of a recipe that differ from the defaults."""
    defaults = asdict(Train())
    return {
        field.name: getattr(train, field.name)
        for field in fields(Train)
        if getattr(train, field.name) != defaults[field.name]
    }
