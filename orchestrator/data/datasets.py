"""Data sets by name, with their facts and options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from extensions import Plugins
from orchestrator.errors import DataError, SpaceError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Raw:
    """What the authors gave: uint8 [N, C, H, W] and int64 [N]; the last `own_test` are the test set."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    own_test: int
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without its files. `source`: torchvision's class; None: embedded.

    `read`, of another package's, takes the data folder and raises DataError where its files are not there.
    Images hold whole numbers from 0 to `levels`. `per_class`: images per class in (train, validation, test),
    None where the classes are (almost) equally frequent.
    """

    name: str
    about: str
    input_shape: tuple[int, int, int]
    num_classes: int
    train_images: int
    validation_images: int
    test_images: int
    levels: int = 255
    source: str | None = None
    per_class: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    read: Callable[[Path], Raw] | None = None

    @property
    def split_sizes(self) -> tuple[int, int, int]:
        return self.train_images, self.validation_images, self.test_images


DIGITS_PER_CLASS = (
    (124, 128, 124, 128, 127, 127, 127, 125, 121, 126),
    (18,) * 10,
    (36, 36, 35, 37, 36, 37, 36, 36, 35, 36),
)

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)

OWN = {
    "digits": DatasetInfo(
        "digits", "8x8 grey digits", (1, 8, 8), 10, 1257, 180, 360, levels=16, per_class=DIGITS_PER_CLASS
    ),
    "mnist": DatasetInfo("mnist", "grey digits", GREY, 10, 54_000, 6_000, 10_000, source="MNIST"),
    "fashion-mnist": DatasetInfo(
        "fashion-mnist", "grey clothes", GREY, 10, 54_000, 6_000, 10_000, source="FashionMNIST"
    ),
    "cifar10": DatasetInfo(
        "cifar10", "photographs of 10 kinds", COLOUR, 10, 45_000, 5_000, 10_000, source="CIFAR10"
    ),
    "cifar100": DatasetInfo(
        "cifar100", "photographs of 100 kinds", COLOUR, 100, 45_000, 5_000, 10_000, source="CIFAR100"
    ),
}


DATASETS: Plugins[DatasetInfo] = Plugins(
    "data set",
    "orchestrator.dataset",
    OWN,
    is_right=lambda part: isinstance(part, DatasetInfo),
    expected="a DatasetInfo",
)


def info(name: str) -> DatasetInfo:
    """The data set of that name; SpaceError with the nearest names, or with why it cannot be imported."""
    if name not in DATASETS:
        raise SpaceError(unknown_name("dataset", name, DATASETS))
    try:
        return DATASETS[name]
    except ValueError as error:
        raise SpaceError(str(error)) from error


def check_options(name: str, *, classes: Sequence[int] | None, samples_per_class: int | None) -> None:
    """SpaceError unless `classes` are two or more different classes and `samples_per_class` is 1 or more."""
    known = range(info(name).num_classes)
    if classes is not None and not (2 <= len(classes) == len(set(classes) & set(known))):
        raise SpaceError(
            f"{name}: classes={list(classes)}; give two or more different ones from 0 to {known[-1]}, or none"
        )
    if samples_per_class is not None and samples_per_class < 1:
        raise SpaceError(f"{name}: samples_per_class={samples_per_class}; give 1 or more, or none")


def split_sizes(
    name: str, *, classes: Sequence[int] | None = None, samples_per_class: int | None = None
) -> tuple[int, int, int]:
    """(train, validation, test) images, without loading; with options, approximate but for `digits`."""
    check_options(name, classes=classes, samples_per_class=samples_per_class)
    known = info(name)
    if classes is None and samples_per_class is None:
        return known.split_sizes
    even = [(size // known.num_classes,) * known.num_classes for size in known.split_sizes]
    chosen = range(known.num_classes) if classes is None else classes
    train, validation, test = ([counts[label] for label in chosen] for counts in known.per_class or even)
    limit = max(train) if samples_per_class is None else samples_per_class
    return sum(min(count, limit) for count in train), sum(validation), sum(test)


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
