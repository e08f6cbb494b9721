"""What sharing saves: one dense network for all amounts, one trial for all levels of a lottery ticket.

The baseline is a script that trains for every point separately, by the same code: the accuracies are equal
bit for bit. Where it would take long, it runs some of its points and its time is scaled to all of them.
Networks are trained in this process on one thread, without Ray and MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter

import torch

from benchmarks.harness import AtLeast, Job, SideResult, benchmark, main
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data.loading import Dataset, Split
from orchestrator.space.techniques import resolve
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.run import run_trial

AMOUNTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)
TECHNIQUES = ("weight", "neuron")
LEVELS, KEEP_FRACTION = 10, 0.8  # of a lottery ticket: rounds, and the fraction of weights that each keeps
EPOCHS, TICKET_EPOCHS = 10, 2
BATCH = 256


class InMemoryStore:
    """A store that holds one dense network."""

    def __init__(self, state: NetworkState) -> None:
        self.state = state

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return self.state


def make_images(count: int, *, noise: float = 3.0) -> Dataset:
    """Return noise around ten patterns in the shape of MNIST; test and validation sets have a tenth each."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 28, 28, generator=generator)

    def split(size: int) -> Split:
        labels = torch.arange(size) % 10
        return Split(patterns[labels] + noise * torch.randn(size, 1, 28, 28, generator=generator), labels)

    parts = (split(size) for size in (count, count // 10, count // 10))
    return Dataset("synthetic", *parts, 10, (1, 28, 28), f"{count} synthetic", tuple("0123456789"))


def dense_config(epochs: int) -> DenseConfig:
    return DenseConfig("mlp", "synthetic", BATCH, 0, Train(epochs=epochs), Numerics(micro_batch=BATCH))


def prune_config(technique: str, schedule: str, amount: float) -> Prune:
    choices = resolve(technique, {})
    return Prune(choices.criterion, choices.granularity, choices.scope, schedule, amount)


def make_points(recover: str) -> list[TrialConfig]:
    """Return trials of two techniques by 13 amounts."""
    return [
        TrialConfig(dense_config(EPOCHS), prune_config(name, "one_shot", amount), recover, name)
        for name in TECHNIQUES
        for amount in AMOUNTS
    ]


def ticket_levels() -> list[TrialConfig]:
    """Return one trial for each level of a lottery ticket; the last trial passes all levels."""
    return [
        TrialConfig(
            dense_config(TICKET_EPOCHS),
            prune_config("weight", f"iterative(rounds={level})", 1 - KEEP_FRACTION**level),
            "rewind(to=0)",
            "weight",
        )
        for level in range(1, LEVELS + 1)
    ]


def train_dense(config: TrialConfig, data: Dataset) -> InMemoryStore:
    return InMemoryStore(stages.dense(make_context(config.dense, data)))


def round_accuracies(config: TrialConfig, data: Dataset, store: InMemoryStore) -> list[float]:
    """Return the accuracy on test images after every round."""
    return [measured.measurement.accuracy for measured in run_trial(config, data, store=store).rounds]


def run_with_shared_training(
    configs: Sequence[TrialConfig], data: Dataset, indices: Sequence[int]
) -> SideResult:
    """Run all points from one dense network; return the accuracies of the points in `indices`."""
    store = train_dense(configs[0], data)
    rounds = [round_accuracies(config, data, store) for config in configs]
    return SideResult([rounds[index][-1] for index in indices])


def run_longest_trial(configs: Sequence[TrialConfig], data: Dataset, indices: Sequence[int]) -> SideResult:
    """Run the longest trial, whose rounds include the last rounds of all others."""
    rounds = round_accuracies(configs[-1], data, train_dense(configs[-1], data))
    return SideResult([rounds[index] for index in indices])


def run_separately(
    configs: Sequence[TrialConfig], data: Dataset, indices: Sequence[int], cost: Callable[[int], int]
) -> SideResult:
    """Run the points in `indices`, each from its own dense network; the time is scaled by their `cost`."""
    started = perf_counter()
    accuracies = [round_accuracies(configs[n], data, train_dense(configs[n], data))[-1] for n in indices]
    scale = sum(map(cost, range(len(configs)))) / sum(map(cost, indices))
    return SideResult(accuracies, {"seconds": (perf_counter() - started) * scale})


def make_jobs(count: int, *, indices: Sequence[int], level_indices: Sequence[int]) -> Iterator[Job]:
    torch.set_num_threads(1)
    data, few = make_images(count), make_images(BATCH)
    for config in (
        make_points("finetune(epochs=1)")[0],
        ticket_levels()[0],
    ):  # imports, before either side is timed
        round_accuracies(config, few, train_dense(config, few))
    cases = (
        ("2 techniques x 13 amounts, no recovery", make_points("none"), AtLeast(20, limit=22.96)),
        (
            "2 techniques x 13 amounts, one epoch after pruning",
            make_points("finetune(epochs=1, lr=1.0)"),
            AtLeast(8.5, limit=7.94),  # 26 x 11 epochs against 10 + 26
        ),
    )
    for what, configs, claim in cases:
        yield _make_job(
            f"{what}, {count} images",
            configs,
            data,
            indices,
            run_with_shared_training,
            lambda number: 1,
            claim,
        )
    ticket = f"{LEVELS} levels of a lottery ticket, one trial, {count} images"
    yield _make_job(
        ticket,
        ticket_levels(),
        data,
        level_indices,
        run_longest_trial,
        lambda n: n + 2,
        AtLeast(5.5, limit=5.95),
    )


def _make_job(
    what: str,
    configs: Sequence[TrialConfig],
    data: Dataset,
    indices: Sequence[int],
    ours: Callable[[Sequence[TrialConfig], Dataset, Sequence[int]], SideResult],
    cost: Callable[[int], int],
    claim: AtLeast,
) -> Job:
    is_complete = len(indices) == len(configs)
    scaled = f"The baseline ran {len(indices)} of its {len(configs)} points; its time is scaled to all."
    return Job(
        what,
        ours=partial(ours, configs, data, indices),
        baseline=partial(run_separately, configs, data, indices, cost),
        baseline_name="a training for each point",
        claims=(claim,),
        rounds=1 if is_complete else 3,
        warm=False,
        equal="bit for bit",
        note="" if is_complete else scaled,
    )


@benchmark
def shared_training() -> Iterator[Job]:
    yield from make_jobs(6000, indices=(20,), level_indices=(4,))


@benchmark(full=True)
def shared_training_whole() -> Iterator[Job]:
    all_points = range(len(AMOUNTS) * len(TECHNIQUES))
    yield from make_jobs(60_000, indices=all_points, level_indices=range(LEVELS))


if __name__ == "__main__":
    main(__file__)
