"""No step of a training waits for the GPU: what is read back is read once an epoch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading, scaled_images
from orchestrator.data.augmentation import Augmenter, augment, augmentations
from orchestrator.data.loading import Split
from orchestrator.system.memory import to_device
from orchestrator.training.loop import NO_HOOKS, TrainingHooks, train
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.trial.distillation import soft_labels
from orchestrator.trial.run import run_trial
from pruning.granularity import unit_groups
from pruning.group_lasso import regularizers
from tests.cuda_double import DEVICE, cuda_double

AUGMENTATIONS = ["flip", "crop_flip", "cutout(size=2)", "resized_crop", "crop_flip + cutout(size=2)"]
RECIPES = [
    *(Train(augment=text) for text in AUGMENTATIONS),
    *(Train(optimizer=name) for name in OPTIMIZERS),
    Train(augment="crop_flip", mixup=0.2, label_smoothing=0.1),
    Train(ema=0.9, clip_norm=1.0, channels_last=True),
]
MakeHooks = Callable[[nn.Module], TrainingHooks]


def no_hooks(net: nn.Module) -> TrainingHooks:
    return NO_HOOKS


def with_teacher(net: nn.Module) -> TrainingHooks:
    return TrainingHooks(loss=soft_labels(network("mlp(widths=[8])")))


def with_lasso(mode: str) -> MakeHooks:
    def make(net: nn.Module) -> TrainingHooks:
        method = regularizers.get({"method": "group_lasso", "mode": mode, "kind": "group"})
        return TrainingHooks(regularizer=method(net, groups=unit_groups(net)))

    return make


def network(model: str) -> nn.Module:
    return models.build(model, input_shape=(1, 8, 8), num_classes=10).to("cuda")


def waits_of(
    recipe: Train,
    *,
    steps: int,
    model: str = "mlp(widths=[8])",
    micro_batch: int = 64,
    make_hooks: MakeHooks = no_hooks,
    keep_bytes: bool = False,
) -> dict[str, int]:
    """Return how often the host waits in an epoch of so many steps."""
    with cuda_double() as double:
        data = loading.load_dataset("digits", device="cuda")
        images: Any = data.train.images[: 64 * steps]
        if keep_bytes:
            host = data.train.images.cpu()[: 64 * steps]
            rows, scale = torch.arange(64 * steps), data.train.pixel_scale
            assert scale is not None
            images = scaled_images.ScaledImages(scale.to_bytes(host), rows, scale, DEVICE)
        split = Split(images, data.train.labels[: 64 * steps], data.train.pixel_scale)
        net = network(model)
        names = [name for name, weight in net.named_parameters() if weight.dim() > 1]
        masks = {name: torch.rand(net.get_parameter(name).shape) > 0.5 for name in names}
        hooks = make_hooks(net)
        double.waits.clear()
        train(
            net,
            split,
            data.validation,
            recipe=recipe,
            phase=TrainingPhase(1),
            batch_size=64,
            numerics=Numerics("cuda", micro_batch=micro_batch),
            generator=torch.Generator().manual_seed(0),
            masks=masks,
            hooks=hooks,
        )
        return dict(+double.waits)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_as_often_in_eight_steps_as_in_two(recipe: Train) -> None:
    few, many = (waits_of(recipe, steps=steps) for steps in (2, 8))
    assert few == many
    assert few["tolist"] == 2  # the sums of the epoch, and those of its validation


@pytest.mark.parametrize("model", ["cnn(widths=[2, 2])", "resnet(depth=8)"])
def test_nor_in_micro_batches_of_convolutions(model: str) -> None:
    recipe = Train(augment="crop_flip")
    few, many = (waits_of(recipe, steps=steps, model=model, micro_batch=16) for steps in (1, 2))
    assert few == many


@pytest.mark.parametrize(
    "make_hooks",
    [with_teacher, with_lasso("proximal"), with_lasso("subgradient")],
    ids=["teacher", "prox", "sub"],
)
def test_nor_where_something_is_added_to_a_training(make_hooks: MakeHooks) -> None:
    few, many = (waits_of(Train(), steps=steps, make_hooks=make_hooks) for steps in (2, 6))
    assert few == many


class NoNetworks:
    """A store without dense networks."""

    def dense(self, config: DenseConfig) -> None:
        return None


TRIALS = [
    {},
    {"recover": "rigl"},
    {"recover": "set"},
    {"distill": "soft_labels"},
    {"when": "during", "recover": "none"},
    {"when": "during", "recover": "none", "criterion": "movement"},
]


@pytest.mark.parametrize("changes", TRIALS, ids=lambda changes: "-".join(changes.values()) or "plain")
def test_whole_trials_wait_as_often_whatever_the_steps(changes: dict[str, str]) -> None:
    waits = []
    options = {"when": "after", "recover": "finetune(epochs=2)", "distill": "none"} | changes
    criterion = options.pop("criterion", "magnitude")
    schedule = "cubic" if options["when"] == "during" else "one_shot"
    dense = DenseConfig("mlp(widths=[8])", "digits", 32, 0, Train(epochs=2), Numerics("cuda", micro_batch=64))
    prune = Prune(criterion, "weight", "global", schedule, 0.5)
    config = TrialConfig(dense, prune, technique="x", **options)  # type: ignore[arg-type]  # texts
    for images in (320, 960):
        with cuda_double() as double:
            data = loading.load_dataset("digits", device="cuda")
            few = Split(data.train.images[:images], data.train.labels[:images], data.train.pixel_scale)
            double.waits.clear()
            run_trial(config, replace(data, train=few), store=NoNetworks())
            waits.append(dict(+double.waits))
    assert waits[0] == waits[1]


class Inline:
    """An executor that runs at once, in the thread in which the stand-in for a GPU is."""

    def __init__(self, **options: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


@pytest.mark.parametrize("text", ["none", "crop_flip"])
def test_nor_where_the_images_are_sent_batch_by_batch(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled_images, "ThreadPoolExecutor", Inline)
    few, many = (waits_of(Train(augment=text), steps=steps, keep_bytes=True) for steps in (2, 8))
    # The table of values goes to the GPU once.
    assert few == many


@pytest.mark.parametrize("text", [name for name in augmentations if name not in ("none", "randaugment")])
def test_one_copy_without_a_wait_for_the_draws_of_an_augmentation(text: str) -> None:
    text = "cutout(size=2)" if text == "cutout" else text
    images = torch.randn((9, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = augment(images, torch.Generator().manual_seed(0), kind=text)
    with cuda_double() as double:
        there = images.to("cuda")
        augmenter = Augmenter(text, torch.Generator().manual_seed(0), there)
        copies: list[int] = []
        pin = double.pin
        double.pin = lambda tensor: copies.append(1) or pin(tensor)  # type: ignore[method-assign,func-returns-value]
        double.waits.clear()
        augmented = augmenter(there)
        assert (+double.waits, len(copies)) == ({}, 1)
        assert double.has(augmented)
    if text != "resized_crop":  # which a GPU samples in another way
        assert torch.equal(augmented, expected)


def test_randaugment_sends_which_images_once_for_each_operation() -> None:
    images = torch.rand((9, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = augment(images, torch.Generator().manual_seed(0), kind="randaugment")
    with cuda_double() as double:
        there = images.to("cuda")
        augmented = augment(there, torch.Generator().manual_seed(0), kind="randaugment")
        assert double.has(augmented)
    assert torch.equal(augmented, expected)


def test_the_stand_in_refuses_and_counts_what_a_gpu_does() -> None:
    with cuda_double() as double:
        there, here = torch.ones((3, 2), device="cuda"), torch.ones((2, 3))
        assert (there.device, here.device) == (DEVICE, torch.device("cpu"))
        assert (there @ there.T).is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there @ here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there[torch.tensor([0, 2])].shape == (2, 2)  # an index of the host is copied
        double.waits.clear()
        assert to_device(here, DEVICE).is_cuda
        assert here.to(DEVICE, torch.float64, copy=True).dtype == torch.float64
        assert dict(double.waits) == {"copy_": 1}  # pinned memory without a wait, other memory with one
        calls: list[Callable[[], object]] = [
            lambda: there.sum().item(),
            lambda: bool(there.any()),
            there.tolist,
            there.cpu,
            lambda: there[there > 0],
            lambda: there.nonzero(),
            lambda: there.new_tensor([1.0]),
            lambda: torch.tensor(1.0, device="cuda"),
            lambda: there.copy_(here.T),
        ]
        for call in calls:
            double.waits.clear()
            call()
            assert sum(double.waits.values()) == 1
        for call in (there.sum, lambda: there * 2, lambda: torch.zeros_like(there), lambda: there.to("cuda")):
            double.waits.clear()
            call()
            assert not +double.waits
