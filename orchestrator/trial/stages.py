"""The stages of a trial: pure functions from one state to the next.

Each is seeded from (seed, stage, round), so that a state from the store and one just computed have
the same bits on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from orchestrator.config import DenseConfig
from orchestrator.data.batches import balanced_sample
from orchestrator.data.loading import Dataset
from orchestrator.errors import CollapsedError
from orchestrator.system.determinism import global_states
from orchestrator.system.memory import is_out_of_memory
from orchestrator.training.checkpoint_packing import snapshot
from orchestrator.training.evaluation import ONE_IMAGE
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.loop import RunTraining, TrainerState, Training, TrainingCheckpointer, run_training
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import NetworkState, TrialContext, make_context, seed_for
from orchestrator.trial.metrics import train_flops, train_flops_effective
from orchestrator.trial.scoring import score_on, scored_once, scoring_device
from orchestrator.trial.structure import layers_protected
from orchestrator.trial.target_masks import masks_at_target
from orchestrator.trial.trained_network import TrainedNetwork, cut_network, whole_network
from orchestrator.trial.unit_costs import allocation_of
from orchestrator.trial.weight_transfer import SourceModel
from pruning.amounts import Amount
from pruning.checks import one_line
from pruning.criteria import criteria
from pruning.masking import Masks, mask_weights, shuffle_masks
from pruning.prune import Sample, prune

MakeHooks = Callable[[nn.Module], TrainingHooks]
SAMPLES_PER_CLASS = 10  # images per class for criteria that look at data (SNIP, GraSP: >= 10)


def initial(context: TrialContext, *, draw: str = "init", round: int = 0) -> NetworkState:
    """Return the untrained network, or what it inherits; another `draw` or round gives other weights.

    Another draw than "init" inherits nothing: its weights are fresh, and it has no masks.
    """
    weights, masks = snapshot(context.build(draw=draw, round=round)), Masks()
    if context.config.start != "scratch" and draw == "init":
        weights, source_masks = context.inherit(weights)
        masks = source_masks if context.config.start == "masked" else masks
    return NetworkState(weights, masks, micro_batch=context.config.numerics.micro_batch)


def dense(context: TrialContext, *, epochs: int | None = None) -> NetworkState:
    """Train the network from its initial weights; `epochs` stops earlier, on the same way."""
    phase = TrainingPhase(context.config.train.epochs if epochs is None else epochs)
    start = initial(context)
    return train_more(context, start, phase, stage="dense", round=0) if phase.epochs else start


def train_more(
    context: TrialContext,
    state: NetworkState,
    phase: TrainingPhase,
    *,
    stage: str,
    round: int,
    make_hooks: MakeHooks | None = None,
    is_cut: bool = False,
) -> NetworkState:
    """Train `state` on for one phase under its masks; with half the micro-batch each time memory runs out.

    With `is_cut` the network is trained without its removed units, which are zero in the state that returns.
    `train_flops_effective` is counted by these masks: whoever changes them on the way counts it anew.

    `make_hooks(net)` returns what is added to the training of this very network. What an earlier process
    trained of it, by the context's checkpointer, is not trained again. CollapsedError where memory runs
    out with a single image.
    """
    resume_from = None if context.checkpointer is None else context.checkpointer.resume(stage, round)
    if resume_from is not None:
        state = replace(state, micro_batch=resume_from.micro_batch)
    try:
        make_network = cut_network if is_cut else whole_network
        return _train(
            context, state, make_network, phase, resume_from, stage=stage, round=round, make_hooks=make_hooks
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if state.micro_batch <= 1:
            raise CollapsedError(f"{ONE_IMAGE}: {one_line(error)}") from error
    # Only here, after the except block: until its end the error holds the tensors of what did not fit.
    smaller = max(1, min(state.micro_batch, context.config.batch_size) // 2)
    state = replace(state, micro_batch=smaller)
    return train_more(context, state, phase, stage=stage, round=round, make_hooks=make_hooks, is_cut=is_cut)


def _train(
    context: TrialContext,
    state: NetworkState,
    make_network: Callable[[TrialContext, NetworkState], TrainedNetwork],
    phase: TrainingPhase,
    resume_from: TrainerState | None,
    *,
    stage: str,
    round: int,
    make_hooks: MakeHooks | None,
) -> NetworkState:
    """Try the training once, with the state's micro-batch."""
    config, data, network = context.config, context.data, make_network(context, state)
    net, device = network.net, data.train.images.device
    if config.numerics.compile:
        net.compile()  # in place: tensors and their names stay
    generator = torch.Generator().manual_seed(seed_for(config.seed, stage, round))
    with context.seeded(stage, round):
        hooks = TrainingHooks(loss=context.loss) if make_hooks is None else make_hooks(net)
        checkpointer = None if hooks.cannot_resume else context.checkpointer
        training = Training(
            net,
            data.train,
            data.validation,
            recipe=config.train,
            phase=phase,
            batch_size=config.batch_size,
            numerics=replace(config.numerics, micro_batch=state.micro_batch),
            generator=generator,
            masks=network.masks,
            hooks=hooks,
            on_epoch=None if context.on_epoch is None else partial(context.on_epoch, stage),
            resume_from=None if resume_from is None else network.narrow_state(resume_from),
            maybe_save=None if checkpointer is None else partial(_save, checkpointer, network, stage, round),
            is_cut=bool(network.entries),
        )
        records = context.run_training(training)
        weights = network.widen(snapshot(net))
        if checkpointer is not None:
            # Of a finished training the optimizer is not needed any more.
            states = (generator.get_state(), global_states(device), hooks.state_dict())
            trainer_state = TrainerState(tuple(records), state.micro_batch, weights, {}, *states)
            checkpointer.finished(stage, round, trainer_state)
    state = replace(state, weights=weights, history=tuple(records))
    return _with_cost_of(phase.epochs, context, state, network)


