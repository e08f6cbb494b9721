"""What the stages of a trial share, and the state between two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig
from orchestrator.data.loading import Dataset
from orchestrator.system.determinism import seeded
from orchestrator.training.loop import EpochRecord, Loss, TrainingCheckpointer, cross_entropy
from orchestrator.trial.metrics import Profile, profile
from orchestrator.trial.structure import Built, channels_of, flow_of
from orchestrator.trial.weight_transfer import (
    SourceModel,
    TensorMapping,
    classes_of,
    match_tensors,
    transfer_weights,
)
from pruning.masking import Group, Masks

Report = Callable[[str, int, EpochRecord], None]


@dataclass(frozen=True, eq=False)
class NetworkState:
    """A network between two stages: its tensors, its masks, and what they have cost since init.

    `micro_batch` is below the planned one where memory ran out: such a state promises no equal bits.
    """

    weights: dict[str, Tensor]
    masks: Masks = field(default_factory=dict)
    epochs: int = 0
    train_seconds: float = 0.0
    train_flops: int = 0
    history: tuple[EpochRecord, ...] = ()
    micro_batch: int = 0


@dataclass(frozen=True, eq=False)
class TrialContext:
    """What all stages of one trial share: the configuration, the images, the cost of one of them.

    `reference` is the trained dense network, once there is one; `loss` is what recoveries minimise,
    and `taught` says that it runs the dense network as well. In `book` every training is written down.
    `ancestor` is what the dense training starts from, unless that is a draw.
    """

    config: DenseConfig
    data: Dataset
    cost: Profile
    report: Report | None = None
    reference: NetworkState | None = None
    loss: Loss = cross_entropy
    has_teacher: bool = False
    checkpointer: TrainingCheckpointer | None = None
    source_model: SourceModel | None = None

    @property
    def built(self) -> Built:
        """What the network is built from."""
        return self.config.model, self.data.input_shape, self.data.num_classes

    def build(self, *, draw: str = "init", round: int = 0) -> nn.Module:
        """A network with the trial's initial weights, on the data's device."""
        with seeded(seed_for(self.config.seed, draw, round)):
            return self._network().to(self.data.train.images.device)

    def seeded(self, stage: str, round: int) -> AbstractContextManager[None]:
        """torch's global generators under a seed of this stage and round; as they were afterwards."""
        seed = seed_for(self.config.seed, f"{stage}/global", round)
        return seeded(seed, self.data.train.images.device)

    def _network(self) -> nn.Module:
        return models.build(
            self.config.model, input_shape=self.data.input_shape, num_classes=self.data.num_classes
        )

    def inherited(self, drawn: dict[str, Tensor]) -> tuple[dict[str, Tensor], Masks]:
        """The ancestor's weights and masks in place of those drawn; RuntimeError where there is none."""
        if self.source_model is None:
            raise RuntimeError(f"a training starts from {self.config.start}, and no ancestor was given")
        outline = self.meta_module()
        parameters = {name: tuple(one.shape) for name, one in outline.named_parameters()}
        found = fit_of(self, outline, self.source_model)
        return transfer_weights(drawn, self.source_model, found, parameters=parameters)

    def trained(self) -> NetworkState:
        """The dense network; RuntimeError before there is one."""
        if self.reference is None:
            raise RuntimeError("the dense network is asked for before it was trained")
        return self.reference

    def build_module(self, state: NetworkState) -> nn.Module:
        """The state's network, on the data's device."""
        # Built without storage: nothing is drawn only to be overwritten; `to_empty` imports half of torch.
        net, device = self.meta_module(), self.data.train.images.device
        copies = {name: one.to(device, copy=True).contiguous() for name, one in state.weights.items()}
        net.load_state_dict(copies, assign=True)
        if self.config.train.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        return net

    def view_module(self, state: NetworkState) -> nn.Module:
        """A network, on the CPU, of the state's own tensors, to be looked at and left as it is."""
        net = self.meta_module()
        net.load_state_dict(state.weights, assign=True)
        return net

    def meta_module(self) -> nn.Module:
        """The network without storage: names, shapes and types."""
        with torch.device("meta"):
            return self._network()


def fit_of(context: TrialContext, outline: nn.Module, ancestor: SourceModel) -> TensorMapping:
    """How the context's network takes an ancestor's tensors. ValueError for another model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in ancestor.weights.items()}
    ours = classes_of(context.config.dataset)
    return match_tensors(
        outline, shapes, flow=flow_of(context.built), source_classes=ancestor.classes, target_classes=ours
    )


def seed_for(seed: int, stage: str, round: int) -> int:
    """A seed for one stage, unrelated to those of its neighbours."""
    digest = hashlib.sha256(f"{seed}/{stage}/{round}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_context(
    config: DenseConfig, data: Dataset, *, report: Report | None = None, ancestor: SourceModel | None = None
) -> TrialContext:
    """The context of a configuration; one image's cost is counted once in a process for each model."""
    cost = _cost(config.model, data.input_shape, data.num_classes)
    return TrialContext(config, data, cost, report, source_model=ancestor)


def channel_groups(context: TrialContext, protect: tuple[str, ...] = ()) -> tuple[Group, ...]:
    """The channel groups of the context's model; ValueError where a channel cannot be cut out exactly."""
    return channels_of(context.built, protect)


@lru_cache(maxsize=16)
def _cost(model: str, input_shape: tuple[int, int, int], num_classes: int) -> Profile:
    with seeded(0):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        return profile(net, input_shape)
