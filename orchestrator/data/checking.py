"""What a data set holds: counts, broken and doubled images, scale, and a sheet of samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import method_text
from orchestrator.data.datasets import DATASETS, Raw, info, parse_dataset
from orchestrator.data.files import file_stamps, read_raw
from orchestrator.data.loading import READ_BYTES
from orchestrator.data.sources.content_split import SPLITS, shared_notes
from orchestrator.data.sources.own_data import OwnData
from orchestrator.data.sources.registry import SOURCES, find_source, source_class
from orchestrator.data.splits import Index, check_splits, shorten_names, split_indices
from orchestrator.errors import DataError, UsageError
from orchestrator.system.files import check_can_write, naming_file, replace_file
from pruning.registry import parse_method
from pruning.user_code import own_code

SAMPLES, SHOWN_CLASSES = 10, 40  # of the sheet: columns and rows
SHOWN_BROKEN = 20
TILE, GAP = 32, 2  # pixels: the least side of a sample, and what lies between two


@dataclass(frozen=True, eq=False)
class DataCheck:
    """What a check found. `counts`: class -> images in (train, validation, test)."""

    name: str
    raw: Raw
    train: Index
    counts: dict[str, tuple[int, int, int]]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    notes: tuple[str, ...]
    broken: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the check as JSON."""
        return {
            "name": own_code.shown(self.name),
            "shape": list(self.raw.images.shape[1:]),
            "bytes": self.raw.images.nbytes,
            "splits": dict(zip(SPLITS, self._totals(), strict=True)),
            "classes": {name: dict(zip(SPLITS, sizes, strict=True)) for name, sizes in self.counts.items()},
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "notes": list(self.notes),
            "broken": list(self.broken),
            "seconds": self.seconds,
        }

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        shape = "x".join(map(str, self.raw.images.shape[1:]))
        megabytes = self.raw.images.nbytes / 1e6
        name, count = own_code.shown(self.name), len(self.raw.labels)
        yield f"{name}: {count:,} images of {shape}, {megabytes:,.1f} MB as bytes"
        yield f"read in {self.seconds:.2f} s, {1e6 * self.seconds / len(self.raw.labels):,.0f} µs an image"
        for channel, (mean, deviation) in enumerate(zip(self.mean, self.deviation, strict=True)):
            yield f"channel {channel}: mean {mean:.4f}, deviation {deviation:.4f} (training, of 1)"
        width = max(len("class"), *map(len, self.counts))
        yield f"{'class':<{width}}  {'train':>9}  {'validation':>10}  {'test':>9}"
        for name, (train, validation, test) in {**self.counts, "all": self._totals()}.items():
            yield f"{name:<{width}}  {train:>9,}  {validation:>10,}  {test:>9,}"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"broken: {line}" for line in self.broken[:SHOWN_BROKEN])
        if len(self.broken) > SHOWN_BROKEN:
            yield f"broken: {len(self.broken) - SHOWN_BROKEN} more"

    def _totals(self) -> tuple[int, int, int]:
        train, validation, test = (sum(part) for part in zip(*self.counts.values(), strict=True))
        return train, validation, test


def check(text: str) -> DataCheck:
    """Read a data set by its text, and return what is in it. DataError where it cannot be used at all.

    Broken images of a folder are listed, and all else is said of the others.
    """
    name, options = parse_dataset(text)
    if options:
        raise UsageError(f"{text}: the whole data set is checked; leave {' and '.join(options)} out")
    source = find_source(name)
    broken = () if source is None else source.broken()
    if broken:
        plain, own = parse_method(name)
        name = method_text(plain, {**own, "skip_broken": True})
    start = perf_counter()
    try:
        raw = read_raw(name)
    except DataError as error:
        if not broken:
            raise
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise DataError(f"{error}; broken: {broken[0]}{more}") from error
    seconds = perf_counter() - start
    splits = split_indices(name, raw)
    check_splits(name, splits, raw.class_names)
    per_split = [np.bincount(raw.labels[split], minlength=len(raw.class_names)).tolist() for split in splits]
    counts = dict(zip(raw.class_names, zip(*per_split, strict=True), strict=True))
    mean, deviation = _moments(raw, splits[0], levels=info(name).levels)
    return DataCheck(text, raw, splits[0], counts, mean, deviation, _notes(raw, splits), broken, seconds)


