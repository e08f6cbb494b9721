"""What a network draws in its forward pass depends on its configuration alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

import models
from orchestrator import data, stages
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.trial import Result, run_dense, run_trial
from orchestrator.walk.bench import State, make_bench
from orchestrator.walk.checkpoint import Saved, digest
from orchestrator.walk.draws import draws_state, load_draws, own_draws
from orchestrator.walk.evaluation import evaluate

CPU = torch.device("cpu")
DENSE = DenseConfig("dropped", "digits", 50, 0, Train(epochs=3), Numerics(micro_batch=4096))
TRIAL = TrialConfig(
    DENSE, Prune("snip", "weight", "global", "iterative(rounds=2)", 0.75), "finetune(epochs=2)", "x"
)


def dropped(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Half of the inputs and of the hidden units leave at every step."""
    size = input_shape[1] * input_shape[2]
    layers = nn.Linear(size, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), *layers)


class Noisy(nn.Module):
    """Draws in eval mode, too."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(images.flatten(1)[:, :10], 0.5, training=True)


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.BUILDERS, "dropped", dropped)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", samples_per_class=20)


class Killed(BaseException):
    """The end of a process."""


@dataclass
class Kept:
    """A keeper in memory, of what could lie in files."""

    files: tuple[bytes, str] | None = None

    def latest(self) -> Saved | None:
        return None if self.files is None else Saved(load(self.files[0]), json.loads(self.files[1]))

    def keep(self, saved: Saved) -> None:
        self.files = save(dict(saved.tensors)), json.dumps(saved.about, allow_nan=False)


class Nothing:
    def dense(self, config: DenseConfig) -> State | None:
        return None


def other_work() -> None:
    """What a worker may have done before."""
    torch.rand(17)


def bits(result: Result) -> tuple[str, list[float]]:
    rounds = [measured.measurement.val_loss for measured in result.rounds]
    return digest(result.last.state.weights), rounds


def test_the_same_configuration_twice_in_one_process_has_equal_bits(digits: data.Dataset) -> None:
    first = bits(run_trial(TRIAL, digits, store=Nothing()))
    before = torch.get_rng_state()
    other_work()
    assert bits(run_trial(TRIAL, digits, store=Nothing())) == first
    another = replace(TRIAL, dense=replace(DENSE, seed=1))
    assert bits(run_trial(another, digits, store=Nothing())) != first
    assert not torch.equal(torch.get_rng_state(), before)  # other_work alone has moved it


def test_training_leaves_the_global_generator_where_it_stood(digits: data.Dataset) -> None:
    run_dense(DENSE, digits)  # its model's cost is counted once
    before = torch.get_rng_state()
    run_dense(DENSE, digits)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_does_drop(digits: data.Dataset) -> None:
    # Without draws the two trainings below would be one: the configuration is the same but for the rate.
    plain = run_dense(DENSE, digits)
    models.BUILDERS["dropped"] = lambda shape, classes: nn.Sequential(
        *(nn.Identity() if isinstance(layer, nn.Dropout) else layer for layer in dropped(shape, classes))
    )
    assert bits(run_dense(DENSE, digits)) != bits(plain)


@pytest.mark.parametrize("end", [1, 2, 4, 5, 7])
def test_one_that_is_interrupted_and_carried_on_has_equal_bits(digits: data.Dataset, end: int) -> None:
    whole = bits(run_trial(TRIAL, digits, store=Nothing()))
    keeper = Kept()
    with pytest.raises(Killed):
        run_trial(TRIAL, digits, store=Nothing(), report=killer(end), keeper=keeper, every_seconds=0.0)
    other_work()
    carried_on: list[str] = []
    report: Callable[[str, int, object], None] = lambda stage, epoch, _: carried_on.append(stage)  # noqa: E731
    result = run_trial(TRIAL, digits, store=Nothing(), report=report, keeper=keeper, every_seconds=0.0)
    assert bits(result) == whole
    assert len(carried_on) == 7 - end  # three epochs of the dense network, two after each of two rounds


def killer(end: int) -> Callable[[str, int, object], None]:
    epochs: Iterator[int] = iter(range(1, 100))

    def report(stage: str, epoch: int, record: object) -> None:
        if next(epochs) == end:
            raise Killed

    return report


def test_a_network_that_draws_in_eval_mode_is_evaluated_alike_each_time(digits: data.Dataset) -> None:
    numerics = Numerics(micro_batch=100)
    first = evaluate(Noisy(), digits.validation, numerics=numerics)
    other_work()
    assert evaluate(Noisy(), digits.validation, numerics=numerics).loss == first.loss


def test_scores_of_a_network_with_dropout_are_drawn_alike(digits: data.Dataset) -> None:
    bench = make_bench(DENSE, digits)
    state = stages.initial(bench)
    first = stages.prune_round(bench, TRIAL, state, None, round=1)
    other_work()
    again = stages.prune_round(bench, TRIAL, state, None, round=1)
    assert digest(first.masks) == digest(again.masks)


def test_generators_are_taken_up_where_they_stood() -> None:
    with own_draws(3, CPU):
        torch.rand(5)
        state = draws_state(CPU)
        expected = torch.rand(5)
        load_draws(state, CPU)
        assert torch.equal(torch.rand(5), expected)
    with own_draws(3, CPU):
        torch.rand(5)
        assert torch.equal(torch.rand(5), expected)
    with pytest.raises(ValueError, match="nothing alone"):
        load_draws({}, CPU)
    batches = torch.rand(5, generator=torch.Generator().manual_seed(3))
    with own_draws(3, CPU):
        assert not torch.equal(torch.rand(5), batches)
