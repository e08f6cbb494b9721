"""Configurations of dense trainings and trials.

The key of a dense training has no field of pruning: all techniques and amounts of one (model, data set, batch
size, recipe, seed) share one training.

Methods are written in canonical text, `finetune(epochs=1, lr=1.0)`: every option, in the order of its
definition, so that equal configurations have equal text. An option that was added later is left out where it
has its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import ceil
from typing import Any, Literal

from orchestrator.keys import (
    ADDED_LATER,
    GPU_VERSION,
    OTHER_AMOUNTS,
    non_default_numerics,
    non_default_recipe,
    stage_key,
)
from pruning.user_code import own_code

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
When = Literal["after", "init", "during"]
Control = Literal["none", "shuffle", "invert"]
Start = Literal["scratch", "weights", "masked"]
Json = Any  # whatever json can write

# Images of one forward and backward pass; larger batches accumulate gradients. A library's
# models share one number.
MICRO_BATCH = {"slp": 65_536, "mlp": 16_384, "cnn": 2_048, "densenet121": 128}
MICRO_BATCH |= {"resnet": 512, "resnet50": 64, "wide_resnet": 128, "torchvision": 64, "timm": 64}
DEFAULT_MICRO_BATCH = 256
MOST_DEVICES = 64  # that share each batch of a training


@dataclass(frozen=True)
class Train:
    """The recipe of a dense training, from which recoveries derive theirs; `lr` is the peak.

    `schedule` is that of the learning rate. `mixup` is the alpha of its Beta distribution, `ema` the decay of
    the moving average of the weights, which is then the network: what is evaluated, pruned and stored.
    `channels_last` is a memory format of images and filters: faster convolutions, with other rounding.
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
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0


@dataclass(frozen=True)
class Prune:
    """How a network is pruned: scores, what is removed, what competes, and how much at each round.

    `control` is a sanity check of Frankle et al. (2021): `shuffle` permutes each layer's mask, `invert`
    removes the highest scores. `layer_amounts` are the amounts of the layers by name, where these differ:
    then `amount` is their mean, weighted by numbers of weights, and `amount_label` their text in the space,
    for tables alone: both are no part of the key. `limits` are what may be left, by quantity, in counts: then
    `amount` is the largest part of a quantity that is to go, and no part of the key either. Of every group of
    units a multiple of `round_to` is left.
    """

    criterion: str
    granularity: str
    scope: str
    schedule: str
    amount: float
    protect: tuple[str, ...] = ()
    control: Control = "none"
    layer_amounts: tuple[tuple[str, float], ...] = ()
    amount_label: str = ""
    limits: tuple[tuple[str, int], ...] = ()
    round_to: int = 1


@dataclass(frozen=True)
class Numerics:
    """What else a result depends on to the last bit.

    `tf32` lets a GPU round the factors of products; `fast` lets it choose kernels by their time, and those
    that are not deterministic. With `compile` networks are trained as `torch.compile` makes them. Each batch
    of a training is shared by so many `devices`; with `sync_batch_norm` batch norms take the statistics of
    all devices' images, else each those of its own.
    """

    device: Device = "cpu"
    precision: Precision = "fp32"
    threads: int = 1
    micro_batch: int = DEFAULT_MICRO_BATCH
    tf32: bool = False
    fast: bool = False
    compile: bool = False
    devices: int = 1
    sync_batch_norm: bool = False

    def norm_images(self, batch_size: int) -> int:
        """Return over how many images, at most, batch norms take their statistics of a batch."""
        devices = self.devices if batch_size >= 2 * self.devices else 1
        part = ceil(batch_size / devices)
        images = ceil(part / ceil(part / self.micro_batch))
        return min(batch_size, images * devices) if self.sync_batch_norm else images


