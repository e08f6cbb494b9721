"""Run a dense training or a whole trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.loading import Dataset
from orchestrator.training.checkpoint_packing import CheckpointStore
from orchestrator.training.loop import RunTraining, run_training
from orchestrator.trial import stages
from orchestrator.trial.checkpointing import TrialCheckpointer, resume_or_start
from orchestrator.trial.context import NetworkState, OnStageEpoch, TrialContext, make_context
from orchestrator.trial.distillation import distillations, in_precision
from orchestrator.trial.during_training import prune_during_training
from orchestrator.trial.measurement import MeasuredRound, ResumedRound, measure
from orchestrator.trial.metrics import Measurement, Profile
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import RoundMasks, mask_source, masks_only, recoveries
from orchestrator.trial.sensitivity import SensitivityStore, find_sensitivity
from orchestrator.trial.weight_transfer import SourceModel
from pruning.allocation import SENSITIVITY
from pruning.registry import Method
from pruning.schedules import rounds_of, schedules


class DenseStore(Protocol):
    """Where finished dense trainings are stored."""

    def dense(self, config: DenseConfig) -> NetworkState | None:
        """Return the trained network of a configuration; None if it is not stored."""


@dataclass(frozen=True)
class Round:
    """One measured round out of `rounds`, with the dense network (`ipa`) that it is compared with."""

    number: int
    rounds: int
    measurement: Measurement
    ipa: Measurement


OnRound = Callable[[Round], str]  # returns why the trial is to stop there; empty to continue


@dataclass(frozen=True, eq=False)
class TrialResult:
    """A trial: the measurement of the dense network (`ipa`), one entry per round, and the `last` of them.

    `dense_confusion` is the dense network's, [true, predicted] on test images. `stopped_because` says why
    the trial stopped before its last round; it is empty for a complete one. `round_masks` are for a control
    that prunes the same way; None where an earlier process pruned some of the rounds.
    """

    ipa: Measurement
    rounds: tuple[MeasuredRound | ResumedRound, ...]
    last: MeasuredRound
    cost: Profile
    data: Dataset
    dense_confusion: Tensor
    stopped_because: str = ""
    round_masks: RoundMasks | None = None


def run_dense(
    config: DenseConfig,
    data: Dataset,
    *,
    source_model: SourceModel | None = None,
    on_epoch: OnStageEpoch | None = None,
    checkpoints: CheckpointStore | None = None,
    every_seconds: float | None = None,
    run_training: RunTraining = run_training,
) -> TrialResult:
    """Train and measure the dense network of a configuration, from its source model if it has one.

    Every minute, or `every_seconds`, the progress is saved in `checkpoints`; what an earlier process saved
    there is resumed. Every training is run by `run_training`. DivergedError once a loss is not finite.
    """
    context = make_context(
        config, data, on_epoch=on_epoch, source_model=source_model, run_training=run_training
    )
    checkpointer = resume_or_start(
        checkpoints, context, key=config.key(), dense=None, every_seconds=every_seconds
    )
    context = replace(context, checkpointer=checkpointer)
    measured = checkpointer.add_measured(measure(context, stages.dense(context)))
    return TrialResult(measured.measurement, (measured,), measured, context.cost, data, measured.confusion)


def run_trial(
    config: TrialConfig,
    data: Dataset,
    *,
    store: DenseStore,
    source_model: SourceModel | None = None,
    masks_from: RoundMasks | None = None,
    sensitivities: SensitivityStore | None = None,
    on_epoch: OnStageEpoch | None = None,
    on_round: OnRound | None = None,
    checkpoints: CheckpointStore | None = None,
    every_seconds: float | None = None,
    run_training: RunTraining = run_training,
) -> TrialResult:
    """Prune, recover and measure, round after round, from the stored dense network or a new one.

    `on_round` is called with every round once it is measured, and may stop the trial before the next one.
    Rounds that an earlier process measured are reported again first; where it stops the trial then, the
    result is that of the last measured round. A control takes its masks from the rounds of `masks_from`,
    if there are any. What scope `sensitivity` needs to know of the dense network is looked up in
    `sensitivities`, and added there. `checkpoints`, `every_seconds` and
    `run_training` are as for `run_dense`.
    """
    context = make_context(
        config, data, on_epoch=on_epoch, source_model=source_model, run_training=run_training
    )
    stored = store.dense(config.dense)
    checkpointer = resume_or_start(
        checkpoints,
        context,
        key=config.key(),
        dense=stored,
        masks_from=masks_from,
        every_seconds=every_seconds,
    )
    context = replace(context, checkpointer=checkpointer)
    dense = stored or stages.dense(context)
    ipa, confusion = _assess_dense(config.dense, data, dense)
    context = _with_teacher(replace(context, dense_state=dense))
    if config.prune.scope == SENSITIVITY:
        context = replace(context, curves=find_sensitivity(context, sensitivities).curves(data.num_classes))
    stopped_because = ""
    for round in _iter_rounds(context, checkpointer, ipa, masks_from):
        reason = on_round(round) if on_round is not None else ""
        if reason and round.number < round.rounds:
            stopped_because = reason
            break
    last = _last_round(context, checkpointer)
    rounds = (*checkpointer.progress.rounds[:-1], last)
    masks = checkpointer.round_masks(config.key(), rounds_of(schedules.get(config.prune.schedule)))
    return TrialResult(ipa, rounds, last, context.cost, data, confusion, stopped_because, masks)


def measured_rounds(config: TrialConfig) -> int:
    """Return how many rounds a complete trial measures: only the last unless it prunes after training."""
    return rounds_of(schedules.get(config.prune.schedule)) if config.when == "after" else 1


@lru_cache(maxsize=4)
def _assess_dense(config: DenseConfig, data: Dataset, dense: NetworkState) -> tuple[Measurement, Tensor]:
    """Measure the dense network, once in a process: the initial performance assessment, and its confusion."""
    measured = measure(make_context(config, data), dense)
    return measured.measurement, measured.confusion


def _with_teacher(context: TrialContext) -> TrialContext:
    """Add the loss of the trial's distillation, with the dense network as its teacher."""
    distillation = distillations.get(context.pruned_trial.distill)
    with context.seeded("distill", 0):
        teacher = context.build_module(context.trained_dense())
        loss = distillation(in_precision(teacher, context.config.numerics))
    return replace(context, loss=loss, has_teacher=bool(distillation.traits["needs_teacher"]))