def _moments(raw: Raw, train: Index, *, levels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of the training images / levels."""
    counts = np.zeros((raw.images.shape[1], 256), dtype=np.int64)
    for position in train:
        for channel, pixels in enumerate(raw.read(position[None])[0]):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    value = np.arange(256) / levels
    mean = counts @ value / counts.sum(axis=1)
    square = (counts * (value - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(square).tolist())


def _notes(raw: Raw, splits: tuple[Index, Index, Index]) -> tuple[str, ...]:
    """Return the notes of the source, and those on images with equal pixels where these are others."""
    notes = tuple(note for note in raw.notes if "broken" not in note) + tuple(_missing_notes(raw, splits))
    contents = [sha256(image).digest() for block in raw.blocks(READ_BYTES) for image in block]
    names = [f"image {number}" for number in range(len(contents))]
    source_notes = {note.partition(":")[0] for note in notes}
    by_pixels = shared_notes(contents, [split.tolist() for split in splits], names)
    return (
        *notes,
        *(f"by pixels, {note}" for note in by_pixels if note.partition(":")[0] not in source_notes),
    )


def _missing_notes(raw: Raw, splits: tuple[Index, Index, Index]) -> Iterator[str]:
    """Yield which classes have no images in a split."""
    for split, index in zip(SPLITS, splits, strict=True):
        labels = set(raw.labels[index].tolist())
        if names := [name for label, name in enumerate(raw.class_names) if label not in labels]:
            yield f"no {split} images of {shorten_names(names)}: `classes` with none but these is refused"


def check_sheet(file: Path) -> None:
    """Raise UsageError for a file that is no PNG, is there already, or cannot be written."""
    if file.suffix.lower() != ".png":
        raise UsageError(f"{file}: the sheet is a PNG; give a name that ends with .png")
    if os.path.lexists(file):
        raise UsageError(f"{file} is there already; give another name")
    check_can_write(file.absolute(), option="--sheet")


def write_sheet(checked: DataCheck, file: Path) -> None:
    """Write a PNG with the first training images of each class, a row for each. UsageError if it is there."""
    from PIL import Image

    check_sheet(file)
    height, width = checked.raw.images.shape[2:]
    scale = max(1, -(-TILE // min(height, width)))
    step_down, step_right = scale * height + GAP, scale * width + GAP
    classes = range(min(len(checked.counts), SHOWN_CLASSES))
    sheet = np.full((len(classes) * step_down + GAP, SAMPLES * step_right + GAP, 3), 255, dtype=np.uint8)
    for row in classes:
        samples = checked.train[checked.raw.labels[checked.train] == row][:SAMPLES]
        for column, position in enumerate(samples):
            (image,) = checked.raw.read(position[None])
            pixels = np.broadcast_to(_visible(image, checked), (3, height, width))
            tile = pixels.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = GAP + row * step_down, GAP + column * step_right
            sheet[top : top + scale * height, left : left + scale * width] = tile
    buffer = BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    with naming_file(file, option="--sheet"):
        replace_file(file, buffer.getvalue())


def _visible(image: NDArray[np.uint8], checked: DataCheck) -> NDArray[np.uint8]:
    """Return an image whose whole numbers reach to 255, and whose channels are 1 or 3."""
    levels = info(checked.name).levels
    scaled = image if levels == 255 else (image.astype(np.int64) * 255 // levels).astype(np.uint8)
    return scaled if len(scaled) in (1, 3) else scaled[:1]


def states() -> Iterator[tuple[str, str, str]]:
    """Yield (name, there | not there | option, what it is) of every data set and every source."""
    for name, dataset in DATASETS.iter_importable():
        try:
            stamps = file_stamps(name)
        except DataError:
            stamps = []
        if stamps is None:
            yield name, "of a package", dataset.about
        else:
            yield name, "there" if stamps else "not there", dataset.about
    for name in SOURCES:
        if name not in DATASETS:
            yield name, source_class(name).state(), source_class(name).about
    yield "path/to/file.py:function", OwnData.state(), OwnData.about
