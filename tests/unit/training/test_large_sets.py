"""A set that stays bytes is trained on, evaluated and resumed with the bits of the float tensor."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import models
from orchestrator.config import Numerics, Train
from orchestrator.data.augmentation import augmentations
from orchestrator.data.batches import balanced_sample
from orchestrator.data.loading import Split
from orchestrator.data.scaled_images import PixelScale, ScaledImages, pixels_of, value_range
from orchestrator.training.evaluation import evaluate
from orchestrator.training.loop import TrainerState, train
from orchestrator.training.lr_schedules import TrainingPhase

CPU = torch.device("cpu")
COUNT = 30
RECIPES = [Train(epochs=2, augment=name) for name in sorted(augmentations)]
RECIPES += [
    Train(epochs=2, augment="crop_flip", mixup=0.3),
    Train(epochs=2, mixup=0.3, label_smoothing=0.1),
    Train(epochs=2, augment="resized_crop + flip + randaugment", mixup=0.2, ema=0.9),
]


def arrays(channels: int) -> NDArray[np.uint8]:
    """Images whose grey channel has the strides that those of MNIST have."""
    random = np.random.default_rng(channels)
    shape = (2 * COUNT, 8, 8) if channels == 1 else (2 * COUNT, channels, 8, 8)
    pixels = random.integers(3, 250, shape, dtype=np.uint8)
    return pixels[:, None] if channels == 1 else pixels


def both(channels: int) -> tuple[Split, Split]:
    """A split as floats, as they are loaded, and as bytes."""
    pixels, rows = arrays(channels), np.random.default_rng(0).permutation(2 * COUNT)[:COUNT]
    labels = torch.arange(COUNT) % 10
    mean, deviation = torch.rand(2, channels, generator=torch.Generator().manual_seed(0))
    floats = torch.from_numpy(pixels[rows]).to(torch.float32).div_(255)
    floats.sub_(mean[:, None, None]).div_(deviation[:, None, None])
    scale = PixelScale(255, mean, deviation)
    scaled = ScaledImages(pixels_of(pixels), torch.from_numpy(rows), scale, CPU)
    return Split(floats, labels, scale), Split(scaled, labels, scale)


def trained(
    split: Split,
    channels: int,
    recipe: Train,
    *,
    micro_batch: int = 4096,
    resume_from: TrainerState | None = None,
    maybe_save: Callable[[Callable[[], TrainerState]], None] | None = None,
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = models.build("cnn", input_shape=(channels, 8, 8), num_classes=10)
    records = train(
        net,
        split,
        split,
        recipe=recipe,
        phase=TrainingPhase(recipe.epochs),
        batch_size=11,
        numerics=Numerics(micro_batch=micro_batch),
        generator=torch.Generator().manual_seed(1),
        resume_from=resume_from,
        maybe_save=maybe_save,
    )
    losses = torch.tensor([(record.train_loss, record.val_loss) for record in records], dtype=torch.float64)
    return {**net.state_dict(), "losses": losses}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("micro_batch", [4096, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.augment}, mixup {recipe.mixup:g}")
def test_training_has_the_bits_of_floats(recipe: Train, channels: int, micro_batch: int) -> None:
    floats, scaled = both(channels)
    assert_same(
        trained(floats, channels, recipe, micro_batch=micro_batch),
        trained(scaled, channels, recipe, micro_batch=micro_batch),
    )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-images")]


def test_a_resumed_training_has_the_bits_of_one_that_ran_through() -> None:
    _, scaled = both(3)
    recipe = Train(epochs=3, augment="randaugment(operations=1)", mixup=0.2)
    states: list[TrainerState] = []
    whole = trained(scaled, 3, recipe, maybe_save=lambda capture: states.append(copy.deepcopy(capture())))
    assert_same(trained(scaled, 3, recipe, resume_from=states[0]), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_samples_and_ranges_have_the_bits_of_floats(channels: int) -> None:
    floats, scaled = both(channels)
    torch.manual_seed(0)
    net = models.build("cnn", input_shape=(channels, 8, 8), num_classes=10)
    for micro_batch in (7, 4096):
        one, other = (
            evaluate(net, split, numerics=Numerics(micro_batch=micro_batch)) for split in (floats, scaled)
        )
        assert one.loss == other.loss
        assert torch.equal(one.confusion, other.confusion)
    samples = [balanced_sample(split, per_class=2, seed=0) for split in (floats, scaled)]
    assert all(map(torch.equal, *samples))
    assert all(map(torch.equal, value_range(floats.images), value_range(scaled.images)))