def _save(
    checkpointer: TrainingCheckpointer,
    network: TrainedNetwork,
    stage: str,
    round: int,
    capture: Callable[[], TrainerState],
) -> None:
    """Save a training's progress, if it is time, with weights in the whole network's shapes."""
    checkpointer.maybe_save(stage, round, lambda: network.widen_state(capture()))


def _with_cost_of(
    epochs: int, context: TrialContext, state: NetworkState, network: TrainedNetwork
) -> NetworkState:
    """Return the state with the epochs, seconds and FLOPs of the training whose history it has."""
    images = len(context.data.train) * epochs
    # A teacher is the dense network, whatever is trained.
    teacher = 2 * context.cost.total_macs * images if context.has_teacher else 0
    effective = train_flops_effective(network.cost, network.masks, images)
    return replace(
        state,
        epochs=state.epochs + epochs,
        train_seconds=state.train_seconds + sum(record.seconds for record in state.history),
        train_flops=state.train_flops + train_flops(network.cost, images) + teacher,
        train_flops_effective=state.train_flops_effective + effective + teacher,
    )


def prune_round(context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
    """Prune for one round: new masks, and the weights with their dead entries at zero."""
    masks = choose_masks(context, context.view_module(state), state.masks, round=round)
    return replace(state, weights=mask_weights(state.weights, masks), masks=masks, history=())


def choose_masks(
    context: TrialContext,
    net: nn.Module,
    masks: Masks,
    *,
    round: int,
    protect: Sequence[str] = (),
    accumulated: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Return the masks of one round for a network as it stands; `protect` adds layers to the trial's.

    `accumulated` are the sums over training steps, for a criterion that needs them.
    """
    options, seed = context.pruned_trial.prune, context.config.seed
    round_seed = seed_for(seed, "prune", round)
    sample = _sample(context, options.criterion, seed=round_seed)
    protected = (*layers_protected(context.architecture, options.protect), *protect)
    allocation = allocation_of(context)

    criterion = scored_once(options.criterion, facts=(context.architecture, round_seed))

    def masks_at(net: nn.Module, amount: Amount, round: int) -> Masks:
        return prune(
            net,
            amount=amount,
            criterion=criterion,
            granularity=options.granularity,
            scope=options.scope if allocation is None else "global",
            schedule=options.schedule,
            round=round,
            masks=masks or None,
            protect=protected,
            groups=context.groups,
            sample=sample,
            accumulated=accumulated,
            seed=round_seed,
            invert=options.control == "invert",
            round_to=options.round_to,
            allocation=allocation,
        )

    def prune_network(net: nn.Module) -> Masks:
        with context.seeded("prune", round):
            if options.limits:
                return masks_at_target(context, partial(masks_at, net), round=round)
            return masks_at(net, dict(options.layer_amounts) or options.amount, round)

    device = scoring_device(options.criterion, context.data.train.images.device)
    new_masks = score_on(device, net, runs_it=sample is not None, prune=prune_network)
    if options.control == "shuffle":
        generator = torch.Generator().manual_seed(seed_for(seed, "shuffle", round))
        return shuffle_masks(new_masks, generator)
    return new_masks


def _sample(context: TrialContext, criterion: str, *, seed: int) -> Sample | None:
    """Return images and labels, on the CPU, for a criterion that looks at data; None for others."""
    if not criteria.get(criterion).traits.get("data", False):
        return None
    images, labels = balanced_sample(context.data.train, per_class=SAMPLES_PER_CLASS, seed=seed)
    return images.cpu(), labels.cpu()


def weights_at(context: TrialContext, epoch: int) -> Mapping[str, Tensor]:
    """Return the dense network's weights after `epoch` epochs; trained again, bit for bit, if need be."""
    if epoch == context.config.train.epochs and context.dense_state is not None:
        return context.dense_state.weights
    if epoch == 0:
        return initial(context).weights
    if epoch not in context.earlier_weights:  # the rounds of a trial ask for them again and again
        # By itself, and so kept for other trials, unless several devices have to share it.
        run = context.run_training if context.config.numerics.devices > 1 else run_training
        weights = _weights_at(context.config, context.data, context.source_model, run, epoch)
        context.earlier_weights[epoch] = weights
    return context.earlier_weights[epoch]


@lru_cache(maxsize=2)
def _weights_at(
    config: DenseConfig, data: Dataset, source_model: SourceModel | None, run: RunTraining, epoch: int
) -> Mapping[str, Tensor]:
    context = make_context(config, data, source_model=source_model, run_training=run)
    return dense(context, epochs=epoch).weights
