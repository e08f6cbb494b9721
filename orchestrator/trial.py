"""The walk: dense -> (prune -> recover -> measure) x rounds -> result, in one screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from orchestrator import stages
from orchestrator.assessment import Measured, measure
from orchestrator.bench import Bench, Report, State, make_bench
from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data import Dataset
from orchestrator.distillation import distillations
from orchestrator.gradual import train_gradually
from orchestrator.measure import (
    Measurement,
    Profile,
)
from orchestrator.preparation import preparations
from orchestrator.recovery import recoveries
from pruning.masking import Group
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
    """A walk: the dense network's own measurement (`ipa`), and one `Measured` per round.

    `stopped_because` says why it ended before its last round; it is empty for a whole one.
    """

    ipa: Measurement
    rounds: tuple[Measured, ...]
    cost: Profile
    data: Dataset
    stopped_because: str = ""

    @property
    def last(self) -> Measured:
        return self.rounds[-1]


def run_dense(config: DenseConfig, data: Dataset, *, report: Report | None = None) -> Result:
    """Train and measure the dense network of a configuration."""
    bench = make_bench(config, data, report=report)
    measured = measure(bench, stages.dense(bench), None)
    return Result(measured.measurement, (measured,), bench.cost, data)


def run_trial(
    config: TrialConfig,
    data: Dataset,
    *,
    store: Store,
    report: Report | None = None,
    report_round: ReportRound | None = None,
) -> Result:
    """Prune, recover and measure, round after round, from the stored dense network or a new one.

    `report_round` hears of every round once it is measured, and may end the walk before the next.
    """
    bench = make_bench(config.dense, data, report=report)
    dense = store.dense(config.dense) or stages.dense(bench)
    ipa = _assessed(config.dense, data, dense)
    bench = replace(bench, reference=dense)
    distillation = distillations.get(config.distill)
    loss = distillation(bench.restore(dense))
    bench = replace(bench, loss=loss, taught=bool(distillation.traits["teaches"]))
    groups = stages.groups_for(bench, config)
    rounds: list[Measured] = []
    reason, planned = "", measured_rounds(config)
    for number, state in enumerate(_walk(bench, config, groups), start=1):
        rounds.append(measure(bench, state, groups, config=config, round=number))
        if report_round is not None:
            reason = report_round(Round(number, planned, rounds[-1].measurement, ipa))
        if reason and number < planned:
            return Result(ipa, tuple(rounds), bench.cost, data, reason)
    return Result(ipa, tuple(rounds), bench.cost, data)


def measured_rounds(config: TrialConfig) -> int:
    """How many states a whole walk measures: an untrained network, or one in training, only the last."""
    return rounds_of(schedules.get(config.prune.schedule)) if config.when == "after" else 1


@lru_cache(maxsize=4)
def _assessed(config: DenseConfig, data: Dataset, dense: State) -> Measurement:
    """The initial performance assessment; done once in a process for all trials of a dense network."""
    return measure(make_bench(config, data), dense, None).measurement


def _walk(bench: Bench, config: TrialConfig, groups: Sequence[Group] | None) -> Iterator[State]:
    """The state after every recovery."""
    recover, rounds = recoveries.get(config.recover), rounds_of(schedules.get(config.prune.schedule))
    if config.when == "during":
        yield recover(bench, train_gradually(bench, config, groups), round=1)
        return
    state = stages.initial(bench) if config.when == "init" else bench.trained()
    state = preparations.get(config.prepare)(bench, state)
    # A control is a branch: the walk goes on along the trunk that it is compared with.
    trunk = recoveries.get(recover.traits.get("trunk", config.recover))
    for round in range(1, rounds + 1):
        state = stages.prune_round(bench, config, state, groups, round=round)
        # An untrained network is trained once, under the masks of the last round.
        if config.when == "init" and round < rounds:
            continue
        recovered = recover(bench, state, round=round)
        yield recovered
        if round < rounds:
            state = recovered if trunk.name == recover.name else trunk(bench, state, round=round)
