"""Parts of a recipe against torch's and torchvision's own: rates, smoothing, mixup, averages, optimizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import models
from models import torchvision_compat
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.errors import SpaceError
from orchestrator.space.recipe import RECIPES
from orchestrator.training.averaging import WeightAverage
from orchestrator.training.evaluation import evaluate
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.inputs import Inputs, draw_share
from orchestrator.training.loop import EpochRecord, TrainerState, train
from orchestrator.training.losses import Labels, cross_entropy
from orchestrator.training.lr_schedules import TrainingPhase, learning_rate, lr_schedules, schedule_conflict

assert torchvision_compat.transforms  # imported before torchvision itself
from torchvision.transforms import v2  # noqa: E402

SGD = Train(epochs=3, optimizer="sgd", lr=0.05, momentum=0.9)
MIXED = replace(SGD, augment="crop_flip + cutout(size=3)", mixup=0.4, label_smoothing=0.1)
NUMERICS = Numerics(micro_batch=4096)


def images(count: int, *, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return Split(torch.rand((count, 1, 8, 8), generator=generator), labels)


def network(name: str = "cnn(widths=[4, 8])", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, input_shape=(1, 8, 8), num_classes=10)


def fit(
    net: nn.Module,
    recipe: Train,
    *,
    micro_batch: int = 4096,
    masks: Mapping[str, Tensor] | None = None,
    hooks: TrainingHooks | None = None,
    states: list[TrainerState] | None = None,
) -> list[EpochRecord]:
    return train(
        net,
        images(90),
        images(40, seed=1),
        recipe=recipe,
        phase=TrainingPhase(recipe.epochs),
        batch_size=20,
        numerics=replace(NUMERICS, micro_batch=micro_batch),
        generator=torch.Generator().manual_seed(5),
        masks=masks,
        hooks=hooks or TrainingHooks(),
        maybe_save=None if states is None else lambda capture: states.append(capture()),
    )


# ---- learning rates


def rates(recipe: Train, steps: int) -> list[float]:
    positions = (epoch + k / steps for epoch in range(recipe.epochs) for k in range(steps))
    return [learning_rate(recipe, position, step=1 / steps) for position in positions]


def torch_rates(recipe: Train, steps: int, make: object, *, each_epoch: bool = False) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = make(optimizer)  # type: ignore[operator]  # torch's classes, with different arguments
    seen = []
    for step in range(recipe.epochs * steps):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if not each_epoch or (step + 1) % steps == 0:
            scheduler.step()
    return seen


@given(st.integers(1, 12), st.integers(1, 30), st.floats(0.05, 0.9), st.floats(1, 100), st.floats(1, 1e5))
def test_one_cycle_is_torchs(epochs: int, steps: int, warmup: float, start: float, end: float) -> None:
    if warmup * epochs * steps <= 1.0 or epochs * steps < 2:
        return  # torch divides by a phase of no steps or fewer
    recipe = Train(epochs, lr=0.3, schedule=f"one_cycle(warmup={warmup}, start={start}, end={end})")
    theirs = torch_rates(
        recipe,
        steps,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            recipe.lr,
            total_steps=epochs * steps,
            pct_start=warmup,
            div_factor=start,
            final_div_factor=end,
            cycle_momentum=False,
        ),
    )
    assert rates(recipe, steps) == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (2, 1)])
def test_one_cycle_of_very_few_steps_begins_at_the_peak(epochs: int, steps: int) -> None:
    seen = rates(Train(epochs, lr=0.3, schedule="one_cycle"), steps)
    assert seen[0] == 0.3
    assert all(0 < rate <= 0.3 for rate in seen)


@pytest.mark.parametrize("factor", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("milestones", [[2, 5], [1], [3, 3, 6], [5, 2]])
def test_steps_are_those_of_torchs_multi_step(milestones: list[int], factor: float) -> None:
    recipe = Train(8, lr=0.3, schedule=f"step(milestones={milestones}, factor={factor})")
    theirs = torch_rates(
        recipe,
        4,
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, sorted(milestones), factor),
        each_epoch=True,
    )
    assert rates(recipe, 4) == pytest.approx(theirs)
    parts = [f"{100 * milestone / 8}%" for milestone in milestones]
    assert rates(replace(recipe, schedule=f"step(milestones={parts}, factor={factor})"), 4) == rates(
        recipe, 4
    )


def test_a_milestone_counts_from_the_step_at_which_it_is_reached() -> None:
    seen = rates(Train(3, lr=1.0, schedule="step(milestones='50%')"), 4)
    assert seen == [1.0] * 6 + [0.1] * 6


def test_cosine_is_torchs() -> None:
    recipe = Train(6, lr=0.3, schedule="cosine")
    theirs = torch_rates(recipe, 5, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 30))
    assert rates(recipe, 5) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Train(5, schedule="step(milestones=[3, 5])"), "milestone 5 of schedule step is not before the end"),
        (Train(6, schedule="step(milestones=[3, 5])"), None),
        (Train(5, schedule="one_cycle", warmup_epochs=1), "warms up by itself: warmup_epochs must be 0"),
        (Train(5, schedule="cosine", warmup_epochs=1), None),
    ],
)
def test_schedules_that_do_not_fit_a_recipe(recipe: Train, reason: str | None) -> None:
    conflict = schedule_conflict(recipe)
    assert (conflict is None) if reason is None else reason in str(conflict)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step(milestones=[])", "no milestone is given"),
        ("step(milestones=[0.5])", "write that part of the dense training as '50%'"),
        ("step(factor=0)", "must be in"),
        ("one_cycle(warmup=1.0)", "must be in"),
        ("one_cicle", "did you mean one_cycle"),
    ],
)
def test_schedules_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        learning_rate(Train(schedule=text), 0.0)
    with pytest.raises(ValueError, match=message):
        lr_schedules.get(text)


# ---- label smoothing and mixup


@given(st.floats(0, 0.99), st.integers(2, 12), st.integers(0, 2**32))
def test_smoothing_is_that_of_torchs_cross_entropy(smoothing: float, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((9, classes), generator=generator)
    labels = torch.randint(classes, (9,), generator=generator)
    targets = Labels(labels).targets(classes, smoothing=smoothing)
    theirs = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")(logits, labels)
    assert cross_entropy(logits, torch.empty(0), targets) == pytest.approx(float(theirs), rel=1e-5)
    assert smoothing or targets is labels  # as it always was, to the bit


@given(st.floats(0.01, 50), st.integers(0, 2**32), st.integers(1, 4))
def test_mixup_is_that_of_torchvision_with_the_same_share(alpha: float, seed: int, count: int) -> None:
    split, recipe = images(12), Train(mixup=alpha)
    batch = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    share = draw_share(alpha, torch.Generator().manual_seed(seed))
    theirs = v2.MixUp(alpha=alpha, num_classes=10)
    x, y = split.images[batch], split.labels[batch]
    expected_images, expected_labels = (
        theirs.transform(each, {"lam": share, "labels": y, "batch_size": 12}) for each in (x, y)
    )
    parts = list(Inputs(split, recipe, torch.Generator().manual_seed(seed)).micro_batches(batch, count))
    assert len(parts) == count
    assert torch.allclose(torch.cat([part for part, _ in parts]), expected_images, atol=1e-6)
    targets = torch.cat([labels.targets(10, smoothing=0.0) for _, labels in parts])
    assert torch.allclose(targets, expected_labels, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = [draw_share(alpha, generator) for _ in range(3000)]
    assert stats.kstest(shares, "beta", (alpha, alpha)).pvalue > 1e-3


def test_a_mixed_image_counts_by_the_share_of_each_class() -> None:
    labels = Labels(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 0, 2]), 0.75)
    assert float(labels.count_hits(torch.tensor([0, 1, 0, 1]))) == pytest.approx(0.75 + 1.0 + 0.25 + 0.0)


@pytest.mark.parametrize(
    "augment", ["crop_flip", "resized_crop + cutout(size=2)", "randaugment(operations=1)"]
)
def test_micro_batches_of_any_size_have_the_draws_of_the_batch(augment: str) -> None:
    split, recipe = images(33), Train(augment=augment, mixup=0.5)
    batch = torch.randperm(33, generator=torch.Generator().manual_seed(2))
    seen = []
    for count in (1, 2, 5, 33):
        generator = torch.Generator().manual_seed(9)
        parts = list(Inputs(split, recipe, generator).micro_batches(batch, count))
        targets = [labels.targets(10, smoothing=0.1) for _, labels in parts]
        seen.append((torch.cat([part for part, _ in parts]), torch.cat(targets), generator.get_state()))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_accumulated_gradients_of_a_mixed_recipe_are_those_of_the_batch() -> None:
    whole, parts = network("mlp(widths=[16])"), network("mlp(widths=[16])")
    one = fit(whole, MIXED)
    other = fit(parts, MIXED, micro_batch=6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert [r.train_loss for r in one] == pytest.approx([r.train_loss for r in other], rel=1e-4)


def test_validation_is_plain_cross_entropy() -> None:
    net = network()
    records = fit(net, replace(MIXED, ema=0.9))
    measured = evaluate(net, images(40, seed=1), numerics=NUMERICS)
    assert (records[-1].val_loss, records[-1].val_accuracy) == (measured.loss, measured.accuracy)


def test_the_training_loss_is_that_of_the_smooth_labels() -> None:
    net = network("slp")
    net.requires_grad_(False)
    still = copy.deepcopy(net)
    net.requires_grad_(True)
    records = fit(net, replace(SGD, epochs=1, lr=1e-12, label_smoothing=0.3))
    split = images(90)
    theirs = nn.CrossEntropyLoss(label_smoothing=0.3)(still(split.images), split.labels)
    assert records[0].train_loss == pytest.approx(float(theirs), rel=1e-5)


# ---- the average of the weights


def averaged_by_torch(decay: float, recipe: Train) -> tuple[nn.Module, AveragedModel]:
    """A training whose every step is followed by an update of torch's own average."""
    net = network()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def step(optimizer: torch.optim.Optimizer, count: int) -> None:
        optimizer.step()
        average.update_parameters(net)

    fit(net, recipe, hooks=TrainingHooks(optimizer_step=step))
    return net, average


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_torchs_and_takes_the_place_of_the_network(decay: float) -> None:
    net, states = network(), list[TrainerState]()
    records = fit(net, replace(SGD, ema=decay), states=states)
    plain, theirs = averaged_by_torch(decay, SGD)
    ours, expected = net.state_dict(), theirs.module.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name
    # The training itself goes on from the weights, not from their average.
    for name, tensor in plain.state_dict().items():
        assert torch.equal(states[-1].weights[name], tensor), name
    assert not torch.equal(ours["blocks.0.conv.weight"], states[-1].weights["blocks.0.conv.weight"])
    measured = evaluate(net, images(40, seed=1), numerics=NUMERICS)
    assert records[-1].val_loss == measured.loss


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_dead_weights_are_zero_in_the_average_at_every_step(optimizer: str) -> None:
    net = network()
    generator = torch.Generator().manual_seed(3)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.4
        for name, parameter in net.named_parameters()
        if parameter.dim() > 1
    }
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    states: list[TrainerState] = []
    recipe = replace(MIXED, optimizer=optimizer, lr=0.01, ema=0.9, weight_decay=0.01)
    fit(net, recipe, masks=masks, states=states)
    for name, mask in masks.items():
        assert all(int(state.average[name][~mask].count_nonzero()) == 0 for state in states)
        assert all(int(state.weights[name][~mask].count_nonzero()) == 0 for state in states)
        assert int(net.get_parameter(name)[~mask].count_nonzero()) == 0
        assert int(net.get_parameter(name)[mask].count_nonzero()) == int(mask.sum())