def _iter_rounds(
    context: TrialContext, checkpointer: TrialCheckpointer, ipa: Measurement, masks_from: RoundMasks | None
) -> Iterator[Round]:
    """Yield every round once it is measured, those that an earlier process measured at once."""
    planned, earlier = measured_rounds(context.pruned_trial), checkpointer.progress.rounds
    for number, resumed in enumerate(earlier, start=1):
        yield Round(number, planned, resumed.measurement, ipa)
    for number, state in _iter_states(context, checkpointer, masks_from):
        if number > len(earlier):
            measured = checkpointer.add_measured(measure(context, state, round=number))
            yield Round(number, planned, measured.measurement, ipa)


def _iter_states(
    context: TrialContext, checkpointer: TrialCheckpointer, masks_from: RoundMasks | None
) -> Iterator[tuple[int, NetworkState]]:
    """Yield the state after every recovery that is to be measured, with its number among those."""
    config = context.pruned_trial
    recover, rounds = recoveries.get(config.recover), rounds_of(schedules.get(config.prune.schedule))
    if config.when == "during":
        yield 1, _recover(context, recover, prune_during_training(context), round=1)
        return
    first, state = checkpointer.progress.round, checkpointer.progress.round_start
    if state is None:
        state = stages.initial(context) if config.when == "init" else context.trained_dense()
        with context.seeded("prepare", 0):
            first, state = 1, preparations.get(config.prepare)(context, state)
    # A control (reinit) branches off in every round: the next round prunes what the recovery that it is
    # compared with (rewind) has trained, not what the control has.
    main_recovery = mask_source(recover) or recover
    is_control = main_recovery.name != recover.name
    for round in range(first, rounds + 1):
        checkpointer.start_round(round, state)
        if masks_from is None:
            pruned = stages.prune_round(context, state, round=round)
        else:
            pruned = masks_from.rounds[round - 1]
        checkpointer.add_pruned(round, pruned)
        # An untrained network is trained once, under the masks of the last round.
        if config.when == "init" and round < rounds:
            state = pruned
            continue
        recovered = _recover(context, recover, masks_only(pruned) if is_control else pruned, round=round)
        yield (1 if config.when == "init" else round), recovered
        if round < rounds and masks_from is None:
            state = _recover(context, main_recovery, pruned, round=round) if is_control else recovered


def _recover(context: TrialContext, recover: Method, state: NetworkState, *, round: int) -> NetworkState:
    """Return the state after a recovery, whose global generators are seeded for it and the round."""
    with context.seeded(f"recover/{recover.name}", round):
        recovered: NetworkState = recover(context, state, round=round)
    return recovered


def _last_round(context: TrialContext, checkpointer: TrialCheckpointer) -> MeasuredRound:
    """Return the round measured last; measured again for its network, if an earlier process measured it."""
    rounds = checkpointer.progress.rounds
    last = rounds[-1]
    if isinstance(last, MeasuredRound):
        return last
    measured = measure(context, checkpointer.last_measured, round=len(rounds))
    # What an earlier process recorded stands: only its seconds would differ.
    return replace(measured, measurement=last.measurement, notes=last.notes)
