"""Trials that run in stacks: each ends with the bits that it has by itself, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.system.determinism import global_states
from orchestrator.training import stack
from orchestrator.training.stack_runner import StackMember, run_in_stacks
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState
from orchestrator.trial.run import Round, TrialResult, run_dense, run_trial

MLP = "mlp(widths=[16, 8])"
ADAM = Train(epochs=3, lr=3e-3, schedule="cosine", warmup_epochs=1, augment="crop_flip")
SGD = Train(epochs=3, optimizer="sgd", lr=0.05, momentum=0.9, nesterov=True, schedule="step", clip_norm=1.0)
digits = cache(partial(loading.load_dataset, "digits", samples_per_class=20))
CPU = torch.device("cpu")


def dense_config(seed: int, recipe: Train = SGD) -> DenseConfig:
    return DenseConfig(MLP, "digits", 50, seed, recipe, Numerics(micro_batch=4096))


def weights(schedule: str, amount: float = 0.8) -> Prune:
    return Prune("magnitude", "weight", "global", schedule, amount)


def trial(seed: int, prune: Prune, recover: str, **options: Any) -> TrialConfig:
    return TrialConfig(dense_config(seed), prune, recover, "x", **options)


TICKETS = [trial(seed, weights("iterative(rounds=2)"), "rewind(to=1)") for seed in range(3)]
MIXED = [
    trial(0, weights("one_shot", 0.5), "finetune(epochs=2)"),
    trial(1, weights("one_shot", 0.5), "finetune(epochs=2, lr=0.1)"),
    trial(0, Prune("l2", "unit", "layer", "one_shot", 0.5), "finetune(epochs=2)"),
    trial(0, Prune("l2", "unit", "layer", "one_shot", 0.5), "finetune(epochs=2, on='cut')"),
    trial(1, weights("one_shot", 0.9), "none"),
    trial(2, weights("one_shot", 0.9), "lr_rewind(epochs=1)"),
    trial(2, weights("one_shot", 0.9), "rewind", distill="soft_labels"),
    trial(2, weights("one_shot", 0.9), "finetune(epochs=2)", prepare="group_lasso(epochs=1)"),
    trial(3, Prune("l2", "unit", "layer", "cubic(rounds=2)", 0.5), "none", when="during"),
    trial(4, Prune("l2", "unit", "layer", "cubic(rounds=2)", 0.7), "none", when="during"),
    trial(3, Prune("random", "weight", "erk", "one_shot", 0.8), "set", when="init"),
]


class DenseStore:
    """Keeps the dense networks that a process has trained, as the sweep's store does."""

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return _trained(config)


@cache
def _trained(config: DenseConfig) -> NetworkState:
    return run_dense(config, digits()).last.state


def run_by_itself(
    config: DenseConfig | TrialConfig, member: StackMember | None = None, **options: Any
) -> TrialResult:
    more = options if member is None else {**options, "run_training": member.run_training}
    if isinstance(config, DenseConfig):
        return run_dense(config, digits(), **more)
    return run_trial(config, digits(), store=DenseStore(), **more)


def run_together(configs: Sequence[DenseConfig | TrialConfig], **options: Any) -> tuple[list[Any], list[int]]:
    """Return the results, and the size of the largest stack that each was in."""
    sizes = [0] * len(configs)

    def job(index: int, member: StackMember) -> TrialResult:
        try:
            return run_by_itself(configs[index], member, **options)
        finally:
            sizes[index] = member.largest_stack

    jobs: list[Callable[[StackMember], TrialResult]] = [partial(job, index) for index in range(len(configs))]
    return run_in_stacks(jobs, model=MLP, device=CPU), sizes


def tensors(result: TrialResult) -> dict[str, Tensor]:
    state = result.last.state
    return {**state.weights, **{f"mask {name}": mask for name, mask in state.masks.items()}}


def numbers(result: TrialResult) -> list[dict[str, Any]]:
    rows = [row.measurement.metrics("final") for row in result.rounds]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def assert_equal(one: TrialResult, other: TrialResult) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(tensors(one)[name], tensors(other)[name]) for name in tensors(one))
    assert numbers(one) == numbers(other)


@pytest.mark.parametrize(
    ("configs", "stacked"),
    [
        ([dense_config(seed) for seed in range(4)], [4] * 4),
        ([dense_config(seed, ADAM) for seed in range(2)], [2] * 2),
        ([dense_config(0), dense_config(1), dense_config(2, ADAM)], [2, 2, 1]),
        (TICKETS, [3] * 3),
        (MIXED, None),
    ],
    ids=["dense", "augmented", "two recipes", "lottery tickets", "mixed"],
)
def test_every_trial_has_the_bits_of_itself_alone(
    configs: list[DenseConfig | TrialConfig], stacked: list[int] | None
) -> None:
    before = global_states(CPU)["cpu"].clone()
    results, sizes = run_together(configs)
    assert torch.equal(before, global_states(CPU)["cpu"])
    for config, result in zip(configs, results, strict=True):
        assert_equal(run_by_itself(config), result)
    assert stacked is None or sizes == stacked
    assert max(sizes) > 1


