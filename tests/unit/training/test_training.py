"""Training: one step by hand, accumulation, masks, rates; evaluation against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from orchestrator.config import Numerics, Train
from orchestrator.data import loading
from orchestrator.data.loading import Split
from orchestrator.errors import DivergedError, SpaceError
from orchestrator.training.evaluation import evaluate
from orchestrator.training.loop import EpochRecord, train
from orchestrator.training.lr_schedules import TrainingPhase, learning_rate
from orchestrator.training.optimizers import make_optimizer

NUMERICS = Numerics(micro_batch=4096)
SGD = Train(epochs=1, optimizer="sgd", lr=0.1, momentum=0.0)


def images(count: int, *, seed: int = 0, classes: int = 10) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return Split(torch.rand((count, 1, 8, 8), generator=generator), labels)


def network(name: str, seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, input_shape=(1, 8, 8), num_classes=classes)


def fit(
    net: nn.Module,
    split: Split,
    recipe: Train,
    *,
    batch_size: int,
    micro_batch: int = 4096,
    seed: int = 0,
    masks: dict[str, Tensor] | None = None,
    phase: TrainingPhase | None = None,
) -> list[EpochRecord]:
    return train(
        net,
        split,
        split,
        recipe=recipe,
        phase=phase or TrainingPhase(recipe.epochs),
        batch_size=batch_size,
        numerics=replace(NUMERICS, micro_batch=micro_batch),
        generator=torch.Generator().manual_seed(seed),
        masks=masks,
    )


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def softmax_gradient(weight: Tensor, bias: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy of softmax regression: (p - y)^T x / n and the mean of p - y."""
    x = split.images.flatten(1).double()
    off = torch.softmax(x @ weight.T + bias, 1) - nn.functional.one_hot(split.labels, 10)
    return off.T @ x / len(x), off.mean(0)


def test_sgd_steps_are_those_of_the_formula() -> None:
    split, net = images(30), network("slp")
    recipe = replace(SGD, epochs=3, momentum=0.9, weight_decay=0.01)
    weight, bias = (net.get_parameter(f"output.{name}").detach().double() for name in ("weight", "bias"))
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    fit(net, split, recipe, batch_size=30)
    for _ in range(3):
        slopes = softmax_gradient(weight, bias, split)
        speed = [0.9 * v + g + 0.01 * w for v, g, w in zip(speed, slopes, (weight, bias), strict=True)]
        weight, bias = weight - 0.1 * speed[0], bias - 0.1 * speed[1]
    torch.testing.assert_close(net.get_parameter("output.weight").double(), weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(net.get_parameter("output.bias").double(), bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_step_is_that_of_torchs_plain_optimizer(optimizer: str) -> None:
    split, net = images(40), network("mlp(widths=[16])")
    twin = network("mlp(widths=[16])")
    recipe = Train(epochs=4, optimizer=optimizer, lr=0.01, momentum=0.9, weight_decay=0.1)
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=False, fused=False),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False, fused=False),
    }[optimizer](list(twin.parameters()))
    fit(net, split, recipe, batch_size=40)
    for _ in range(4):
        plain.zero_grad()
        nn.functional.cross_entropy(twin(split.images), split.labels).backward()
        plain.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=0, atol=2e-6)


@given(micro_batch=st.integers(1, 70), batch_size=st.integers(2, 64))
def test_accumulated_micro_batches_are_the_whole_batch(micro_batch: int, batch_size: int) -> None:
    split, whole, parts = images(64), network("mlp(widths=[16])"), network("mlp(widths=[16])")
    together = fit(whole, split, SGD, batch_size=batch_size)
    apart = fit(parts, split, SGD, batch_size=batch_size, micro_batch=micro_batch)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parameter, parts.get_parameter(name), rtol=0, atol=1e-6)
    assert apart[0].train_loss == pytest.approx(together[0].train_loss, abs=1e-5)
    assert apart[0].train_accuracy == together[0].train_accuracy


@pytest.mark.parametrize(
    "recipe", [Train(20, lr=0.01, weight_decay=0.1), Train(20, "sgd", 0.1, nesterov=True)]
)
@pytest.mark.parametrize("model", ["mlp(widths=[16])", "cnn(widths=[4])"])
def test_masked_weights_stay_exactly_zero(recipe: Train, model: str) -> None:
    split, net = images(64), network(model)
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in net.named_parameters()}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(masks[name])
    before = state(net)
    fit(net, split, recipe, batch_size=16, masks=masks)
    for name, parameter in net.named_parameters():
        assert not parameter[~masks[name]].any(), name
        assert not torch.equal(parameter, before[name]), name


