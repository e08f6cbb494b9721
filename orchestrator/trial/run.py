"""Run a dense training or a whole trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.loading import Dataset
from orchestrator.training.checkpoint import CheckpointStore
from orchestrator.trial import stages
from orchestrator.trial.checkpointing import TrialCheckpointer, resume_or_start
from orchestrator.trial.context import NetworkState, Report, TrialContext, make_context
from orchestrator.trial.distillation import distillations
from orchestrator.trial.during_training import prune_during_training
from orchestrator.trial.measurement import MeasuredRound, ResumedRound, measure
from orchestrator.trial.metrics import Measurement, Profile
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import RoundMasks, masks_only, recoveries
from orchestrator.trial.weight_transfer import SourceModel
from pruning.masking import Group
from pruning.registry import Method
from pruning.schedules import rounds_of, schedules


class DenseStore(Protocol):
    """Where finished dense trainings are found; None for one that is not there."""

    def dense(self, config: DenseConfig) -> NetworkState | None: ...


@dataclass(frozen=True)
class Round:
    """One measured round of `rounds`, beside the dense network that it is compared with."""

    number: int
    rounds: int
    measurement: Measurement
    ipa: Measurement


OnRound = Callable[[Round], str]  # why the walk is to end there; empty to go on


@dataclass(frozen=True, eq=False)
class TrialResult:
    """A walk: the dense network's own measurement (`ipa`), one entry per round, and the `last` of them.

    `dense_confusion` is the dense network's, [true, predicted] on test images.
    `stopped_because` says why it ended before its last round; it is empty for a whole one. `trunk` is what
    a control that goes the same way would be given.
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
    on_epoch: Report | None = None,
    checkpoints: CheckpointStore | None = None,
    every_seconds: float | None = None,
) -> TrialResult:
    """Train and measure the dense network of a configuration, from its ancestor if it has one.

    Every minute, or `every_seconds`, the keeper is given where the training stands; what an earlier
    process gave it is carried on.
    """
    context = make_context(config, data, report=on_epoch, ancestor=source_model)
    checkpointer = resume_or_start(
        checkpoints, context, key=config.key(), dense=None, every_seconds=every_seconds
    )
    context = replace(context, checkpointer=checkpointer)
    measured = checkpointer.add_measured(measure(context, stages.dense(context), None))
    return TrialResult(measured.measurement, (measured,), measured, context.cost, data, measured.confusion)


def run_trial(
    config: TrialConfig,
    data: Dataset,
    *,
    store: DenseStore,
    source_model: SourceModel | None = None,
    masks_from: RoundMasks | None = None,
    on_epoch: Report | None = None,
    on_round: OnRound | None = None,
    checkpoints: CheckpointStore | None = None,
    every_seconds: float | None = None,
) -> TrialResult:
    """Prune, recover and measure, round after round, from the stored dense network or a new one.

    `report_round` hears of every round once it is measured, and may end the walk before the next. Rounds
    that an earlier process measured are reported again first; it may end the walk where that one stood.
    A control walks along the `shared` rounds, if there are any. The keeper is as for `run_dense`.
    """
    context = make_context(config.dense, data, report=on_epoch, ancestor=source_model)
    held = store.dense(config.dense)
    checkpointer = resume_or_start(
        checkpoints, context, key=config.key(), dense=held, masks_from=masks_from, every_seconds=every_seconds
    )
    context = replace(context, checkpointer=checkpointer)
    dense = held or stages.dense(context)
    ipa, confusion = _assessed(config.dense, data, dense)
    context = _with_teacher(replace(context, reference=dense), config)
    groups = stages.groups_for(context, config)
    stopped_because = ""
    for round in _rounds(context, config, groups, checkpointer, ipa, masks_from):
        reason = on_round(round) if on_round is not None else ""
        if reason and round.number < round.rounds:
            stopped_because = reason
            break
    last = _last(context, config, groups, checkpointer)
    rounds = (*checkpointer.progress.rounds[:-1], last)
    trunk = checkpointer.round_masks(config.key(), rounds_of(schedules.get(config.prune.schedule)))
    return TrialResult(ipa, rounds, last, context.cost, data, confusion, stopped_because, trunk)


