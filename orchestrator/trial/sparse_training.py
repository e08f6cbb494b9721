"""Sparse training: recoveries that train an untrained network while masks change, at a constant count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from orchestrator.config import Train
from orchestrator.data.batches import count_batches
from orchestrator.errors import DivergedError
from orchestrator.training.checkpoint_packing import Checkpoint
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext, seed_for
from orchestrator.trial.metrics import dense_gradient_flops
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.stages import train_more
from pruning.hyperparameters import Between, Converter
from pruning.masking import Masks
from pruning.regrowth import Regrowth, cosine_fraction, regrow_at_random, regrow_by_gradient

EPOCH = "epoch"


def parse_interval(value: object) -> int | str:
    """Return the steps between two updates of masks, or `epoch`. ValueError for anything else."""
    if value == EPOCH:
        return EPOCH
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(
        f"{value!r:.80} is no interval; give a number of optimizer steps, such as 100, or 'epoch'"
    )


Interval = Annotated[int | str, Converter(parse_interval, "optimizer steps such as 100, or 'epoch'")]
Fraction = Annotated[float, Between(0.0, 1.0)]


@dataclass(frozen=True)
class MaskUpdates:
    """When masks change during a training of `end` steps or more, and how.

    An update is due at every `interval`-th step before `end`. With `replaces_step` it takes the place of the
    optimizer's step, and sees the gradient by every weight; else it follows the step. `regrow` takes the
    weight, gradient and mask of a layer, on the CPU, the steps so far, and a generator seeded for the update.
    """

    regrow: Callable[[Tensor, Tensor, Tensor, int, Generator], Regrowth]
    interval: int
    end: float
    replaces_step: bool

    def is_due(self, step: int) -> bool:
        """Whether masks change after so many steps."""
        return step % self.interval == 0 and step < self.end


def _all_epochs(train: Train, **options: object) -> int:
    return train.epochs


@recoveries.register(
    "set",
    summary="sparse training in which random weights replace the smallest",
    paper="Mocanu et al., Nature Communications 2018",
    length=_all_epochs,
    retrains=True,
    regrows=True,
)
def sparse_evolutionary_training(
    context: TrialContext,
    state: NetworkState,
    *,
    round: int,
    interval: Interval = EPOCH,
    drop_fraction: Fraction = 0.3,
    until: Fraction = 1.0,
) -> NetworkState:
    """Train the whole recipe from the initial weights, and replace weights after every `interval` steps.

    In each layer the `drop_fraction` of the positive weights and that of the negative ones, those closest to
    zero, are dropped, and as many grow in random places, from zero. It ends at the part `until` of the
    training; no update follows the last step. A layer without a dead weight stays as it is.
    """

    def regrow(weight: Tensor, gradient: Tensor, alive: Tensor, step: int, generator: Generator) -> Regrowth:
        return regrow_at_random(weight, alive, fraction=drop_fraction, generator=generator)

    per_epoch, steps = _steps(context)
    updates = MaskUpdates(
        regrow, per_epoch if interval == EPOCH else int(interval), until * steps, replaces_step=False
    )
    return _train(context, state, updates, stage="set", round=round)


@recoveries.register(
    summary="sparse training in which weights grow where the gradient is largest",
    paper="Evci et al., Rigging the Lottery, ICML 2020",
    length=_all_epochs,
    retrains=True,
    regrows=True,
)
def rigl(
    context: TrialContext,
    state: NetworkState,
    *,
    round: int,
    interval: Interval = 100,
    drop_fraction: Fraction = 0.3,
    until: Fraction = 0.75,
) -> NetworkState:
    """Train the whole recipe from the initial weights; every `interval`-th step replaces weights instead.

    At step t, from 0, each layer drops the part `drop_fraction` / 2 (1 + cos(pi t / T)) of its weights, the
    smallest, and as many grow, from zero, where the gradient of the batch is largest; T is the part `until`
    of all steps. An update takes the place of the optimizer's step. Scope `erk` has the densities of the
    paper. A layer without a dead weight stays as it is.
    """
    per_epoch, steps = _steps(context)
    end = until * steps

    def regrow(weight: Tensor, gradient: Tensor, alive: Tensor, step: int, generator: Generator) -> Regrowth:
        fraction = cosine_fraction(step, start=drop_fraction, end=end)
        return regrow_by_gradient(weight, gradient, alive, fraction=fraction)

    updates = MaskUpdates(regrow, per_epoch if interval == EPOCH else int(interval), end, replaces_step=True)
    return _train(context, state, updates, stage="rigl", round=round)


def _steps(context: TrialContext) -> tuple[int, int]:
    """Return the optimizer steps of an epoch and of the whole training."""
    per_epoch = count_batches(len(context.data.train), context.config.batch_size)
    return per_epoch, per_epoch * context.config.train.epochs


def _train(
    context: TrialContext, state: NetworkState, updates: MaskUpdates, *, stage: str, round: int
) -> NetworkState:
    if context.groups is not None:
        raise ValueError(
            f"{stage} drops and grows single weights, and whole units or channels are pruned here"
        )
    regrower = Regrower(state.masks, updates, seed_of=partial(seed_for, context.config.seed, f"{stage}/grow"))

    def make_hooks(net: nn.Module) -> TrainingHooks:
        regrower.reset()  # again, where memory ran out and the training starts anew
        step = partial(regrower.step, net)
        return TrainingHooks(loss=context.loss, stateful=regrower, optimizer_step=step)

    phase = TrainingPhase(context.config.train.epochs)
    trained = train_more(context, state, phase, stage=stage, round=round, make_hooks=make_hooks)
    # The count of each layer is constant: what the masks of the end skip, those of every step did.
    flops = dense_gradient_flops(context.cost, state.masks, regrower.dense_images)
    effective = trained.train_flops_effective + flops
    return replace(trained, masks=regrower.masks, train_flops_effective=effective)


class Regrower:
    """Change masks during a training; holds those in force, and the steps so far.

    `dense_images` counts the images of which the gradient by every weight was needed.
    """

    def __init__(self, masks: Masks, updates: MaskUpdates, *, seed_of: Callable[[int], int]) -> None:
        self.initial_masks, self.updates, self.seed_of = masks, updates, seed_of
        self.has_dead = not all(mask.all() for mask in masks.values())
        self.reset()

    def reset(self) -> None:
        """Return to the state before the first step."""
        self.masks: Masks = self.initial_masks
        self.steps = self.dense_images = 0

    def state_dict(self) -> Checkpoint:
        """Return what the next steps depend on."""
        return Checkpoint(dict(self.masks), {"steps": self.steps, "dense_images": self.dense_images})

    def load_state_dict(self, saved: Checkpoint) -> Masks:
        """Load what `state_dict` returned, and return the masks in force."""
        self.masks = dict(saved.tensors)
        self.steps, self.dense_images = saved.metadata["steps"], saved.metadata["dense_images"]
        return self.masks

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer, images: int) -> Masks | None:
        """Let the optimizer step, or update the masks, or both; return the masks if they have changed.

        DivergedError where weights or gradients are no numbers any more.
        """
        replaces_step = self.updates.replaces_step
        is_due = self.has_dead and self.updates.is_due(self.steps if replaces_step else self.steps + 1)
        if not (is_due and replaces_step):
            optimizer.step()
        if is_due:
            self._update(net, optimizer)
            self.dense_images += images * replaces_step
        self.steps += 1
        return self.masks if is_due else None

    @torch.no_grad()
    def _update(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change the masks, and set what grows to zero: its weight, and all that the optimizer remembers."""
        generator = torch.Generator().manual_seed(self.seed_of(self.steps))
        parameters, masks = dict(net.named_parameters()), {}
        for name, alive in self.masks.items():
            parameter = parameters[name]
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            try:
                layer = self.updates.regrow(parameter.cpu(), gradient.cpu(), alive, self.steps, generator)
            except ValueError as error:
                raise DivergedError(f"{name} after {self.steps} steps: {error}") from error
            masks[name], grown = layer.alive, layer.grown.to(parameter.device)
            remembered = optimizer.state.get(parameter, {}).values()
            for tensor in (parameter, *(each for each in remembered if each.shape == parameter.shape)):
                tensor.masked_fill_(grown, 0.0)
        self.masks = masks
