"""Which images are for training, validation and test: indices, the same for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import DataError
from orchestrator.images.datasets import Raw

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
    from sklearn.model_selection import train_test_split

    def divide(index: Index, share: float) -> tuple[Index, Index]:
        labels = raw.labels[index]
        rest, taken = train_test_split(index, test_size=share, stratify=labels, random_state=SPLIT_SEED)
        return rest, taken

    everything = np.arange(len(raw.labels))
    try:
        if raw.own_test:
            rest, test = everything[: -raw.own_test], everything[-raw.own_test :]
            return *divide(rest, VALIDATION_SHARE), test
        rest, test = divide(everything, DIGITS_TEST_SHARE)
        return *divide(rest, DIGITS_VALIDATION_IMAGES), test
    except ValueError as error:
        raise DataError(f"{name}: {len(raw.labels)} images cannot be split: {error}") from error


def first_per_class(labels: Index, count: int, *, seed: int) -> Index:
    """Positions, ascending, of the first `count` (or all) of each class in a seeded order."""
    import numpy as np
    import torch

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
