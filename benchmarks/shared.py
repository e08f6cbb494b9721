"""What sharing saves: one dense network for all amounts, one walk for all levels of a lottery ticket.

The peer is a script that trains for every point anew, by the same code: the accuracies are equal bit for
bit. Where it would run for long it is run for some of its points, and its time is scaled to all of them.
Networks are trained in this process, on one thread: neither Ray nor MLflow has a part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter

import torch

from benchmarks.harness import AtLeast, Done, Job, benchmark, main
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data.loading import Dataset, Split
from orchestrator.space.techniques import resolve
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.run import run_trial

AMOUNTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)
TECHNIQUES = ("weight", "neuron")
LEVELS, KEPT = 10, 0.8  # of a lottery ticket: rounds, and what each leaves of the weights
EPOCHS, TICKET_EPOCHS = 10, 2
BATCH = 256


class Shelf:
    """A store that holds one dense network."""

    def __init__(self, state: NetworkState) -> None:
        self.state = state

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return self.state


def images(count: int) -> Dataset:
    """Noise around ten patterns, in the shape of MNIST; test and validation sets have a tenth each."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 28, 28, generator=generator)

    def split(size: int) -> Split:
        labels = torch.arange(size) % 10
        return Split(patterns[labels] + 3 * torch.randn(size, 1, 28, 28, generator=generator), labels)

    parts = (split(size) for size in (count, count // 10, count // 10))
    return Dataset("synthetic", *parts, 10, (1, 28, 28), f"{count} synthetic", tuple("0123456789"))


def dense(epochs: int) -> DenseConfig:
    return DenseConfig("mlp", "synthetic", BATCH, 0, Train(epochs=epochs), Numerics(micro_batch=BATCH))


def pruned(technique: str, schedule: str, amount: float) -> Prune:
    known = resolve(technique, {})
    return Prune(known.criterion, known.granularity, known.scope, schedule, amount)


def points(recover: str) -> list[TrialConfig]:
    """Two techniques by 13 amounts."""
    return [
        TrialConfig(dense(EPOCHS), pruned(name, "one_shot", amount), recover, name)
        for name in TECHNIQUES
        for amount in AMOUNTS
    ]


def levels() -> list[TrialConfig]:
    """A lottery ticket to each of its levels; the last walk passes all of them."""
    return [
        TrialConfig(
            dense(TICKET_EPOCHS),
            pruned("weight", f"iterative(rounds={level})", 1 - KEPT**level),
            "rewind(to=0)",
            "weight",
        )
        for level in range(1, LEVELS + 1)
    ]


def trained(config: TrialConfig, data: Dataset) -> Shelf:
    return Shelf(stages.dense(make_context(config.dense, data)))


def accuracies(config: TrialConfig, data: Dataset, shelf: Shelf) -> list[float]:
    """On test images, after every round."""
    return [found.measurement.accuracy for found in run_trial(config, data, store=shelf).rounds]


def together(configs: Sequence[TrialConfig], data: Dataset, chosen: Sequence[int]) -> Done:
    """All points from one dense network; the accuracies of the chosen ones."""
    shelf = trained(configs[0], data)
    found = [accuracies(config, data, shelf) for config in configs]
    return Done([found[number][-1] for number in chosen])


def one_walk(configs: Sequence[TrialConfig], data: Dataset, chosen: Sequence[int]) -> Done:
    """The longest of the walks, which passes the ends of all others."""
    found = accuracies(configs[-1], data, trained(configs[-1], data))
    return Done([found[number] for number in chosen])


def one_by_one(
    configs: Sequence[TrialConfig], data: Dataset, chosen: Sequence[int], cost: Callable[[int], int]
) -> Done:
    """A script: the chosen points, each from a network of its own; the time is scaled by their `cost`."""
    started = perf_counter()
    found = [accuracies(configs[n], data, trained(configs[n], data))[-1] for n in chosen]
    scale = sum(map(cost, range(len(configs)))) / sum(map(cost, chosen))
    return Done(found, {"seconds": (perf_counter() - started) * scale})


def jobs(count: int, *, chosen: Sequence[int], some_levels: Sequence[int]) -> Iterator[Job]:
    torch.set_num_threads(1)
    data, few = images(count), images(BATCH)
    for config in (points("finetune(epochs=1)")[0], levels()[0]):  # neither side is to pay for imports
        accuracies(config, few, trained(config, few))
    cases = (
        ("2 techniques x 13 amounts, no recovery", points("none"), AtLeast(20, limit=22.96)),
        (
            "2 techniques x 13 amounts, one epoch after pruning",
            points("finetune(epochs=1, lr=1.0)"),
            AtLeast(8.5, limit=7.94),  # 26 x 11 epochs against 10 + 26
        ),
    )
    for what, configs, claim in cases:
        yield _job(f"{what}, {count} images", configs, data, chosen, together, lambda number: 1, claim)
    walk = f"{LEVELS} levels of a lottery ticket, one walk, {count} images"
    yield _job(walk, levels(), data, some_levels, one_walk, lambda n: n + 2, AtLeast(5.5, limit=5.95))


def _job(
    what: str,
    configs: Sequence[TrialConfig],
    data: Dataset,
    chosen: Sequence[int],
    ours: Callable[[Sequence[TrialConfig], Dataset, Sequence[int]], Done],
    cost: Callable[[int], int],
    claim: AtLeast,
) -> Job:
    whole = len(chosen) == len(configs)
    part = f"Of the script's {len(configs)} points {len(chosen)} was run, and its time scaled to all."
    return Job(
        what,
        ours=partial(ours, configs, data, chosen),
        peer=partial(one_by_one, configs, data, chosen, cost),
        peer_name="a training for each",
        claims=(claim,),
        rounds=1 if whole else 3,
        warm=False,
        equal="bit for bit",
        note="" if whole else part,
    )


@benchmark
def shared_training() -> Iterator[Job]:
    yield from jobs(6000, chosen=(20,), some_levels=(4,))


@benchmark(full=True)
def shared_training_whole() -> Iterator[Job]:
    whole = range(len(AMOUNTS) * len(TECHNIQUES))
    yield from jobs(60_000, chosen=whole, some_levels=range(LEVELS))


if __name__ == "__main__":
    main(__file__)
