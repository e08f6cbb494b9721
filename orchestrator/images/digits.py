"""The digits inside scikit-learn, read without it: its import costs every worker a second."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.images.datasets import Raw

FILE = "datasets/data/digits.csv.gz"


def digits_file() -> Path:
    """Where it lies; DataError where there is none."""
    found = find_spec("sklearn")
    place = Path(found.origin).parent / FILE if found and found.origin else None
    if place is None or not place.exists():
        raise DataError(f"digits: scikit-learn has no file {FILE}; install scikit-learn anew")
    return place


def read_digits() -> Raw:
    """1797 images of 8x8 in 17 shades, and their labels."""
    import numpy as np

    rows = np.loadtxt(digits_file(), delimiter=",", dtype="uint8")
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].astype("int64")
    return Raw(images, labels, 0, tuple(str(digit) for digit in range(10)))