def test_the_same_seed_gives_the_same_bits() -> None:
    split, recipe = images(100), Train(3, augment="crop_flip")
    runs = []
    for seed in (5, 5, 6):
        net = network("cnn(widths=[4])")
        torch.manual_seed(1000 + len(runs))  # the global generator must not matter
        fit(net, split, recipe, batch_size=16, seed=seed)
        runs.append(state(net))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_divergence_names_the_epoch() -> None:
    with pytest.raises(DivergedError, match="epoch 1 of 3"):
        fit(network("mlp(widths=[16])"), images(64), replace(SGD, epochs=3, lr=1e30), batch_size=16)


@pytest.mark.parametrize(
    ("schedule", "position", "factor"),
    [
        ("constant", 0, 1),
        ("constant", 9.9, 1),
        ("cosine", 0, 1),
        ("cosine", 2.5, (1 + math.sqrt(0.5)) / 2),
        ("cosine", 5, 0.5),
        ("cosine", 10, 0),
        ("cosine", 12, 0),  # a recovery longer than the training stays at its end
        ("step", 4.9, 1),
        ("step", 5, 0.1),
        ("step", 7.4, 0.1),
        ("step", 7.5, 0.01),
        ("linear", 2.5, 0.75),
        ("linear", 11, 0),
    ],
)
def test_learning_rates(schedule: str, position: float, factor: float) -> None:
    assert learning_rate(Train(10, lr=0.2, schedule=schedule), position) == pytest.approx(
        0.2 * factor, abs=1e-12
    )


def test_warm_up_is_linear() -> None:
    recipe = Train(10, lr=0.2, warmup_epochs=4)
    rates = [learning_rate(recipe, position) for position in (0, 1, 2, 4, 7)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.2, 0.2], abs=1e-8)


def test_phases_move_along_the_schedule_or_hold() -> None:
    split, recipe = images(40), Train(4, "sgd", 0.1, 0.0, schedule="linear")
    whole = fit(network("slp"), split, recipe, batch_size=20)
    # The last of two steps of each epoch starts half an epoch in.
    assert [record.lr for record in whole] == pytest.approx([0.1 * (1 - (n + 0.5) / 4) for n in range(4)])
    part = fit(network("slp"), split, recipe, batch_size=20, phase=TrainingPhase(2, start=1, lr_factor=3))
    assert [record.lr for record in part] == pytest.approx([0.3 * (1 - 1.5 / 4), 0.3 * (1 - 2.5 / 4)])
    held = fit(
        network("slp"), split, recipe, batch_size=20, phase=TrainingPhase(2, start=3, constant_lr=True)
    )
    assert [record.lr for record in held] == pytest.approx([0.025, 0.025])


def test_a_batch_beyond_the_data_is_the_full_batch() -> None:
    split = loading.load_dataset("digits").train
    small, large = network("slp"), network("slp")
    fit(small, split, SGD, batch_size=1257)
    fit(large, split, SGD, batch_size=60_000)
    assert torch.equal(small.get_parameter("output.weight"), large.get_parameter("output.weight"))
    start = network("slp")
    weight, bias = (start.get_parameter(f"output.{name}").detach().double() for name in ("weight", "bias"))
    expected = weight - 0.1 * softmax_gradient(weight, bias, split)[0]
    torch.testing.assert_close(large.get_parameter("output.weight").double(), expected, rtol=0, atol=1e-6)


def test_a_last_image_on_its_own_does_not_stop_batch_norm() -> None:
    record = fit(network("cnn(widths=[4, 4, 4, 4])"), images(33), SGD, batch_size=32)[0]
    assert math.isfinite(record.train_loss)


