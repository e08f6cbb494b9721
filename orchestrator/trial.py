"""The walk: dense -> (prune -> recover -> measure) x rounds -> result, in one screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator import stages
from orchestrator.bench import Bench, Report, State, channel_groups, make_bench
from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data import Dataset
from orchestrator.distillation import distillations
from orchestrator.errors import DivergedError
from orchestrator.evaluation import evaluate
from orchestrator.gradual import train_gradually
from orchestrator.measure import (
    LayerRow,
    Measurement,
    Profile,
    collapse,
    concentration,
    dense_bytes,
    effective_macs,
    layer_rows,
    living_weights,
    nonzero_parameters,
    profile,
    sparse_bytes,
)
from orchestrator.preparation import preparations
from orchestrator.recovery import recoveries
from pruning.masking import Group, Masks, alive_units, sparsity
from pruning.schedules import rounds_of, schedules
from pruning.structure import shrink


class Store(Protocol):
    """Where finished dense trainings are found; None for one that is not there."""

    def dense(self, config: DenseConfig) -> State | None: ...


@dataclass(frozen=True, eq=False)
class Measured:
    """A state, what it measures, and the network as it would be shipped: cut where channels could go."""

    state: State
    measurement: Measurement
    net: nn.Module
    cut: bool
    layers: tuple[LayerRow, ...]
    confusion: Tensor
    notes: tuple[str, ...]


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


def measure(
    bench: Bench,
    state: State,
    groups: Sequence[Group] | None,
    *,
    config: TrialConfig | None = None,
    round: int = 0,
) -> Measured:
    """Evaluate a state on test and validation images, and count what it costs dense, masked and cut."""
    net = bench.restore(state)
    numerics = replace(bench.config.numerics, micro_batch=state.micro_batch)
    test = evaluate(net, bench.data.test, numerics=numerics)
    held_out = evaluate(net, bench.data.validation, numerics=numerics)
    if not math.isfinite(test.loss) or not math.isfinite(held_out.loss):
        raise DivergedError(f"the loss of the pruned network is not finite after {state.epochs} epochs")
    small, notes = _cut(bench, net, state.masks, config)
    if config is not None:
        notes += _differences(config, state.masks, groups)
        notes += collapse(state.masks, held_out, classes=bench.data.num_classes, round=round)
    measurement = Measurement(
        accuracy=test.accuracy,
        top5=test.top5,
        loss=test.loss,
        val_accuracy=held_out.accuracy,
        val_loss=held_out.loss,
        test_seconds=test.seconds,
        amount=achieved_amount(state.masks, groups),
        epochs=state.epochs,
        train_seconds=state.train_seconds,
        train_flops=state.train_flops,
        **_costs(bench, net, small, state.masks),
    )
    rows = tuple(layer_rows(net, bench.cost, state.masks))
    return Measured(state, measurement, small, small is not net, rows, test.confusion, notes)


def _costs(bench: Bench, net: nn.Module, small: nn.Module, masks: Masks) -> dict[str, Any]:  # int or float
    """What is left of the network: dense, with its masks, and cut out."""
    physical = bench.cost if small is net else profile(small, bench.data.input_shape)
    nonzero = nonzero_parameters(bench.cost, masks)
    index, gini = concentration(living_weights(net, masks))
    return {
        "sparsity": sparsity(masks),
        "pq_index": index,
        "gini": gini,
        "compression": bench.cost.parameters / max(nonzero, 1),
        "parameters_dense": bench.cost.parameters,
        "parameters_nonzero": nonzero,
        "parameters_physical": physical.parameters,
        "macs_dense": bench.cost.total_macs,
        "macs_effective": effective_macs(bench.cost, masks),
        "macs_physical": physical.total_macs,
        "bytes_dense": dense_bytes(net),
        "bytes_sparse": sparse_bytes(net, masks),
        "bytes_physical": dense_bytes(small),
    }


def achieved_amount(masks: Masks, groups: Sequence[Group] | None) -> float:
    """Fraction of the units (weights, units or channels) that are gone."""
    total, living = 0, 0
    for _, here, alive in _pools(masks, groups):
        total, living = total + here, living + alive
    return 1.0 - living / total if total else 0.0


def _pools(masks: Masks, groups: Sequence[Group] | None) -> list[tuple[str, int, int]]:
    """(layer or group, its units, those that live)."""
    if groups is None:
        return [(name, mask.numel(), int(mask.sum())) for name, mask in masks.items()]
    return [(group.name, group.size, int(alive_units(group, masks).sum())) for group in groups]


def _cut(
    bench: Bench, net: nn.Module, masks: Masks, config: TrialConfig | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network without its dead channels, where whole units or channels go; and what there is to say."""
    if config is None or config.prune.granularity not in ("unit", "channel"):
        return net, ()
    if all(mask.all() for mask in masks.values()):
        return net, ()
    if not any(mask.any() for mask in masks.values() if mask.dim() > 1):
        return net, ("nothing to cut out: every unit is masked",)
    image = torch.zeros((2, *bench.data.input_shape), device=bench.data.train.images.device)
    return shrink(net, masks, image, groups=channel_groups(bench)), ()


def _differences(config: TrialConfig, masks: Masks, groups: Sequence[Group] | None) -> tuple[str, ...]:
    """One note where more than one unit's worth lies between the amount asked for and what went."""
    if schedules.get(config.prune.schedule).traits.get("adaptive"):
        return ()  # the amount is a ceiling there, not a wish
    pools, asked = _pools(masks, groups), config.prune.amount
    if config.prune.scope in ("global", "erk"):  # erk spreads one amount unevenly over the layers
        pools = [("the network", sum(n for _, n, _ in pools), sum(alive for _, _, alive in pools))]
    slack = {
        name: len(masks[name]) if config.prune.scope == "unit" else 1 for name, _, _ in pools if name in masks
    }
    off = [
        f"{name} {1 - alive / total:.4f}"
        for name, total, alive in pools
        if abs((total - alive) - asked * total) > slack.get(name, 1)
    ]
    return (f"asked for {asked:g}, achieved: {', '.join(off[:5])}",) if off else ()
