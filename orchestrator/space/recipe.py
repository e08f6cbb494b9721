"""`train:` of a space file: the fields of a recipe, or a named one with fields of its own.

Named recipes are published trainings as they stand in their papers. Their batch size is that of a space that
names the recipe and no batch size of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
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

FIELD = "recipe"


@dataclass(frozen=True)
class NamedRecipe:
    """A published recipe. `note` says what of the paper is written otherwise here."""

    train: Train
    batch_size: int
    about: str
    paper: str
    note: str


# Section 3: SGD with Nesterov momentum 0.9, weight decay 0.0005, mini-batch 128, rate 0.1 times 0.2 at
# epochs 60, 120 and 160 of 200; flips and crops from images padded by 4 pixels.
WIDE_RESNET = Train(
    epochs=200,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="step(milestones=['30%', '60%', '80%'], factor=0.2)",
    augment="crop_flip",
)
RECIPES = {
    # Section 4.2: mini-batch 128, weight decay 0.0001, momentum 0.9, rate 0.1 divided by 10 at 32k and 48k
    # of 64k iterations, on 45k of the 50k images; 4 pixels padded, a random crop or its flip.
    "resnet_cifar": NamedRecipe(
        Train(
            epochs=182,
            optimizer="sgd",
            lr=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            augment="crop_flip",
        ),
        batch_size=128,
        about="the ResNets of CIFAR-10",
        paper="He et al., Deep Residual Learning, CVPR 2016, section 4.2",
        note=(
            "64k iterations at batches of 128 are 182 epochs of 45,000 images; the rate falls to a tenth at "
            "half of them (32k) and again at three quarters (48k). ResNet-110 there begins at 0.01 until it "
            "learns: warmup_epochs: 1 stands in for that."
        ),
    ),
    "wide_resnet_cifar": NamedRecipe(
        WIDE_RESNET,
        batch_size=128,
        about="the wide ResNets of CIFAR-10 and CIFAR-100",
        paper="Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, section 3",
        note="The paper pads by reflection, here zeros come in from outside.",
    ),
    # The recipe of Wide-ResNet-28-10, with a cutout of 16x16 on CIFAR-10.
    "cutout_cifar10": NamedRecipe(
        replace(WIDE_RESNET, augment="crop_flip + cutout(size=16)"),
        batch_size=128,
        about="wide ResNets with cutout on CIFAR-10",
        paper="DeVries & Taylor, Improved Regularization of CNNs with Cutout, 2017",
        note="As wide_resnet_cifar, with squares of 16 pixels cut out.",
    ),
}


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
