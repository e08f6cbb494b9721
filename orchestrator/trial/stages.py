"""The stages of a trial: pure functions from one state to the next.

Each is seeded from (seed, stage, round), so that a state from the store and one just computed have
the same bits on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.batches import balanced_sample
from orchestrator.data.loading import Dataset
from orchestrator.errors import CollapsedError
from orchestrator.system.determinism import global_states
from orchestrator.training.checkpoint import snapshot
from orchestrator.training.loop import TrainerState, TrainingHooks, train
from orchestrator.training.optimizers import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext, channel_groups, make_context, seed_for
from orchestrator.trial.metrics import train_flops
from orchestrator.trial.structure import layers_protected, units_of
from orchestrator.trial.weight_transfer import SourceModel
from pruning.controls import shuffle_masks
from pruning.criteria import criteria
from pruning.engine import prune
from pruning.masking import Group, Masks, masked

Hooks = Callable[[nn.Module], TrainingHooks]
SAMPLES_PER_CLASS = 10  # images per class for criteria that look at data (SNIP, GraSP: >= 10)


def initial(context: TrialContext, *, draw: str = "init", round: int = 0) -> NetworkState:
    """The untrained network, or what it inherits; another `draw` or round gives other initial weights.

    Whatever is inherited, another draw is a fresh one: its masks are those of who asks for it.
    """
    weights, masks = snapshot(context.build(draw=draw, round=round)), Masks()
    if context.config.start != "scratch" and draw == "init":
        weights, kept = context.inherited(weights)
        masks = kept if context.config.start == "masked" else masks
    return NetworkState(weights, masks, micro_batch=context.config.numerics.micro_batch)


def dense(context: TrialContext, *, epochs: int | None = None) -> NetworkState:
    """The network trained from its initial weights; `epochs` stops early, at a point on the way."""
    phase = TrainingPhase(context.config.train.epochs if epochs is None else epochs)
    return (
        train_more(context, initial(context), phase, stage="dense", round=0)
        if phase.epochs
        else initial(context)
    )


def train_more(
    context: TrialContext,
    state: NetworkState,
    phase: TrainingPhase,
    *,
    stage: str,
    round: int,
    hooks: Hooks | None = None,
) -> NetworkState:
    """`state` trained on for one phase under its masks; half the micro-batch each time memory runs out.

    `hooks(net)` gives what is added to the training of this very network. What the context's book knows of
    this training is not done again.
    """
    underway = None if context.checkpointer is None else context.checkpointer.resume(stage, round)
    if underway is not None:
        state = replace(state, micro_batch=underway.micro_batch)
    try:
        return _train(context, state, phase, underway, stage=stage, round=round, hooks=hooks)
    except (RuntimeError, MemoryError) as error:
        if not _memory_ran_out(error):
            raise
        if state.micro_batch <= 1:
            raise CollapsedError("memory runs out even with one image at a time") from error
    # Only here, after the except block: until its end the error holds the tensors of what did not fit.
    smaller = max(1, min(state.micro_batch, context.config.batch_size) // 2)
    state = replace(state, micro_batch=smaller)
    return train_more(context, state, phase, stage=stage, round=round, hooks=hooks)


def _train(
    context: TrialContext,
    state: NetworkState,
    phase: TrainingPhase,
    underway: TrainerState | None,
    *,
    stage: str,
    round: int,
    hooks: Hooks | None,
) -> NetworkState:
    """One try, with the state's micro-batch."""
    net, device = context.build_module(state), context.data.train.images.device
    generator = torch.Generator().manual_seed(seed_for(context.config.seed, stage, round))
    with context.seeded(stage, round):
        extras = TrainingHooks(loss=context.loss) if hooks is None else hooks(net)
        book = None if extras.cannot_resume else context.checkpointer
        records = train(
            net,
            context.data.train,
            context.data.validation,
            recipe=context.config.train,
            phase=phase,
            batch_size=context.config.batch_size,
            numerics=replace(context.config.numerics, micro_batch=state.micro_batch),
            generator=generator,
            masks=state.masks,
            hooks=extras,
            on_epoch=None if context.report is None else partial(context.report, stage),
            resume_from=underway,
            maybe_save=None if book is None else partial(book.maybe_save, stage, round),
        )
        weights = snapshot(net)
        if book is not None:
            stands = (generator.get_state(), global_states(device), extras.state_dict())
            book.finished(stage, round, TrainerState(tuple(records), state.micro_batch, weights, {}, *stands))
    return replace(
        state,
        weights=weights,
        epochs=state.epochs + phase.epochs,
        train_seconds=state.train_seconds + sum(record.seconds for record in records),
        train_flops=state.train_flops
        + train_flops(context.cost, len(context.data.train) * phase.epochs, taught=context.has_teacher),
        history=tuple(records),
    )


