"""Preparations: training that makes a network ready to be pruned, before the first round."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.lengths import Length, epochs_of
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.stages import train_more
from orchestrator.trial.structure import channels_of
from pruning import group_lasso as regularization
from pruning.hyperparameters import Between
from pruning.registry import Registry

preparations = Registry("preparation", positional=("context", "state"))


@preparations.register(summary="nothing")
def none(context: TrialContext, state: NetworkState) -> NetworkState:
    """Return the state as it is."""
    return state


def _check_group_lasso(*, epochs: int | str, **lasso: object) -> None:
    regularization.regularizers.get({"method": "group_lasso", **lasso})


@preparations.register(
    summary="train on with a penalty that empties whole groups",
    paper="Wen et al., SSL, NeurIPS 2016",
    check=_check_group_lasso,
    channels=True,
)
def group_lasso(
    context: TrialContext,
    state: NetworkState,
    *,
    kind: str = "group",
    strength: Annotated[float, Between(0, open_high=True)] = 1e-4,
    mode: str = "proximal",
    group_scale: str = "sqrt",
    warmup: Annotated[float, Between(0, 1)] = 0.0,
    epochs: Length = "100%",
) -> NetworkState:
    """Train through the last `epochs` of the recipe once more, now with group lasso.

    `kind` is group, filter or channel; `mode` proximal or subgradient; `group_scale` sqrt or none. Groups
    that the proximal mode has emptied are exactly zero: `threshold(unit='absolute')` finds them.
    """
    recipe = context.config.train
    length = epochs_of(epochs, recipe)
    options = {"kind": kind, "strength": strength, "mode": mode, "group_scale": group_scale, "warmup": warmup}
    make_regularizer = regularization.regularizers.get({"method": "group_lasso", **options})

    def make_hooks(net: nn.Module) -> TrainingHooks:
        return TrainingHooks(regularizer=make_regularizer(net, groups=channels_of(context.architecture, ())))

    phase = TrainingPhase(length, start=max(0, recipe.epochs - length))
    # It learns from the labels alone, whatever the loss of recoveries is: no cost of a teacher is counted.
    context = replace(context, has_teacher=False)
    return train_more(context, state, phase, stage="group_lasso", round=0, make_hooks=make_hooks)
