"""Batches of images as trainings read them, against a DataLoader over PIL images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import AtLeast, Job, benchmark, main
from benchmarks.training import BATCH, COLOUR, GREY, make_split
from orchestrator.config import Train
from orchestrator.data.loading import Split
from orchestrator.training.inputs import Inputs

torch.set_num_threads(1)


def make_pil_images(shape: tuple[int, int, int], count: int) -> list[Any]:
    """Return random PIL images, grey or in colour."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return [
        Image.fromarray((image[0] if shape[0] == 1 else image.permute(1, 2, 0)).numpy()) for image in pixels
    ]


class ImageListDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A list of images that are transformed on access, as in torchvision's data sets."""

    def __init__(self, images: list[Any], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), index % 10


def _count_images(loader: Any) -> int:
    return sum(len(labels) for _, labels in loader)


def _iterate_batches(split: Split, kind: str, generator: torch.Generator) -> int:
    batches = Inputs(split, Train(augment=kind), generator).epoch(BATCH, micro_batch=BATCH)
    return sum(len(images) for _, micro_batches in batches for images, _ in micro_batches)


@benchmark
def images() -> Iterator[Job]:
    """Iterate an epoch of shuffled batches of 256, scaled and, in colour, augmented."""
    from models.torchvision_compat import transforms

    scaled = [transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    random = "Both sides crop and flip every image at random; the bits differ."
    for what, shape, kind, claim, note in (
        ("MNIST-shaped batches", GREY, "none", AtLeast(50.0), ""),
        ("MNIST-shaped batches, crop and flip", GREY, "crop_flip", AtLeast(20.0), random),
        ("CIFAR-shaped batches, crop and flip", COLOUR, "crop_flip", AtLeast(8.0, aim=20.0), random),
    ):
        moved = [transforms.RandomCrop(shape[1], padding=4), transforms.RandomHorizontalFlip()]
        before = moved if kind == "crop_flip" else []
        count = 4 * BATCH
        dataset = ImageListDataset(make_pil_images(shape, count), transforms.Compose([*before, *scaled]))
        loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)
        yield Job(
            what,
            ours=partial(_iterate_batches, make_split(shape, count), kind, torch.Generator().manual_seed(0)),
            baseline=partial(_count_images, loader),
            baseline_name="DataLoader over PIL images",
            claims=(claim,),
            rounds=15,
            equal="the number of images",
            note=note,
        )


if __name__ == "__main__":
    main(__file__)
