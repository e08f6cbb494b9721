"""What one trial is, typed and frozen, and the keys that its stages are known by.

A key is the SHA-256 of the canonical JSON of every field that a stage reads, defaults included, its
parent's key, and STAGE_VERSION. The dense key holds nothing of pruning: all techniques and amounts
of one (model, data set, batch size, recipe, seed) share one training.

Methods stand here as full text, `finetune(epochs=1, lr=1.0)`: every option, in the order of its
definition, so that equal configurations have equal text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
When = Literal["after", "init", "during"]
Control = Literal["none", "shuffle", "invert"]
Start = Literal["scratch", "weights", "masked"]
Json = Any  # what json can write

# Images that one forward and backward pass may hold; larger batches accumulate gradients.
MICRO_BATCH = {"slp": 65_536, "mlp": 16_384, "cnn": 2_048, "densenet121": 128}
MICRO_BATCH_OTHERS = 256


@dataclass(frozen=True)
class Train:
    """The recipe of a dense training; recoveries start from it. `lr` is the peak, `epochs` whole.

    `channels_last` is the order of images and filters in memory: faster convolutions, with other bits.
    """

    epochs: int = 10
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_epochs: int = 0
    clip_norm: float = 0.0
    augment: str = "none"
    channels_last: bool = False


@dataclass(frozen=True)
class Prune:
    """What is removed, by which score, among whom, and how much at each round.

    `control`, the sanity checks of Frankle et al. (2021): `shuffle` deals each layer's mask out anew,
    `invert` removes the highest scores.
    """

    criterion: str
    granularity: str
    scope: str
    schedule: str
    amount: float
    protect: tuple[str, ...] = ()
    control: Control = "none"


@dataclass(frozen=True)
class Numerics:
    """What else decides the bits of a result; `tf32` lets a GPU round the factors of products."""

    device: Device = "cpu"
    precision: Precision = "fp32"
    threads: int = 1
    micro_batch: int = MICRO_BATCH_OTHERS
    tf32: bool = False


@dataclass(frozen=True)
class DenseConfig:
    """One dense training. `batch_size` is the effective one, never above the training set.

    `start`: from a fresh draw, from an ancestor's weights, or from these under its masks, which stay.
    `ancestor_sha256` is that of the ancestor's manifest: its content, wherever it lies. `data_sha256` is the
    digest of the data set as it is loaded, empty where it was not there to be read. `dense_code` names the
    source, by its SHA-256, of what other packages bring (model, data set), and the version of a package from
    which the network is built: `lab=<hash>, torchvision==0.25.0`.
    """

    model: str
    dataset: str
    batch_size: int
    seed: int
    train: Train
    numerics: Numerics
    start: Start = "scratch"
    ancestor_sha256: str = ""
    data_sha256: str = ""
    dense_code: str = ""

    def key(self) -> str:
        return self._own_key

    @cached_property
    def _own_key(self) -> str:
        return _key("dense", non_default_fields(self))


@dataclass(frozen=True)
class TrialConfig:
    """One point of a space. `technique` is its label in tables and is no part of the key.

    `when`: prune after the dense training, before it (init) or in its course (during). `prepare`
    trains the network for pruning first; `distill` lets every recovery learn from the dense network.
    `trial_code` is as `dense_code`, of the methods: dense trainings do not depend on it.
    """

    dense: DenseConfig
    prune: Prune
    recover: str
    technique: str
    when: When = "after"
    prepare: str = "none"
    distill: str = "none"
    trial_code: str = ""

    def key(self) -> str:
        own = {"recover": self.recover, "when": self.when, "prepare": self.prepare, "distill": self.distill}
        own |= {"trial_code": self.trial_code}
        return _key("trial", {"parent": self.dense.key(), "prune": vars(self.prune), **own})

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> TrialConfig:
        prune = Prune(**{**data["prune"], "protect": tuple(data["prune"]["protect"])})
        return cls(**{**data, "dense": dense_from_json(data["dense"]), "prune": prune})


def dense_from_json(data: Mapping[str, Json]) -> DenseConfig:
    return DenseConfig(**{**data, "train": Train(**data["train"]), "numerics": Numerics(**data["numerics"])})


def micro_batch_of(model: str) -> int:
    """Images per pass, planned from the model's name alone so that planning needs no network."""
    return MICRO_BATCH.get(method_name(model), MICRO_BATCH_OTHERS)


def method_text(name: str, options: Mapping[str, Json]) -> str:
    """The full text form of a method: every option, in the order given."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def method_name(text: str) -> str:
    return text.partition("(")[0]


def flat(config: DenseConfig) -> Iterator[tuple[str, Json]]:
    """(dotted name, value) for every field; of transfer only where a training starts from an ancestor."""
    for name, value in non_default_fields(config).items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value


def non_default_fields(config: DenseConfig) -> dict[str, Json]:
    """All fields but those that came later and have their default: keys of before stay."""
    told = {name: value for name, value in asdict(config).items() if ADDED_LATER.get(name, ...) != value}
    return {**told, "train": non_default_recipe(told["train"])}


def non_default_recipe(recipe: Mapping[str, Json]) -> dict[str, Json]:
    """The same of a recipe's fields."""
    return {name: value for name, value in recipe.items() if ADDED_LATER.get(f"train.{name}", ...) != value}


def _key(stage: str, content: Mapping[str, Json]) -> str:
    record = {"stage": stage, "version": STAGE_VERSION, **content}
    return hashlib.sha256(_CANONICAL.encode(record).encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
ADDED_LATER: Mapping[str, Json] = {
    "start": "scratch",
    "ancestor_sha256": "",
    "data_sha256": "",
    "dense_code": "",
    "trial_code": "",
    "train.channels_last": False,
}
INGREDIENTS = ("data_sha256", "dense_code", "trial_code")  # what a plan finds out, and no space file says
TRAIN_FIELDS = tuple(field.name for field in fields(Train))

# Sorted; a seed competes with no other seed, whatever is said. What is not equally sparse at a round, as
# other amounts and schedules are not, is not compared unless a space says so.
DEFAULT_GROUP_BY = (
    "amount",
    "batch_size",
    "dataset",
    "model",
    "schedule",
    *sorted(f"train.{f}" for f in TRAIN_FIELDS),
)


@dataclass(frozen=True)
class EarlyStopping:
    """How trials are stopped: the pruner's full text, and the axes within which settings compete."""

    text: str
    group_by: tuple[str, ...] = DEFAULT_GROUP_BY

    def __str__(self) -> str:
        """What a stopped trial is known by: under another rule it may not have been stopped."""
        return (
            self.text
            if self.group_by == DEFAULT_GROUP_BY
            else f"{self.text} within {', '.join(self.group_by) or 'all'}"
        )


STAGE_VERSION = 2  # raise it when a stage's result changes for an unchanged configuration