@dataclass(frozen=True)
class DenseConfig:
    """A dense training. `batch_size` is the effective one, never above the training set.

    `start`: from random weights (scratch), from those of a source model (weights), or from its weights under
    its masks (masked). `ancestor_sha256` is that of the source model's manifest, and so of its content.
    `data_sha256` is the digest of the data set as it is loaded, "" where it could not be read. `dense_code`
    has the source hashes of other packages' models and data sets, and the versions of packages that build the
    network: `lab=<hash>, torchvision==0.25.0`.
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

    def __hash__(self) -> int:
        return hash(self._cached_key)  # found once; a plan of 100,000 trials looks each of them up ten times

    def key(self) -> str:
        return self._cached_key

    @cached_property
    def _cached_key(self) -> str:
        content = non_default_fields(self)
        if self.numerics.device != "cpu":
            content["gpu_version"] = GPU_VERSION
        return stage_key("dense", content)


@dataclass(frozen=True)
class TrialConfig:
    """A trial: a dense network, how it is pruned, and how it recovers.

    `technique` is a label for tables and no part of the key. `when`: prune after the dense training, before
    it (init) or during it. `prepare` trains the network for pruning first; `distill` lets every recovery
    learn from the dense network. `trial_code` has the source hashes of other packages' methods.
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
        names = ("recover", "when", "prepare", "distill", "trial_code")
        fields_of_trial = {name: getattr(self, name) for name in names}
        prune = {name: value for name, value in vars(self.prune).items() if name not in OTHER_AMOUNTS}
        if self.prune.layer_amounts:
            prune["amount"] = self.prune.layer_amounts
        if self.prune.limits:
            prune["amount"] = {"at_most": dict(self.prune.limits)}
        if self.prune.round_to == 1:
            del prune["round_to"]
        return stage_key("trial", {"parent": self.dense.key(), "prune": prune, **fields_of_trial})

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> TrialConfig:
        amounts = tuple((layer, amount) for layer, amount in data["prune"].get("layer_amounts", ()))
        protect = tuple(data["prune"]["protect"])
        limits = tuple((quantity, limit) for quantity, limit in data["prune"].get("limits", ()))
        texts = {"protect": protect, "layer_amounts": amounts, "limits": limits}
        prune = Prune(**{**data["prune"], **texts})
        return cls(**{**data, "dense": dense_from_json(data["dense"]), "prune": prune})


def dense_from_json(data: Mapping[str, Json]) -> DenseConfig:
    return DenseConfig(**{**data, "train": Train(**data["train"]), "numerics": Numerics(**data["numerics"])})


def micro_batch_of(model: str) -> int:
    """Return the images per pass; by the model's name alone, so that planning builds no network."""
    return MICRO_BATCH.get(method_name(model).partition(".")[0], DEFAULT_MICRO_BATCH)


def method_text(name: str, options: Mapping[str, Json]) -> str:
    """Return the text of a method: every option, in the order of the mapping."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def method_name(text: str) -> str:
    """Return the name in the text of a method, as people read it."""
    return own_code.shown(text.partition("(")[0])


def flat(config: DenseConfig) -> Iterator[tuple[str, Json]]:
    """Yield (dotted name, value) of every field, but not of later fields that have their default."""
    for name, value in non_default_fields(config).items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value


def non_default_fields(config: DenseConfig) -> dict[str, Json]:
    """Return all fields but those of ADDED_LATER that have their default, so that old keys stay."""
    values = {name: value for name, value in asdict(config).items() if ADDED_LATER.get(name, ...) != value}
    parts = {
        "train": non_default_recipe(values["train"]),
        "numerics": non_default_numerics(values["numerics"]),
    }
    return {**values, **parts}


TRAIN_FIELDS = tuple(field.name for field in fields(Train))

# Sorted. Seeds are never compared with each other. Trials of other amounts and schedules are not equally
# sparse at a round, so they are compared only where a space leaves these axes out of `stop_within`.
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
    """An early-stopping rule: the pruner's canonical text, and the axes that compared trials share."""

    text: str
    group_by: tuple[str, ...] = DEFAULT_GROUP_BY

    def __str__(self) -> str:
        """Return the text by which a stopped trial is found: another rule might not have stopped it."""
        return (
            self.text
            if self.group_by == DEFAULT_GROUP_BY
            else f"{self.text} within {', '.join(self.group_by) or 'all'}"
        )
