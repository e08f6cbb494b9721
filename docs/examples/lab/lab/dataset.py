"""A data set: what is known of it without its files, and a function that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.data.datasets import DatasetInfo, Raw

TRAIN, TEST = 400, 100


def read(data_dir: Path) -> Raw:
    """Bright bars on noise, standing (0) or lying (1). One that needs files takes them from `data_dir`.

    The last TEST images are the test set. Where a file is missing, raise a DataError that says what to do.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(TRAIN + TEST) % 2
    images = draw.integers(0, 128, size=(TRAIN + TEST, 1, 8, 8), dtype=np.uint8)
    for image, label, place in zip(images, labels, draw.integers(0, 8, TRAIN + TEST), strict=True):
        bar = image[0, :, place] if label == 0 else image[0, place]
        bar[:] = 255
    return Raw(images, labels.astype(np.int64), TEST, ("standing", "lying"))


# A tenth of what is not for the test is for validation.
BARS = DatasetInfo("bars", "bars on noise", (1, 8, 8), 2, TRAIN * 9 // 10, TRAIN // 10, TEST, read=read)