def test_a_stack_is_as_large_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 4 * (64 * 16 + 16 * 8 + 8 * 10)  # bytes of one network
    monkeypatch.setattr(stack, "MOST_BYTES", 3 * 10 * weights)
    configs = [dense_config(seed) for seed in range(5)]
    results, sizes = run_together(configs)
    assert sizes == [3, 3, 3, 2, 2]
    assert_equal(run_by_itself(configs[4]), results[4])
    monkeypatch.setattr(stack, "MOST_BYTES", 1)
    assert run_together(configs[:2])[1] == [1, 1]


def test_one_that_fails_leaves_the_others_untouched() -> None:
    diverging = replace(dense_config(7), train=replace(SGD, lr=1e30, clip_norm=0.0))
    alike = [replace(dense_config(seed), train=replace(SGD, clip_norm=0.0)) for seed in range(2)]
    results, _ = run_together([alike[0], diverging, alike[1]])
    assert isinstance(results[1], Exception)
    assert_equal(run_by_itself(alike[0]), results[0])
    assert_equal(run_by_itself(alike[1]), results[2])


def test_one_is_stopped_between_rounds_and_the_others_go_on() -> None:
    def on_round(round: Round) -> str:
        return "worse than the others" if stops.pop(0) else ""

    stops = [False, True, False, False, False]
    results, _ = run_together(TICKETS, on_round=on_round)
    assert [len(result.rounds) for result in results] == [2, 1, 2]
    for index in (0, 2):
        assert_equal(run_by_itself(TICKETS[index]), results[index])


@pytest.mark.parametrize("at_round", [True, False], ids=["in a job", "in a stack"])
def test_an_interruption_ends_every_trial(at_round: bool) -> None:
    ended: list[int] = []

    def interrupt(*values: Any) -> str:
        raise SystemExit(1)

    def job(index: int, member: StackMember) -> TrialResult:
        options = {"on_round" if at_round else "on_epoch": interrupt if index == 1 else None}
        try:
            return run_by_itself(TICKETS[index], member, **options)
        except SystemExit:
            ended.append(index)
            raise

    with pytest.raises(SystemExit):
        run_in_stacks([partial(job, index) for index in range(3)], model=MLP, device=CPU)
    assert sorted(ended) == [0, 1, 2] if not at_round else {1} <= set(ended)


@pytest.mark.parametrize(
    "configs",
    [
        [dense_config(seed) for seed in range(3)],
        TICKETS,
        [replace(config, prune=replace(config.prune, amount=0.6)) for config in MIXED[8:10]],
    ],
    ids=["dense", "lottery tickets", "hooks that remember"],
)
def test_memory_that_runs_out_in_a_stack_leaves_each_training_to_itself(
    configs: list[DenseConfig | TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has trained for an epoch by then, and its members begin anew with the bits of themselves alone."""
    expected = [run_by_itself(config) for config in configs]
    run_epoch, failed = stack._Stack.run_epoch, []

    def run_out(self: stack._Stack, epoch: int) -> None:
        run_epoch(self, epoch)
        failed.append(epoch)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(stack._Stack, "run_epoch", run_out)
    results, sizes = run_together(configs)
    assert failed
    assert set(sizes) == {1}
    for one, other in zip(results, expected, strict=True):
        assert_equal(one, other)
        assert one.last.state.micro_batch == other.last.state.micro_batch


def test_an_interruption_is_met_before_the_next_member_goes_on() -> None:
    measured: list[int] = []

    def on_round(index: int, round: Round) -> str:
        measured.append(index)
        raise SystemExit(1)

    def job(index: int, member: StackMember) -> TrialResult:
        return run_by_itself(TICKETS[index], member, on_round=partial(on_round, index))

    with pytest.raises(SystemExit):
        run_in_stacks([partial(job, index) for index in range(3)], model=MLP, device=CPU)
    assert measured == [0]


def test_rounds_of_a_trial_train_the_first_epochs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, dense = [], stages.dense

    def count(*args: Any, **options: Any) -> NetworkState:
        trained.append(options)
        return dense(*args, **options)

    monkeypatch.setattr(stages, "dense", count)
    seeds = [trial(seed, weights("iterative(rounds=3)"), "rewind(to=2)") for seed in range(4)]
    run_together(seeds)
    assert len(trained) == 4


def test_errors_are_returned_where_the_jobs_were_given() -> None:
    def fail(member: StackMember) -> int:
        raise OSError("no such file")

    results = run_in_stacks([fail, lambda member: 3], model=MLP, device=CPU)
    assert isinstance(results[0], OSError)
    assert results[1] == 3
