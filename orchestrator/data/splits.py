"""Indices of the images for training, validation and test, which never change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.data.datasets import Raw
from orchestrator.data.sources.content_split import SPLITS
from orchestrator.errors import DataError

Index = NDArray[np.int64]
SPLIT_SEED = 0
DIGITS_TEST_SHARE = 0.2
DIGITS_VALIDATION_IMAGES = 180
VALIDATION_SHARE = 0.1
SHOWN_NAMES = 5


def split_indices(name: str, raw: Raw) -> tuple[Index, Index, Index]:
    """Return the (train, validation, test) indices: the source's own, or scikit-learn's with seed 0.

    DataError where there are too few images.
    """
    if raw.splits is not None:
        return raw.splits

    def divide(index: Index, share: float) -> tuple[Index, Index]:
        count = math.ceil(share * len(index)) if share < 1 else int(share)
        first, second = stratified_split(raw.labels[index], count, seed=SPLIT_SEED)
        return index[first], index[second]

    images = np.arange(len(raw.labels))
    try:
        if raw.own_test:
            training, test = images[: -raw.own_test], images[-raw.own_test :]
            return *divide(training, VALIDATION_SHARE), test
        training, test = divide(images, DIGITS_TEST_SHARE)
        return *divide(training, DIGITS_VALIDATION_IMAGES), test
    except ValueError as error:
        raise DataError(f"{name}: {len(raw.labels)} images cannot be split: {error}") from error


def check_splits(name: str, splits: Sequence[Index], class_names: Sequence[str]) -> None:
    """Raise DataError where none of the images for training, validation or test is of these classes."""
    for split, index in zip(SPLITS, splits, strict=True):
        if not len(index):
            raise DataError(
                f"{name}: it has no {split} images of {shorten_names(class_names)}; choose other classes, or "
                f"add {split} images of these"
            )


def shorten_names(names: Sequence[str]) -> str:
    """Return names of classes as a text: the first ones, and how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{', '.join(names[:SHOWN_NAMES])}{more}"


def stratified_split(labels: Index, count: int, *, seed: int) -> tuple[Index, Index]:
    """Return the positions of all images but `count`, and of these; each class has its share on both sides.

    The positions, and their order, are those of scikit-learn's `train_test_split` with `stratify`, whose
    import costs every worker a second. ValueError for too few images.
    """
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if sizes.min() < 2 or min(count, len(labels) - count) < len(sizes):
        raise ValueError(f"each of {len(sizes)} classes needs an image on either side, and two in all")
    # Every draw below, and their order, is scikit-learn's: any other would give other splits.
    random = np.random.RandomState(seed)
    first_sizes = _shares(sizes, len(labels) - count, random)
    second_sizes = _shares(sizes - first_sizes, count, random)
    first, second = [], []
    for number, (size, split, length) in enumerate(zip(sizes, first_sizes, second_sizes, strict=True)):
        positions = np.flatnonzero(numbers == number)[random.permutation(size)]
        first.append(positions[:split])
        second.append(positions[split : split + length])
    return random.permutation(np.concatenate(first)), random.permutation(np.concatenate(second))


def _shares(sizes: Index, count: int, random: np.random.RandomState) -> Index:
    """Return how many of each class make `count`: its share rounded down, one more to large remainders.

    Equal remainders are drawn from.
    """
    exact = sizes / sizes.sum() * count
    counts = np.floor(exact)
    missing, remainders = int(count - counts.sum()), exact - counts
    for remainder in np.unique(remainders)[::-1]:
        if missing <= 0:
            break
        (equal,) = np.where(remainders == remainder)
        classes = random.choice(equal, size=min(len(equal), missing), replace=False)
        counts[classes] += 1
        missing -= len(classes)
    shares: Index = counts.astype(np.int64)
    return shares


def first_per_class(labels: Index, count: int, *, seed: int) -> Index:
    """Return the positions, ascending, of the first `count` (or all) of each class in a seeded order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    positions = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(positions))
