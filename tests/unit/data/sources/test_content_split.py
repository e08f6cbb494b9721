"""Splits by content: shares, stability under names and order, equal images."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources.content_split import SPLITS, content_splits, shared_notes, split_counts
from orchestrator.errors import DataError


def digest(number: int) -> bytes:
    return sha256(str(number).encode()).digest()


@given(st.integers(1, 5000), st.sets(st.sampled_from(["validation", "test"])))
def test_counts_are_whole_and_every_split_gets_an_image(count: int, own: set[str]) -> None:
    needed = 1 + ("test" not in own) + ("validation" not in own)
    if count < needed:
        with pytest.raises(ValueError, match=f"{count} images; {needed} or more"):
            split_counts(count, tuple(own))
        return
    train, validation, test = split_counts(count, tuple(own))
    assert train + validation + test == count
    assert train >= 1
    assert (validation > 0, test > 0) == ("validation" not in own, "test" not in own)


def test_counts_by_hand() -> None:
    assert split_counts(100, ()) == (72, 8, 20)
    assert split_counts(3, ()) == (1, 1, 1)
    assert split_counts(100, ("test",)) == (90, 10, 0)
    assert split_counts(100, ("validation", "test")) == (100, 0, 0)


@given(st.permutations(range(40)))
def test_neither_order_nor_names_decide(order: list[int]) -> None:
    def chosen(numbers: list[int]) -> list[set[int]]:
        labels = [number % 2 for number in numbers]
        contents = [digest(number) for number in numbers]
        splits = content_splits(contents, labels, ["train"] * 40, ["even", "odd"])
        return [{numbers[position] for position in split} for split in splits]

    expected = chosen(list(range(40)))
    assert chosen(order) == expected
    assert [len(split) for split in expected] == [28, 4, 8]
    smallest = {parity: sorted(range(parity, 40, 2), key=digest)[:4] for parity in (0, 1)}
    assert expected[2] == {*smallest[0], *smallest[1]}


@given(st.lists(st.integers(0, 6), min_size=12, max_size=60))
def test_equal_images_of_a_class_are_never_parted(numbers: list[int]) -> None:
    labels = [0] * len(numbers) + [1] * 3
    contents = [digest(number) for number in [*numbers, 100, 101, 102]]
    try:
        splits = content_splits(contents, labels, ["train"] * len(labels), ["a", "b"])
    except DataError as error:
        assert "too many of its images are equal" in str(error)  # noqa: PT017
        return
    assert sorted(position for split in splits for position in split) == list(range(len(labels)))
    assert shared_notes(contents, splits, [""] * len(labels)) == ()


def test_own_splits_stay_and_what_is_missing_comes_from_training() -> None:
    own = ["train"] * 20 + ["test"] * 4
    contents = [digest(number) for number in range(24)]
    train, validation, test = content_splits(contents, [0, 1] * 12, own, ["a", "b"])
    assert test == [20, 21, 22, 23]
    assert len(validation) == 2
    assert len(train) == 18


def test_shared_images_are_named_with_their_splits() -> None:
    contents = [digest(number) for number in (1, 2, 1, 3)]
    notes = shared_notes(contents, ([0, 1], [3], [2]), ["a.png", "b.png", "c.png", "d.png"])
    assert notes == ("1 image stands in both train and test: the first is a.png = c.png",)
    assert SPLITS == ("train", "validation", "test")
