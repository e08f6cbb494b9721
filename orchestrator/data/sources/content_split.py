"""Fixed stratified splits of one's own data, by the content of the images.

Within each class the images are ordered by the SHA-256 of their content. The first fifth is for the test, the
next tenth of what remains for validation, unless the data have such a split of their own. Neither names nor
the order of files count, and equal images of a class stay in one split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.errors import DataError

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
SPLITS = ("train", "validation", "test")


def split_counts(count: int, own: Sequence[str]) -> tuple[int, int, int]:
    """Return how many of `count` training images of a class are for (train, validation, test).

    `own` are the splits that have images of their own, and take none. ValueError for too few images.
    """
    test = 0 if "test" in own else max(1, math.floor(TEST_SHARE * count + 0.5))
    validation = 0
    if "validation" not in own:
        validation = max(1, math.floor(VALIDATION_SHARE * (count - test) + 0.5))
    if test + validation >= count:
        needed = 1 + ("test" not in own) + ("validation" not in own)
        raise ValueError(f"{count} images; {needed} or more are needed, for {', '.join(SPLITS)}")
    return count - test - validation, validation, test


def content_splits(
    contents: Sequence[bytes], labels: Sequence[int], splits: Sequence[str], class_names: Sequence[str]
) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of the images for (train, validation, test), each ascending.

    `contents` are digests; `splits` has the split in which each image lies, `train` where it has none.
    DataError for a class with too few images.
    """
    own = set(splits) - {"train"}
    new_splits = list(splits)
    by_class: dict[int, list[int]] = {label: [] for label in range(len(class_names))}
    for position, (label, split) in enumerate(zip(labels, splits, strict=True)):
        if split == "train":
            by_class[label].append(position)
    for label, positions in by_class.items():
        positions.sort(key=lambda position: contents[position])
        try:
            _, validation, test = split_counts(len(positions), tuple(own))
        except ValueError as error:
            raise DataError(f"class {class_names[label]!r} has {error}") from error
        start = 0
        for name, count in (("test", test), ("validation", validation)):
            end = _end_of_equal(contents, positions, start + count) if count else start
            for position in positions[start:end]:
                new_splits[position] = name
            start = end
        if start >= len(positions):
            raise DataError(f"class {class_names[label]!r}: too many of its images are equal to be split")
    train, val, test_images = ([i for i, split in enumerate(new_splits) if split == name] for name in SPLITS)
    return train, val, test_images


def _end_of_equal(contents: Sequence[bytes], positions: Sequence[int], end: int) -> int:
    """Return the first end, from `end` on, that parts no two equal images."""
    while end < len(positions) and contents[positions[end]] == contents[positions[end - 1]]:
        end += 1
    return end


def shared_notes(
    contents: Sequence[bytes], splits: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[str, ...]:
    """Return a line on the images that stand in two splits, with the first pair; () where none do."""
    first_in: list[dict[bytes, int]] = [{contents[i]: i for i in reversed(split)} for split in splits]
    notes = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        ordered = dict.fromkeys(contents[position] for position in splits[one])
        shared = [content for content in ordered if content in first_in[other]]
        if shared:
            a, b = (names[first_in[split][shared[0]]] for split in (one, other))
            both = f"{SPLITS[one]} and {SPLITS[other]}"
            what = "image stands" if len(shared) == 1 else "images stand"
            notes.append(f"{len(shared)} {what} in both {both}: the first is {a} = {b}")
    return tuple(notes)