def _memory_ran_out(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory ran out; torch's own allocator on the CPU has no class for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def prune_round(
    context: TrialContext,
    config: TrialConfig,
    state: NetworkState,
    groups: Sequence[Group] | None,
    *,
    round: int,
) -> NetworkState:
    """One round of pruning: new masks, and the weights with their dead entries at zero."""
    masks = choose_masks(context, config, context.view_module(state), state.masks, groups, round=round)
    return replace(state, weights=masked(state.weights, masks), masks=masks, history=())


def choose_masks(
    context: TrialContext,
    config: TrialConfig,
    net: nn.Module,
    masks: Masks,
    groups: Sequence[Group] | None,
    *,
    round: int,
    protect: Sequence[str] = (),
) -> Masks:
    """The masks of one round for a network as it stands; `protect` adds layers to those of the trial."""
    wanted, seed = config.prune, seed_for(context.config.seed, "prune", round)
    needs_data = criteria.get(wanted.criterion).traits.get("data", False)
    with context.seeded("prune", round):
        chosen = prune(
            _to_look_at(net, run=bool(needs_data)),
            amount=wanted.amount,
            criterion=wanted.criterion,
            granularity=wanted.granularity,
            scope=wanted.scope,
            schedule=wanted.schedule,
            round=round,
            masks=masks or None,
            protect=(*layers_protected(context.built, wanted.protect), *protect),
            groups=groups,
            sample=_sample(context, seed) if needs_data else None,
            seed=seed,
            invert=wanted.control == "invert",
        )
    if wanted.control == "shuffle":
        chosen = shuffle_masks(
            chosen, torch.Generator().manual_seed(seed_for(context.config.seed, "shuffle", round))
        )
    return chosen


def _to_look_at(net: nn.Module, *, run: bool) -> nn.Module:
    """The network for a criterion, on the CPU: itself, or a copy for one that runs it."""
    # Whatever the device: scores are float64, and the choice must not depend on it.
    on_cpu = all(tensor.device.type == "cpu" for tensor in net.parameters())
    return net if on_cpu and not run else deepcopy(net).cpu()


def weights_at(context: TrialContext, epoch: int) -> Mapping[str, Tensor]:
    """The dense network's weights after `epoch` epochs; trained so far again, bit for bit, if need be."""
    if epoch == context.config.train.epochs and context.reference is not None:
        return context.reference.weights
    if epoch == 0:
        return initial(context).weights
    return _weights_at(context.config, context.data, context.source_model, epoch)


@lru_cache(maxsize=2)
def _weights_at(
    config: DenseConfig, data: Dataset, ancestor: SourceModel | None, epoch: int
) -> Mapping[str, Tensor]:
    return dense(make_context(config, data, ancestor=ancestor), epochs=epoch).weights


def _sample(context: TrialContext, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = balanced_sample(context.data.train, per_class=SAMPLES_PER_CLASS, seed=seed)
    return images.cpu(), labels.cpu()


def groups_for(context: TrialContext, config: TrialConfig) -> tuple[Group, ...] | None:
    """What the trial's granularity removes together; None for single weights."""
    wanted = config.prune
    if wanted.granularity == "channel":
        return channel_groups(context, wanted.protect)
    return units_of(context.built, wanted.protect) if wanted.granularity == "unit" else None
