"""Stacks: trainings that run as one have the bits that each has by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import models
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.errors import DivergedError
from orchestrator.system.determinism import global_states
from orchestrator.training import stack as stacks
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.loop import EpochRecord, TrainerState, Training, run_training
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.stack import has_equal_bits, run_stack, stacking_key
from orchestrator.training.stacked_network import StackedNetwork, stacking_conflict
from pruning.masking import prunable_layers

CPU = torch.device("cpu")
SGD = Train(epochs=2, optimizer="sgd", lr=0.1, nesterov=True, schedule="cosine", clip_norm=0.5)
ADAM = Train(epochs=2, lr=3e-3)
AVERAGED = replace(SGD, ema=0.9, mixup=0.3, label_smoothing=0.1, augment="crop_flip + cutout(size=2)")


def split(count: int, *, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return Split(torch.randn((count, 1, 8, 8), generator=generator), labels)


IMAGES, VALIDATION = split(107), split(40, seed=1)


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, input_shape=(1, 8, 8), num_classes=10)


def half_masks(net: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {f"{name}.weight": layer.weight for name, layer in prunable_layers(net).items()}
    return {name: torch.rand(weight.shape, generator=generator) > 0.5 for name, weight in weights.items()}


def training(name: str, seed: int, recipe: Train, *, batch_size: int = 32, **options: Any) -> Training:
    net = network(name, seed)
    return Training(
        net,
        IMAGES,
        VALIDATION,
        recipe,
        options.pop("phase", TrainingPhase(recipe.epochs)),
        batch_size,
        Numerics(micro_batch=options.pop("micro_batch", 4096)),
        torch.Generator().manual_seed(seed),
        half_masks(net, seed) if seed % 2 else None,
        **options,
    )


def bits(net: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def results(records: Sequence[EpochRecord]) -> list[dict[str, float]]:
    return [{**vars(record), "seconds": 0.0} for record in records]


def stacked(trainings: Sequence[Training]) -> list[Any]:
    return run_stack(trainings, [global_states(CPU) for _ in trainings])


@pytest.mark.parametrize("name", ["slp", "mlp(widths=[16, 7])", "mlp(widths=[33], bias=True)"])
@pytest.mark.parametrize("recipe", [SGD, ADAM, AVERAGED], ids=["sgd", "adam", "averaged"])
@pytest.mark.parametrize("members", [2, 5])
def test_a_stack_has_the_bits_of_its_members(name: str, recipe: Train, members: int) -> None:
    def make() -> list[Training]:
        return [training(name, seed, recipe, micro_batch=20) for seed in range(members)]

    alone, together = make(), make()
    assert has_equal_bits(make(), (name, recipe, members))
    records = [run_training(one) for one in alone]
    for one, other, expected, got in zip(alone, together, records, stacked(together), strict=True):
        assert results(got) == results(expected)
        assert all(map(torch.equal, bits(one.net), bits(other.net)))


@settings(max_examples=15)
@given(
    seeds=st.lists(st.integers(0, 50), min_size=2, max_size=5),
    batch_size=st.integers(2, 120),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=2),
)
def test_whatever_passes_the_rehearsal_has_equal_bits(
    seeds: list[int], batch_size: int, widths: list[int]
) -> None:
    name = f"mlp(widths={widths}, bias=True)"

    def make() -> list[Training]:
        return [training(name, seed, replace(ADAM, epochs=1), batch_size=batch_size) for seed in seeds]

    if not has_equal_bits(make(), (stacking_key(make()[0]), name)):
        return
    alone, together = make(), make()
    for one in alone:
        run_training(one)
    stacked(together)
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, bits(one.net), bits(other.net)))


def test_phases_may_differ_in_their_rates() -> None:
    phases = [TrainingPhase(2), TrainingPhase(2, start=1, constant_lr=True, lr_factor=0.5)]

    def make() -> list[Training]:
        return [training("slp", seed, SGD, phase=phase) for seed, phase in enumerate(phases)]

    alone, together = make(), make()
    records = [run_training(one) for one in alone]
    got = stacked(together)
    assert [row.lr for row in got[0]] != [row.lr for row in got[1]]
    assert [results(rows) for rows in got] == [results(rows) for rows in records]


def test_a_member_that_diverges_leaves_the_others_untouched() -> None:
    def make() -> list[Training]:
        trainings = [training("mlp(widths=[16])", seed, SGD) for seed in range(3)]
        with torch.no_grad():
            trainings[1].net.get_parameter("output.weight").fill_(math.inf)
        return trainings

    alone, together = make(), make()
    got = stacked(together)
    assert isinstance(got[1], DivergedError)
    for index in (0, 2):
        assert results(got[index]) == results(run_training(alone[index]))
        assert all(map(torch.equal, bits(alone[index].net), bits(together[index].net)))


def test_an_error_of_one_members_callback_is_its_own() -> None:
    def fail(epoch: int, record: EpochRecord) -> None:
        raise OSError("a disk is full")

    got = stacked([training("slp", 0, SGD, on_epoch=fail), training("slp", 1, SGD)])
    assert isinstance(got[0], OSError)
    assert len(got[1]) == SGD.epochs


def test_an_interruption_ends_all_members() -> None:
    def interrupt(epoch: int, record: EpochRecord) -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        stacked([training("slp", 0, SGD), training("slp", 1, SGD, on_epoch=interrupt)])


@pytest.mark.parametrize(
    "recipe", [replace(SGD, epochs=3), replace(ADAM, epochs=3, ema=0.5)], ids=["sgd", "adam"]
)
def test_a_stack_is_resumed_and_resumes_a_training_by_itself(recipe: Train) -> None:
    states: dict[int, list[TrainerState]] = {}

    def make(**options: Any) -> list[Training]:
        return [
            training(
                "mlp(widths=[16])",
                seed,
                recipe,
                maybe_save=lambda capture, seed=seed: states.setdefault(seed, []).append(capture()),
                **{name: values[seed] for name, values in options.items()},
            )
            for seed in range(3)
        ]

    whole = make()
    records = stacked(whole)
    saved = deepcopy({seed: rows[0] for seed, rows in states.items()})
    assert all(len(state.records) == 1 for state in saved.values())
    resumed = make(resume_from=saved)
    for expected, got in zip(records, stacked(resumed), strict=True):
        assert results(got) == results(expected)
    alone = make(resume_from=saved)
    for one, other, expected in zip(whole, alone, records, strict=True):
        assert results(run_training(other)) == results(expected)
        assert all(map(torch.equal, bits(one.net), bits(other.net)))


def test_what_changes_a_network_after_an_epoch_changes_its_own() -> None:
    """As pruning during training does: new masks after the first epoch, of one member."""

    def make() -> list[Training]:
        trainings = [training("mlp(widths=[16])", seed, SGD) for seed in range(3)]
        net = trainings[1].net
        hooks = TrainingHooks(after_epoch=lambda epoch: half_masks(net, 9) if epoch == 1 else None)
        return [trainings[0], replace(trainings[1], hooks=hooks), trainings[2]]

    alone, together = make(), make()
    expected = [run_training(one) for one in alone]
    assert [results(rows) for rows in stacked(together)] == [results(rows) for rows in expected]
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, bits(one.net), bits(other.net)))


class Mixing(nn.Module):
    """Its logits depend on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        logits: Tensor = self.layer(x - x.mean(0))
        return logits