def test_new_masks_reach_the_average_and_what_regrows_starts_at_zero() -> None:
    net = nn.Linear(3, 1, bias=False)
    average = WeightAverage(net, 0.5)
    weight = net.weight.detach()
    weight.copy_(torch.tensor([[4.0, 8.0, 0.0]]))
    average.update()
    weight.copy_(torch.tensor([[8.0, 0.0, 0.0]]))  # the second dies, the third is alive from now on
    average.update({"weight": torch.tensor([[True, False, True]])})
    assert average.state_dict()["weight"].tolist() == [[6.0, 0.0, 0.0]]
    weight.copy_(torch.tensor([[8.0, 0.0, 2.0]]))
    average.update()
    assert average.state_dict()["weight"].tolist() == [[7.0, 0.0, 1.0]]


def test_a_hook_after_the_epoch_prunes_the_average_and_the_weights() -> None:
    net, states = network("mlp(widths=[16])"), list[TrainerState]()
    name = next(name for name, parameter in net.named_parameters() if parameter.dim() > 1)
    seen: list[Tensor] = []

    def prune(epoch: int) -> Mapping[str, Tensor] | None:
        parameter = net.get_parameter(name)
        seen.append(parameter.detach().clone())
        if epoch != 2:
            return None
        mask = parameter.detach().abs() > parameter.detach().abs().median()
        with torch.no_grad():
            parameter.mul_(mask)
        return {name: mask}

    fit(net, replace(SGD, ema=0.8), hooks=TrainingHooks(after_epoch=prune), states=states)
    assert torch.equal(seen[0], states[0].average[name])  # what is pruned is the average
    dead = states[1].average[name] == 0
    assert int(dead.sum()) == math.ceil(dead.numel() / 2)
    for state in states[1:]:
        assert int(state.weights[name][dead].count_nonzero()) == 0
        assert int(state.average[name][dead].count_nonzero()) == 0
    assert int(net.get_parameter(name)[dead].count_nonzero()) == 0


def test_a_block_that_fails_gives_the_weights_back() -> None:
    net = network()
    average = WeightAverage(net, 0.5)
    average.update()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def fail() -> None:
        with average.in_place_of_weights():
            assert not torch.equal(net.state_dict()["blocks.0.conv.weight"], before["blocks.0.conv.weight"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# ---- named recipes


def test_resnet_cifar_is_the_papers() -> None:
    """He et al. (2016), 4.2: 64k steps of 128 out of 45k images, 0.1, a tenth at 32k and 48k."""
    named = RECIPES["resnet_cifar"]
    steps = math.ceil(45_000 / named.batch_size)
    assert abs(named.train.epochs * steps - 64_000) < steps
    for step, rate in ((0, 0.1), (31_000, 0.1), (33_000, 0.01), (47_000, 0.01), (49_000, 0.001)):
        assert learning_rate(named.train, step / steps) == pytest.approx(rate)
    assert (named.train.optimizer, named.train.momentum, named.train.weight_decay) == ("sgd", 0.9, 1e-4)
