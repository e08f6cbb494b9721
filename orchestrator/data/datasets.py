"""Data sets by name: what is known of them without their images, and the options of all."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from orchestrator.data.sources.base import DatasetInfo, Raw
from orchestrator.data.sources.registry import SELECTION, SOURCES, find_source, parse_dataset, source_facts
from orchestrator.errors import DataError, SpaceError, unknown_name
from pruning.registry import parse_method
from pruning.user_code.plugins import Plugins

__all__ = [
    "DATASETS",
    "OWN",
    "DatasetInfo",
    "Raw",
    "check_options",
    "info",
    "parse_dataset",
    "split_sizes",
    "unknown_dataset",
]

DIGITS_PER_CLASS = (
    (124, 128, 124, 128, 127, 127, 127, 125, 121, 126),
    (18,) * 10,
    (36, 36, 35, 37, 36, 37, 36, 36, 35, 36),
)

TORCHVISION = "torchvision."
GREY = (1, 28, 28)
COLOUR = (3, 32, 32)

OWN = {
    "digits": DatasetInfo(
        "digits", "8x8 grey digits", (1, 8, 8), 10, 1257, 180, 360, levels=16, per_class=DIGITS_PER_CLASS
    ),
    "mnist-5k": DatasetInfo(
        "mnist-5k",
        "grey digits, 5,000 of MNIST's",
        GREY,
        10,
        4050,
        450,
        500,
        class_names=tuple(map(str, range(10))),
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
    is_valid=lambda part: isinstance(part, DatasetInfo),
    expected="a DatasetInfo",
)


def info(name: str) -> DatasetInfo:
    """Return what is known of a data set: by its name, or by its text with options.

    SpaceError with the nearest names, or why it cannot be imported; DataError where the files that decide
    shape and classes are missing or bad.
    """
    if (source := find_source(name)) is not None and source.name not in OWN:
        return source_facts(source)
    plain, options = parse_method(name) if "(" in name else (name, {})
    if plain not in DATASETS:
        raise SpaceError(unknown_dataset(plain))
    if unknown := [option for option in options if option not in SELECTION]:
        raise SpaceError(unknown_name(f"option of {plain}", unknown[0], SELECTION))
    if options:
        raise SpaceError(f"{name[:80]}: here {' and '.join(options)} are arguments beside the name {plain}")
    try:
        return DATASETS[plain]
    except ValueError as error:
        raise SpaceError(str(error)) from error


def unknown_dataset(name: str) -> str:
    """Return the message for an unknown data set: with the nearest names, or how to write one's own."""
    if name.endswith(".py"):
        return f"{name} names a file and no function; write {name}:function"
    # Without the common prefix, for which each would be near.
    plain = [source.removeprefix(TORCHVISION) for source in SOURCES if source.startswith(TORCHVISION)]
    near = get_close_matches(name.removeprefix(TORCHVISION), plain, n=3, cutoff=0.6)
    if near and (name in plain or name.startswith(TORCHVISION)):
        return f"unknown dataset {name!r}; did you mean {' or '.join(TORCHVISION + other for other in near)}?"
    return unknown_name("dataset", name, [*DATASETS, *SOURCES])


def check_options(name: str, *, classes: Sequence[int] | None, samples_per_class: int | None) -> None:
    """SpaceError unless `classes` are two or more different classes and `samples_per_class` is 1 or more."""
    labels = range(info(name).num_classes)
    if classes is not None and not (2 <= len(classes) == len(set(classes) & set(labels))):
        raise SpaceError(
            f"{name}: classes={list(classes)}; give two or more different ones from 0 to {labels[-1]}, "
            "or none"
        )
    if samples_per_class is not None and samples_per_class < 1:
        raise SpaceError(f"{name}: samples_per_class={samples_per_class}; give 1 or more, or none")


def split_sizes(
    name: str, *, classes: Sequence[int] | None = None, samples_per_class: int | None = None
) -> tuple[int, int, int]:
    """Return the images for (train, validation, test) without loading them.

    With options they are approximate, but for `digits`. SpaceError for a bad option.
    """
    check_options(name, classes=classes, samples_per_class=samples_per_class)
    dataset = info(name)
    if classes is None and samples_per_class is None:
        return dataset.split_sizes
    even = [(size // dataset.num_classes,) * dataset.num_classes for size in dataset.split_sizes]
    labels = range(dataset.num_classes) if classes is None else classes
    train, validation, test = ([counts[label] for label in labels] for counts in dataset.per_class or even)
    limit = max(train) if samples_per_class is None else samples_per_class
    return sum(min(count, limit) for count in train), sum(validation), sum(test)


DIGITS_FILE = "datasets/data/digits.csv.gz"  # of scikit-learn, which need not be imported to read it


def digits_file() -> Path:
    """Return the path of scikit-learn's digits. DataError where there are none."""
    package = find_spec("sklearn")
    path = Path(package.origin).parent / DIGITS_FILE if package and package.origin else None
    if path is None or not path.exists():
        raise DataError(f"digits: scikit-learn has no file {DIGITS_FILE}; install scikit-learn anew")
    return path


def read_digits() -> Raw:
    """Return scikit-learn's digits: 1797 images of 8x8 in 17 shades."""
    import numpy as np

    rows = np.loadtxt(digits_file(), delimiter=",", dtype="uint8")
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].astype("int64")
    return Raw(images, labels, 0, tuple(str(digit) for digit in range(10)))