class ReadsWeights(Mixing):
    """It multiplies by a layer's weight without calling the layer."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.linear(images.flatten(1), self.layer.weight, self.layer.bias)


class DrawsNumbers(Mixing):
    """It drops out so rarely that a few steps may not show it."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(functional.dropout(images.flatten(1), 1e-9, self.training))
        return logits


@pytest.mark.parametrize("kind", [Mixing, ReadsWeights, DrawsNumbers])
def test_a_rehearsal_finds_networks_that_a_stack_would_change(kind: type[nn.Module]) -> None:
    trainings = [replace(training("slp", seed, SGD), net=kind(), masks=None) for seed in range(2)]
    assert stacking_key(trainings[0]) is not None
    before = [bits(one.net) for one in trainings]
    assert not has_equal_bits(trainings, kind)
    assert all(map(torch.equal, before[0], bits(trainings[0].net)))


def test_what_cannot_be_stacked_has_no_key() -> None:
    plain = training("slp", 0, SGD)
    linear, tied = nn.Linear(64, 10), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert stacking_key(plain) is not None
    assert stacking_conflict(tied) == "two layers share a parameter"
    dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), linear)
    assert stacking_conflict(dropped) == "1 drops out at random"
    hooked = nn.Sequential(nn.Flatten(), deepcopy(linear))
    hooked[1].register_forward_hook(lambda *values: None)
    assert stacking_conflict(hooked) == "1 has hooks"
    for net in (dropped, hooked, network("cnn(widths=[4])", 0), network("mlp(widths=[2000, 800])", 0)):
        assert stacking_key(replace(plain, net=net)) is None
    hooks = TrainingHooks(loss=lambda logits, images, targets: logits.sum())
    assert stacking_key(replace(plain, hooks=hooks)) is None


def test_layers_that_are_not_linear_run_beside_each_other() -> None:
    nets = [network("cnn(widths=[4, 8])", seed) for seed in range(3)]
    images = torch.randn((96, 1, 8, 8))
    expected = [net(part) for net, part in zip(nets, images.chunk(3), strict=True)]
    assert torch.equal(StackedNetwork(nets)(images), torch.cat(expected))


def test_a_rehearsal_is_done_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr(stacks, "_verdicts", {})
    monkeypatch.setattr(stacks, "_rehearse", lambda trainings: bool(tries.append(len(trainings))) or True)
    pair = [training("slp", seed, SGD) for seed in range(2)]
    for trainings in (pair, pair, [*pair, training("slp", 2, SGD)]):
        assert has_equal_bits(trainings, stacking_key(trainings[0]))
    assert tries == [2, 3]