def test_clipping_bounds_the_length_of_a_step() -> None:
    net, split = network("slp"), images(30)
    before = state(net)
    fit(net, split, replace(SGD, clip_norm=0.01), batch_size=30)
    moved = torch.cat([(net.state_dict()[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_the_training_loss_is_a_mean_over_images() -> None:
    net, split = network("mlp(widths=[16])"), images(50)
    record = fit(net, split, replace(SGD, lr=1e-30), batch_size=16)[0]  # the last batch has 2
    chance = torch.softmax(net(split.images), 1).detach()
    assert record.train_loss == pytest.approx(log_loss(split.labels, chance, labels=range(10)), rel=1e-5)
    assert record.train_accuracy == accuracy_score(split.labels, chance.argmax(1))
    assert (record.val_loss, record.val_accuracy) == pytest.approx((record.train_loss, record.train_accuracy))


def test_report_hears_of_every_epoch() -> None:
    heard: list[tuple[int, EpochRecord]] = []
    records = train(
        network("slp"),
        images(20),
        images(20, seed=1),
        recipe=SGD,
        phase=TrainingPhase(3),
        batch_size=10,
        numerics=NUMERICS,
        generator=torch.Generator().manual_seed(0),
        on_epoch=lambda epoch, record: heard.append((epoch, record)),
    )
    assert heard == list(enumerate(records, start=1))


@pytest.mark.parametrize("micro_batch", [7, 4096])
def test_evaluation_agrees_with_scikit_learn(micro_batch: int) -> None:
    net, split = network("cnn(widths=[4, 8])"), images(200)
    found = evaluate(net, split, numerics=Numerics(micro_batch=micro_batch))
    scores = net.eval()(split.images).detach().double()
    truth, said = split.labels.numpy(), scores.argmax(1).numpy()
    assert found.accuracy == accuracy_score(truth, said)
    assert found.top5 == top_k_accuracy_score(truth, scores.numpy(), k=5, labels=range(10))
    assert found.loss == pytest.approx(
        log_loss(truth, torch.softmax(scores, 1).numpy(), labels=range(10)), rel=1e-5
    )
    assert found.confusion.tolist() == confusion_matrix(truth, said, labels=range(10)).tolist()
    assert not net.training


def test_with_two_classes_the_top_five_are_all() -> None:
    assert evaluate(network("slp", classes=2), images(20, classes=2), numerics=NUMERICS).top5 == 1.0


def test_bfloat16_trains() -> None:
    net, split = network("mlp(widths=[16])"), images(40)
    record = train(
        net,
        split,
        split,
        recipe=SGD,
        phase=TrainingPhase(1),
        batch_size=20,
        numerics=Numerics(precision="bf16", micro_batch=64),
        generator=torch.Generator().manual_seed(0),
    )[0]
    assert math.isfinite(record.val_loss)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd", partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)),
        ("adam", partial(torch.optim.Adam, lr=0.1, weight_decay=1e-4, fused=True)),
        ("adamw", partial(torch.optim.AdamW, lr=0.1, weight_decay=1e-4, fused=True)),
    ],
)
def test_the_optimizers_are_torchs_bit_for_bit(name: str, theirs: Callable[..., Any]) -> None:
    recipe = Train(optimizer=name, lr=0.1, momentum=0.9, nesterov=name == "sgd", weight_decay=1e-4)
    nets = [network("mlp(widths=[16])") for _ in range(2)]
    optimizers = [make_optimizer(recipe, nets[0]), theirs(nets[1].parameters())]
    assert isinstance(optimizers[0], type(optimizers[1]))
    split = images(40)
    for _ in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(split.images), split.labels).backward()
            optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert optimizers[0].state_dict().keys() == optimizers[1].state_dict().keys()


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    with pytest.raises(SpaceError, match="did you mean adam"):
        make_optimizer(Train(optimizer="adan"), network("slp"))
    with pytest.raises(SpaceError, match="did you mean cosine"):
        learning_rate(Train(schedule="cosin"), 0.0)


class _Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device: a number read out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "recipe",
    [
        Train(2, augment="crop_flip", clip_norm=1.0),
        replace(SGD, epochs=2, momentum=0.9, augment="flip"),
        Train(2, augment="resized_crop + cutout(size=2)", label_smoothing=0.1, ema=0.9),
    ],
)
def test_nothing_is_read_from_the_device_per_batch(recipe: Train) -> None:
    split, net = images(96), network("cnn(widths=[4])")
    masks = {"blocks.0.conv.weight": torch.rand(4, 1, 3, 3) < 0.5}
    counts = []
    for batch_size in (96, 8):
        with _Waits() as waits:
            fit(net, split, recipe, batch_size=batch_size, masks=masks)
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 4 * recipe.epochs


def test_numbers_read_from_the_device_are_counted() -> None:
    with _Waits() as waits:
        torch.ones(3).sum().item()
    assert waits.count == 1


def test_channels_last_trains_to_nearly_the_same_network() -> None:
    split, plain, other = images(64), network("cnn(widths=[8, 8])"), network("cnn(widths=[8, 8])")
    other.to(memory_format=torch.channels_last)
    masks = {"blocks.1.conv.weight": torch.rand(8, 8, 3, 3) < 0.5}
    fit(plain, split, SGD, batch_size=16, masks=masks)
    fit(other, split, SGD, batch_size=16, masks=masks)
    weight = other.get_parameter("blocks.1.conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight[~masks["blocks.1.conv.weight"]].any()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=0, atol=1e-4)
