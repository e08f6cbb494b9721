"""A data set: its description, and a function that reads its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.data.datasets import DatasetInfo, Raw

TRAIN, TEST = 400, 100


def read(data_dir: Path) -> Raw:
    """Return images of bright bars on noise, vertical (0) or horizontal (1).

    The last TEST images are the test set. A data set with files reads them from `data_dir`. If a file
    is missing, it raises a DataError that says what to do.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(TRAIN + TEST) % 2
    images = rng.integers(0, 128, size=(TRAIN + TEST, 1, 8, 8), dtype=np.uint8)
    for image, label, index in zip(images, labels, rng.integers(0, 8, TRAIN + TEST), strict=True):
        bar = image[0, :, index] if label == 0 else image[0, index]
        bar[:] = 255
    return Raw(images, labels.astype(np.int64), TEST, ("vertical", "horizontal"))


# A tenth of the images outside the test set is for validation.
BARS = DatasetInfo("bars", "bars on noise", (1, 8, 8), 2, TRAIN * 9 // 10, TRAIN // 10, TEST, read=read)
