"""Batches of images: by index from resident tensors, against a DataLoader over PIL images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import AtLeast, Job, benchmark, main
from benchmarks.training import BATCH, COLOUR, GREY, split_of
from orchestrator.data.batches import augment, iter_batches
from orchestrator.data.loading import Split

torch.set_num_threads(1)


def pictures(shape: tuple[int, int, int], count: int) -> list[Any]:
    """PIL images, grey or in colour."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return [Image.fromarray((one[0] if shape[0] == 1 else one.permute(1, 2, 0)).numpy()) for one in pixels]


class Listed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets: an image is transformed when it is asked for."""

    def __init__(self, images: list[Any], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), index % 10


def _through(loader: Any) -> int:
    return sum(len(labels) for _, labels in loader)


def _by_index(split: Split, kind: str, generator: torch.Generator) -> int:
    images = 0
    for index in iter_batches(len(split), BATCH, generator):
        augment(split.images[index], generator, kind=kind)
        images += len(split.labels[index])
    return images


@benchmark
def images() -> Iterator[Job]:
    """An epoch of shuffled batches of 256, scaled and, in colour, augmented; no network."""
    from models.torchvision_compat import transforms

    scaled = [transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    moved = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    for what, shape, before, kind, claim, note in (
        ("MNIST-shaped batches", GREY, [], "none", AtLeast(50.0), ""),
        (
            "CIFAR-shaped batches, crop and flip",
            COLOUR,
            moved,
            "crop_flip",
            AtLeast(8.0, aim=20.0),
            "Both draw a crop and a flip for every image; other draws, so no equal bits.",
        ),
    ):
        count = 4 * BATCH
        listed = Listed(pictures(shape, count), transforms.Compose([*before, *scaled]))
        loader = torch.utils.data.DataLoader(listed, BATCH, shuffle=True)
        yield Job(
            what,
            ours=partial(_by_index, split_of(shape, count), kind, torch.Generator().manual_seed(0)),
            peer=partial(_through, loader),
            peer_name="DataLoader over PIL images",
            claims=(claim,),
            rounds=15,
            equal="as many images",
            note=note,
        )


if __name__ == "__main__":
    main(__file__)
