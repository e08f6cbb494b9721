"""Which images are for training, validation and test: indices, the same for good."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.data.datasets import Raw
from orchestrator.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Index = NDArray[np.int64]

SPLIT_SEED = 0
DIGITS_TEST_SHARE = 0.2
DIGITS_VALIDATION_IMAGES = 180
VALIDATION_SHARE = 0.1


def split_indices(name: str, raw: Raw) -> tuple[Index, Index, Index]:
    """(train, validation, test) indices: scikit-learn's stratified split, seed 0."""
    import numpy as np

    def divide(index: Index, share: float) -> tuple[Index, Index]:
        count = math.ceil(share * len(index)) if share < 1 else int(share)
        rest, taken = stratified(raw.labels[index], count, seed=SPLIT_SEED)
        return index[rest], index[taken]

    everything = np.arange(len(raw.labels))
    try:
        if raw.own_test:
            rest, test = everything[: -raw.own_test], everything[-raw.own_test :]
            return *divide(rest, VALIDATION_SHARE), test
        rest, test = divide(everything, DIGITS_TEST_SHARE)
        return *divide(rest, DIGITS_VALIDATION_IMAGES), test
    except ValueError as error:
        raise DataError(f"{name}: {len(raw.labels)} images cannot be split: {error}") from error


def stratified(labels: Index, count: int, *, seed: int) -> tuple[Index, Index]:
    """Positions of the rest, and of `count` that have the classes' shares; ValueError for too few images.

    The positions, and their order, are those of scikit-learn's `train_test_split` with `stratify`, whose
    import costs every worker a second.
    """
    import numpy as np

    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if sizes.min() < 2 or min(count, len(labels) - count) < len(sizes):
        raise ValueError(f"each of {len(sizes)} classes needs an image on either side, and two in all")
    draw = np.random.RandomState(seed)
    rest_sizes = _shares(sizes, len(labels) - count, draw)
    taken_sizes = _shares(sizes - rest_sizes, count, draw)
    rest, taken = [], []
    for number, (size, kept, given) in enumerate(zip(sizes, rest_sizes, taken_sizes, strict=True)):
        own = np.flatnonzero(numbers == number)[draw.permutation(size)]
        rest.append(own[:kept])
        taken.append(own[kept : kept + given])
    return draw.permutation(np.concatenate(rest)), draw.permutation(np.concatenate(taken))


def _shares(sizes: Index, count: int, draw: np.random.RandomState) -> Index:
    """How many of each class make `count`: its share rounded down; the largest remainders get one more.

    Of equal remainders those that are drawn.
    """
    import numpy as np

    exact = sizes / sizes.sum() * count
    whole = np.floor(exact)
    missing, remainders = int(count - whole.sum()), exact - whole
    for remainder in np.unique(remainders)[::-1]:
        if missing <= 0:
            break
        (equal,) = np.where(remainders == remainder)
        more = draw.choice(equal, size=min(len(equal), missing), replace=False)
        whole[more] += 1
        missing -= len(more)
    shares: Index = whole.astype(np.int64)
    return shares


def first_per_class(labels: Index, count: int, *, seed: int) -> Index:
    """Positions, ascending, of the first `count` (or all) of each class in a seeded order."""
    import numpy as np
    import torch

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
