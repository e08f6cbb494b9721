"""The network that a training of a trial trains: the whole one, or the one whose removed units are cut out.

All that leaves a training has the shapes of the whole network: states, checkpoints, what is stored. Inside,
the optimizer and the average of the weights are those of the network that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from orchestrator.config import method_name
from orchestrator.training.loop import TrainerState
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.metrics import Profile, profile
from orchestrator.trial.structure import removable_of
from pruning.channels import shrink, shrink_masks
from pruning.cutting.positions import (
    all_masks,
    put_entries,
    remaining_entries,
    removed_positions,
    take_entries,
)
from pruning.masking import Masks


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network on the data's device, the masks that it is trained under, and the cost of one of its images.

    `entries` say where each of its numbers lies in the whole network, whose tensors are `whole`; both are
    empty where it is that network.
    """

    net: nn.Module
    masks: Masks
    cost: Profile
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)

    def widen(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of this network in the whole one's shapes: what was cut out is zero."""
        return put_entries(tensors, self.entries, like=self.whole) if self.entries else dict(tensors)

    def widen_state(self, state: TrainerState) -> TrainerState:
        """Return a training's state with the weights, and their average, in the whole network's shapes."""
        return replace(state, weights=self.widen(state.weights), average=self.widen(state.average))

    def narrow_state(self, state: TrainerState) -> TrainerState:
        """Return the state that `widen_state` was given."""
        return replace(state, weights=self._narrow(state.weights), average=self._narrow(state.average))

    def _narrow(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.entries or not tensors:
            return dict(tensors)
        # In this network's order, with what it alone has: the columns that a layer reads.
        own, narrowed = self.net.state_dict(), take_entries(tensors, self.entries)
        return {n: narrowed.get(n, own[n]) for n in own if n in narrowed or n not in self.entries}


def whole_network(context: TrialContext, state: NetworkState) -> TrainedNetwork:
    """Return the whole network of a state, under its masks."""
    return TrainedNetwork(context.build_module(state), state.masks, context.cost)


def cut_network(context: TrialContext, state: NetworkState) -> TrainedNetwork:
    """Return the network of a state without its removed units, channels or heads.

    Of a group that is removed as a whole one unit stays, masked, and so does all that cannot be cut out
    exactly; where these masks cannot be cut out at all it is the whole network. ValueError where single
    weights are pruned.
    """
    trial = context.pruned_trial
    if context.groups is None:
        raise ValueError(single_weights_conflict(trial.recover, trial.prune.granularity))
    groups = removable_of(context.architecture, trial.prune.granularity, trial.prune.protect)
    net, image = context.build_module(state), torch.zeros((2, *context.data.input_shape))
    removed = removed_positions(groups, all_masks(net, state.masks))
    if not removed:
        return TrainedNetwork(net, state.masks, context.cost)
    try:
        small = shrink(net, state.masks, image, groups=groups)
    except ValueError:  # what remains reads something else than zeros, as behind a sigmoid: nothing is cut
        return TrainedNetwork(net, state.masks, context.cost)
    if context.config.train.channels_last:  # a selection of channels has forgotten it
        small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    masks = shrink_masks(state.masks, groups, net=net)
    cost = profile(small, context.data.input_shape)
    return TrainedNetwork(small, masks, cost, remaining_entries(net, removed), state.weights)


def single_weights_conflict(recover: str, granularity: str) -> str:
    """Return why a recovery cannot train on the cut network where single weights are pruned."""
    return (
        f"recover {method_name(recover)}(on='cut') trains the network without its removed units: it needs "
        f"granularity unit, channel or head, and {method_name(granularity)} removes single weights; leave on "
        "out, or give on='masked'"
    )
