"""Run a dense training or a whole trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.loading import Dataset
from orchestrator.training.checkpoint import Keeper
from orchestrator.trial import stages
from orchestrator.trial.checkpointing import Journal, open_journal
from orchestrator.trial.context import Bench, Report, State, make_bench
from orchestrator.trial.distillation import distillations
from orchestrator.trial.during_training import train_gradually
from orchestrator.trial.measurement import Measured, Recalled, measure
from orchestrator.trial.metrics import Measurement, Profile
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import Trunk, bare, recoveries
from orchestrator.trial.weight_transfer import Ancestor
from pruning.masking import Group
from pruning.registry import Method
from pruning.schedules import rounds_of, schedules


class Store(Protocol):
    """Where finished dense trainings are found; None for one that is not there."""

    def dense(self, config: DenseConfig) -> State | None: ...


@dataclass(frozen=True)
class Round:
    """One measured round of `rounds`, beside the dense network that it is compared with."""

    number: int
    rounds: int
    measurement: Measurement
    ipa: Measurement


ReportRound = Callable[[Round], str]  # why the walk is to end there; empty to go on


@dataclass(frozen=True, eq=False)
class Result:
    """A walk: the dense network's own measurement (`ipa`), one entry per round, and the `last` of them.

    `dense_confusion` is the dense network's, [true, predicted] on test images.
    `stopped_because` says why it ended before its last round; it is empty for a whole one. `trunk` is what
    a control that goes the same way would be given.
    """

    ipa: Measurement
    rounds: tuple[Measured | Recalled, ...]
    last: Measured
    cost: Profile
    data: Dataset
    dense_confusion: Tensor
    stopped_because: str = ""
    trunk: Trunk | None = None


def run_dense(
    config: DenseConfig,
    data: Dataset,
    *,
    ancestor: Ancestor | None = None,
    report: Report | None = None,
    keeper: Keeper | None = None,
    every_seconds: float | None = None,
) -> Result:
    """Train and measure the dense network of a configuration, from its ancestor if it has one.

    Every minute, or `every_seconds`, the keeper is given where the training stands; what an earlier
    process gave it is carried on.
    """
    bench = make_bench(config, data, report=report, ancestor=ancestor)
    journal = open_journal(keeper, bench, key=config.key(), dense=None, every_seconds=every_seconds)
    bench = replace(bench, book=journal)
    measured = journal.measured(measure(bench, stages.dense(bench), None))
    return Result(measured.measurement, (measured,), measured, bench.cost, data, measured.confusion)


def run_trial(
    config: TrialConfig,
    data: Dataset,
    *,
    store: Store,
    ancestor: Ancestor | None = None,
    shared: Trunk | None = None,
    report: Report | None = None,
    report_round: ReportRound | None = None,
    keeper: Keeper | None = None,
    every_seconds: float | None = None,
) -> Result:
    """Prune, recover and measure, round after round, from the stored dense network or a new one.

    `report_round` hears of every round once it is measured, and may end the walk before the next. Rounds
    that an earlier process measured are reported again first; it may end the walk where that one stood.
    A control walks along the `shared` rounds, if there are any. The keeper is as for `run_dense`.
    """
    bench = make_bench(config.dense, data, report=report, ancestor=ancestor)
    held = store.dense(config.dense)
    journal = open_journal(
        keeper, bench, key=config.key(), dense=held, shared=shared, every_seconds=every_seconds
    )
    bench = replace(bench, book=journal)
    dense = held or stages.dense(bench)
    ipa, confusion = _assessed(config.dense, data, dense)
    bench = _with_teacher(replace(bench, reference=dense), config)
    groups = stages.groups_for(bench, config)
    stopped_because = ""
    for round in _rounds(bench, config, groups, journal, ipa, shared):
        reason = report_round(round) if report_round is not None else ""
        if reason and round.number < round.rounds:
            stopped_because = reason
            break
    last = _last(bench, config, groups, journal)
    rounds = (*journal.standing.rounds[:-1], last)
    trunk = journal.trunk(config.key(), rounds_of(schedules.get(config.prune.schedule)))
    return Result(ipa, rounds, last, bench.cost, data, confusion, stopped_because, trunk)


def _with_teacher(bench: Bench, config: TrialConfig) -> Bench:
    distillation = distillations.get(config.distill)
    with bench.seeded("distill", 0):
        loss = distillation(bench.restore(bench.trained()))
    return replace(bench, loss=loss, taught=bool(distillation.traits["teaches"]))


def _rounds(
    bench: Bench,
    config: TrialConfig,
    groups: Sequence[Group] | None,
    journal: Journal,
    ipa: Measurement,
    shared: Trunk | None,
) -> Iterator[Round]:
    """Every round once it is measured, those that an earlier process measured at once."""
    planned, earlier = measured_rounds(config), journal.standing.rounds
    for number, recalled in enumerate(earlier, start=1):
        yield Round(number, planned, recalled.measurement, ipa)
    for number, state in _walk(bench, config, groups, journal, shared):
        if number > len(earlier):
            measured = journal.measured(measure(bench, state, groups, config=config, round=number))
            yield Round(number, planned, measured.measurement, ipa)


def _last(bench: Bench, config: TrialConfig, groups: Sequence[Group] | None, journal: Journal) -> Measured:
    """The round measured last; its network and layers again, if an earlier process measured it."""
    rounds = journal.standing.rounds
    if isinstance(rounds[-1], Measured):
        return rounds[-1]
    again = measure(bench, journal.last, groups, config=config, round=len(rounds))
    state = replace(again.state, history=rounds[-1].history)
    return replace(again, state=state, measurement=rounds[-1].measurement, notes=rounds[-1].notes)


def measured_rounds(config: TrialConfig) -> int:
    """How many states a whole walk measures: an untrained network, or one in training, only the last."""
    return rounds_of(schedules.get(config.prune.schedule)) if config.when == "after" else 1


@lru_cache(maxsize=4)
def _assessed(config: DenseConfig, data: Dataset, dense: State) -> tuple[Measurement, Tensor]:
    """The initial performance assessment and its confusion; once in a process for a dense network."""
    measured = measure(make_bench(config, data), dense, None)
    return measured.measurement, measured.confusion


def _walk(
    bench: Bench,
    config: TrialConfig,
    groups: Sequence[Group] | None,
    journal: Journal,
    shared: Trunk | None,
) -> Iterator[tuple[int, State]]:
    """The state after every recovery, and which of those to be measured it is."""
    recover, rounds = recoveries.get(config.recover), rounds_of(schedules.get(config.prune.schedule))
    if config.when == "during":
        yield 1, _recovered(bench, recover, train_gradually(bench, config, groups), round=1)
        return
    first, state = journal.standing.round, journal.standing.top
    if state is None:
        state = stages.initial(bench) if config.when == "init" else bench.trained()
        with bench.seeded("prepare", 0):
            first, state = 1, preparations.get(config.prepare)(bench, state)
    # A control is a branch: the walk goes on along the trunk that it is compared with.
    trunk = recoveries.get(recover.traits.get("trunk", config.recover))
    control = trunk.name != recover.name
    for round in range(first, rounds + 1):
        journal.begin(round, state)
        if shared is None:
            pruned = stages.prune_round(bench, config, state, groups, round=round)
        else:
            pruned = shared.rounds[round - 1]
        journal.pruned(round, pruned)
        # An untrained network is trained once, under the masks of the last round.
        if config.when == "init" and round < rounds:
            state = pruned
            continue
        recovered = _recovered(bench, recover, bare(pruned) if control else pruned, round=round)
        yield (1 if config.when == "init" else round), recovered
        if round < rounds and shared is None:
            state = _recovered(bench, trunk, pruned, round=round) if control else recovered


def _recovered(bench: Bench, recover: Method, state: State, *, round: int) -> State:
    """The state after a recovery; what that draws from the global generators is its own and the round's."""
    with bench.seeded(f"recover/{recover.name}", round):
        recovered: State = recover(bench, state, round=round)
    return recovered