def _with_teacher(context: TrialContext, config: TrialConfig) -> TrialContext:
    distillation = distillations.get(config.distill)
    with context.seeded("distill", 0):
        loss = distillation(context.build_module(context.trained()))
    return replace(context, loss=loss, has_teacher=bool(distillation.traits["teaches"]))


def _rounds(
    context: TrialContext,
    config: TrialConfig,
    groups: Sequence[Group] | None,
    checkpointer: TrialCheckpointer,
    ipa: Measurement,
    shared: RoundMasks | None,
) -> Iterator[Round]:
    """Every round once it is measured, those that an earlier process measured at once."""
    planned, earlier = measured_rounds(config), checkpointer.progress.rounds
    for number, recalled in enumerate(earlier, start=1):
        yield Round(number, planned, recalled.measurement, ipa)
    for number, state in _run_rounds(context, config, groups, checkpointer, shared):
        if number > len(earlier):
            measured = checkpointer.add_measured(measure(context, state, groups, config=config, round=number))
            yield Round(number, planned, measured.measurement, ipa)


def _last(
    context: TrialContext,
    config: TrialConfig,
    groups: Sequence[Group] | None,
    checkpointer: TrialCheckpointer,
) -> MeasuredRound:
    """The round measured last; its network and layers again, if an earlier process measured it."""
    rounds = checkpointer.progress.rounds
    if isinstance(rounds[-1], MeasuredRound):
        return rounds[-1]
    again = measure(context, checkpointer.last_measured, groups, config=config, round=len(rounds))
    state = replace(again.state, history=rounds[-1].history)
    return replace(again, state=state, measurement=rounds[-1].measurement, notes=rounds[-1].notes)


def measured_rounds(config: TrialConfig) -> int:
    """How many states a whole walk measures: an untrained network, or one in training, only the last."""
    return rounds_of(schedules.get(config.prune.schedule)) if config.when == "after" else 1


@lru_cache(maxsize=4)
def _assessed(config: DenseConfig, data: Dataset, dense: NetworkState) -> tuple[Measurement, Tensor]:
    """The initial performance assessment and its confusion; once in a process for a dense network."""
    measured = measure(make_context(config, data), dense, None)
    return measured.measurement, measured.confusion


def _run_rounds(
    context: TrialContext,
    config: TrialConfig,
    groups: Sequence[Group] | None,
    checkpointer: TrialCheckpointer,
    shared: RoundMasks | None,
) -> Iterator[tuple[int, NetworkState]]:
    """The state after every recovery, and which of those to be measured it is."""
    recover, rounds = recoveries.get(config.recover), rounds_of(schedules.get(config.prune.schedule))
    if config.when == "during":
        yield 1, _recovered(context, recover, prune_during_training(context, config, groups), round=1)
        return
    first, state = checkpointer.progress.round, checkpointer.progress.round_start
    if state is None:
        state = stages.initial(context) if config.when == "init" else context.trained()
        with context.seeded("prepare", 0):
            first, state = 1, preparations.get(config.prepare)(context, state)
    # A control is a branch: the walk goes on along the trunk that it is compared with.
    trunk = recoveries.get(recover.traits.get("trunk", config.recover))
    control = trunk.name != recover.name
    for round in range(first, rounds + 1):
        checkpointer.start_round(round, state)
        if shared is None:
            pruned = stages.prune_round(context, config, state, groups, round=round)
        else:
            pruned = shared.rounds[round - 1]
        checkpointer.add_pruned(round, pruned)
        # An untrained network is trained once, under the masks of the last round.
        if config.when == "init" and round < rounds:
            state = pruned
            continue
        recovered = _recovered(context, recover, masks_only(pruned) if control else pruned, round=round)
        yield (1 if config.when == "init" else round), recovered
        if round < rounds and shared is None:
            state = _recovered(context, trunk, pruned, round=round) if control else recovered


def _recovered(context: TrialContext, recover: Method, state: NetworkState, *, round: int) -> NetworkState:
    """The state after a recovery; what that draws from the global generators is its own and the round's."""
    with context.seeded(f"recover/{recover.name}", round):
        recovered: NetworkState = recover(context, state, round=round)
    return recovered
