"""What the stages of a trial share, and the state of a network between two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.loading import Dataset
from orchestrator.system.determinism import seeded
from orchestrator.training.loop import EpochRecord, RunTraining, TrainingCheckpointer, run_training
from orchestrator.training.losses import Loss, cross_entropy
from orchestrator.trial.metrics import Profile, profile
from orchestrator.trial.structure import Architecture, flow_of, groups_of
from orchestrator.trial.unsaved_tensors import build_to_load
from orchestrator.trial.weight_transfer import (
    SourceModel,
    TensorMapping,
    classes_of,
    match_tensors,
    transfer_weights,
)
from pruning.allocation import LossCurve
from pruning.masking import Group, Masks

OnStageEpoch = Callable[[str, int, EpochRecord], None]  # (stage, epoch from 1, its record)


@dataclass(frozen=True, eq=False)
class NetworkState:
    """A network between two stages: its tensors, its masks, and what they have cost since initialisation.

    `train_flops_effective` leaves out what was dead by the masks of the time. `micro_batch` is below the
    planned one where memory ran out: such a state promises no equal bits.
    """

    weights: dict[str, Tensor]
    masks: Masks = field(default_factory=dict)
    epochs: int = 0
    train_seconds: float = 0.0
    train_flops: int = 0
    train_flops_effective: int = 0
    history: tuple[EpochRecord, ...] = ()
    micro_batch: int = 0


@dataclass(frozen=True, eq=False)
class TrialContext:
    """What all stages of one trial share: the configuration, the data, the cost of one image.

    `config` is that of the dense training, `trial` None where that is all there is. `dense_state` is the
    trained dense network, once there is one. Recoveries minimise `loss`; `has_teacher` says that it runs the
    dense network as well. Every training is recorded in the `checkpointer`. The dense training starts from
    `source_model`, if there is one. `curves` are the losses that a trial with scope `sensitivity` goes by.
    `run_training` runs each training: by itself, or with those of other trials as one. `earlier_weights` are
    those of the dense network after some epochs, once they have been asked for.
    """

    config: DenseConfig
    data: Dataset
    cost: Profile
    trial: TrialConfig | None = None
    on_epoch: OnStageEpoch | None = None
    dense_state: NetworkState | None = None
    loss: Loss = cross_entropy
    has_teacher: bool = False
    checkpointer: TrainingCheckpointer | None = None
    source_model: SourceModel | None = None
    curves: Mapping[str, LossCurve] | None = None
    run_training: RunTraining = run_training
    earlier_weights: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """What the network is built from."""
        return self.config.model, self.data.input_shape, self.data.num_classes

    @property
    def pruned_trial(self) -> TrialConfig:
        """The configuration of the trial. RuntimeError in a dense training."""
        if self.trial is None:
            raise RuntimeError("a dense training is not pruned")
        return self.trial

    @cached_property
    def groups(self) -> tuple[Group, ...] | None:
        """What the trial's granularity removes together; None for single weights and a dense training.

        ValueError where a channel cannot be cut out exactly.
        """
        if self.trial is None:
            return None
        return groups_of(self.architecture, self.trial.prune.granularity, self.trial.prune.protect)

    def build(self, *, draw: str = "init", round: int = 0) -> nn.Module:
        """Return a network with the trial's initial weights, on the data's device."""
        with seeded(seed_for(self.config.seed, draw, round)):
            return self._network().to(self.data.train.images.device)

    def seeded(self, stage: str, round: int) -> AbstractContextManager[None]:
        """Seed torch's global generators for a stage and round; on exit they are as they were before."""
        seed = seed_for(self.config.seed, f"{stage}/global", round)
        return seeded(seed, self.data.train.images.device)

    def _network(self) -> nn.Module:
        return models.build(
            self.config.model, input_shape=self.data.input_shape, num_classes=self.data.num_classes
        )

    def inherit(self, initial: dict[str, Tensor]) -> tuple[dict[str, Tensor], Masks]:
        """Return the source model's weights in place of `initial` ones, and its masks.

        RuntimeError where there is no source model.
        """
        if self.source_model is None:
            raise RuntimeError(f"a training starts from {self.config.start}, and no source model was given")
        parameters = {
            name: tuple(parameter.shape) for name, parameter in self.meta_module().named_parameters()
        }
        mapping = self.match(self.source_model)
        return transfer_weights(initial, self.source_model, mapping, parameters=parameters)

    def match(self, source: SourceModel) -> TensorMapping:
        """Return how the network takes the tensors of a source model. ValueError for another model."""
        return match_tensors(
            self.meta_module(),
            {name: tuple(tensor.shape) for name, tensor in source.weights.items()},
            flow=flow_of(self.architecture),
            source_classes=source.classes,
            target_classes=classes_of(self.config.dataset),
        )

    def trained_dense(self) -> NetworkState:
        """Return the dense network. RuntimeError before it is trained."""
        if self.dense_state is None:
            raise RuntimeError("the dense network has not been trained yet")
        return self.dense_state

    def build_module(self, state: NetworkState) -> nn.Module:
        """Return a network with a copy of the state's tensors, on the data's device."""
        # Built without storage where it can be; `to_empty` imports half of torch.
        net = build_to_load(self._network, build_with_values=self.build)
        device = self.data.train.images.device
        copies = {name: tensor.to(device, copy=True).contiguous() for name, tensor in state.weights.items()}
        net.load_state_dict(copies, assign=True)
        if self.config.train.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        return net

    def view_module(self, state: NetworkState) -> nn.Module:
        """Return a network on the CPU that shares the state's tensors: to be read, not changed."""
        net = build_to_load(self._network, build_with_values=lambda: self.build().cpu())
        net.load_state_dict(state.weights, assign=True)
        return net

    def meta_module(self) -> nn.Module:
        """Return the network without storage: names, shapes and types."""
        with torch.device("meta"):
            return self._network()


def seed_for(seed: int, stage: str, round: int) -> int:
    """Return the seed of one stage and round, in [0, 2^63), unrelated to those of its neighbours."""
    digest = hashlib.sha256(f"{seed}/{stage}/{round}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_context(
    config: DenseConfig | TrialConfig,
    data: Dataset,
    *,
    on_epoch: OnStageEpoch | None = None,
    source_model: SourceModel | None = None,
    run_training: RunTraining = run_training,
) -> TrialContext:
    """Return the context of a dense training or a trial.

    The cost of one image is counted once in a process for each architecture.
    """
    trial = config if isinstance(config, TrialConfig) else None
    dense = config.dense if isinstance(config, TrialConfig) else config
    cost = _cost(dense.model, data.input_shape, data.num_classes)
    return TrialContext(
        dense, data, cost, trial, on_epoch, source_model=source_model, run_training=run_training
    )


@lru_cache(maxsize=16)
def _cost(model: str, input_shape: tuple[int, int, int], num_classes: int) -> Profile:
    with seeded(0):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        return profile(net, input_shape)
