"""`npz` and `npy`: shapes, numbers, splits, labels, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from orchestrator.data import datasets, files, loading
from orchestrator.data.sources.array_images import write_bytes
from orchestrator.data.sources.registry import find_source
from orchestrator.errors import DataError, SpaceError

Array = np.ndarray[Any, Any]


def to_bytes(parts: dict[str, Array]) -> Array:
    shape = next(iter(parts.values())).shape
    pixels = np.empty((sum(map(len, parts.values())), *shape[1:]), dtype=np.uint8)
    blocks = {
        name: lambda array=array: iter(np.array_split(array, len(array))) for name, array in parts.items()
    }
    assert sum(write_bytes(blocks, pixels)) == len(pixels)
    return pixels


def draw(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save(folder: Path, **given: Any) -> str:
    """Write an npz and return its text; x has 30 grey images of 3 classes where nothing else is given."""
    content = {"x": draw(30, 6, 5), "y": np.arange(30) % 3, **given}
    np.savez(folder / "a.npz", **{name: array for name, array in content.items() if array is not None})
    return f"npz(path={str(folder / 'a.npz')!r})"


def test_images_labels_and_splits_are_what_was_saved(tmp_path: Path) -> None:
    x, y = draw(30, 6, 5), np.arange(30) % 3
    raw = files.read_raw(save(tmp_path, x=x, y=y))
    assert raw.images.dtype == np.uint8
    assert np.array_equal(raw.images, x[:, None])
    assert np.array_equal(raw.labels, y)
    assert raw.class_names == ("0", "1", "2")
    assert raw.splits is not None
    assert sorted(np.concatenate(raw.splits).tolist()) == list(range(30))
    assert [len(split) for split in raw.splits] == [21, 3, 6]


def test_facts_are_those_of_what_is_loaded(tmp_path: Path) -> None:
    text = save(tmp_path, x=draw(40, 8, 8, 3), y=np.arange(40) % 4)
    facts, loaded = datasets.info(text), loading.load_dataset(text)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert facts.input_shape == loaded.input_shape == tuple(loaded.train.images.shape[1:]) == (3, 8, 8)
    assert facts.split_sizes == tuple(map(len, splits)) == datasets.split_sizes(text)
    assert facts.per_class == tuple(tuple(split.labels.bincount().tolist()) for split in splits)
    assert facts.class_names == loaded.class_names
    mean = loaded.train.images.mean(dim=(0, 2, 3))
    assert mean.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("form", ["first", "last", "grey"])
def test_every_form_of_an_image_is_the_same_data(tmp_path: Path, dtype: str, form: str) -> None:
    x = draw(30, 3, 6, 7) if form != "grey" else draw(30, 6, 7)
    expected = x if form != "grey" else x[:, None]
    saved = x.transpose(0, 2, 3, 1) if form == "last" else x
    for scale in (1, 255) if dtype.startswith("float") else (1,):
        raw = files.read_raw(save(tmp_path, x=(saved / scale if scale > 1 else saved).astype(dtype)))
        assert np.array_equal(raw.images, expected)


@given(arrays.arrays(np.uint8, (2, 1, 3, 3)))
def test_floats_of_whole_numbers_give_these_numbers(images: Array) -> None:
    assert np.array_equal(to_bytes({"x": (images / 255).astype(np.float32)}), images)


@given(st.floats(0, 255, width=32), st.floats(2, 255, width=32))
def test_floats_up_to_255_are_rounded(value: float, large: float) -> None:
    images = np.array([value, large], dtype=np.float32).reshape(1, 1, 1, 2)
    assert to_bytes({"x": images}).flatten().tolist() == [round(value), round(large)]


def test_splits_are_of_one_scale() -> None:
    unit, whole = np.full((1, 1, 2, 2), 0.5), np.full((1, 1, 2, 2), 128, dtype=np.uint8)
    with pytest.raises(DataError, match="of two scales, x up to 255, x_test up to 1; give one"):
        to_bytes({"x": whole, "x_test": unit})
    with pytest.raises(DataError, match="of two scales, x up to 1, x_test up to 255; give one"):
        to_bytes({"x": unit, "x_test": 100 * unit})
    both = to_bytes({"x": whole, "x_test": whole.astype(np.int64)})
    assert np.array_equal(both, np.concatenate([whole, whole]))


def test_booleans_are_black_and_white_and_floats_a_little_above_1_are_refused() -> None:
    images = np.array([False, True]).reshape(1, 1, 1, 2)
    assert to_bytes({"x": images}).flatten().tolist() == [0, 255]
    with pytest.raises(DataError, match=r"x has floats up to 1\.001, a little above 1"):
        to_bytes({"x": 1.001 * images})


@pytest.mark.parametrize("name", ["X_test", "y_validation", "x_tset", "Class_Names"])
def test_arrays_that_nobody_would_read_are_refused(tmp_path: Path, name: str) -> None:
    text = save(tmp_path, x=draw(30, 1, 8, 8), **{name: np.zeros(3)})
    with pytest.raises(DataError, match=f"unknown array '{name}'; did you mean"):
        datasets.info(text)


def test_layout_decides_where_both_are_possible(tmp_path: Path) -> None:
    text = save(tmp_path, x=draw(30, 3, 9, 3))
    with pytest.raises(DataError, match="may have its channels first or last; say layout: first or"):
        datasets.info(text)
    for layout, shape in (("first", (3, 9, 3)), ("last", (3, 3, 9))):
        chosen = text.replace(")", f", layout={layout!r})")
        assert datasets.info(chosen).input_shape == loading.load_dataset(chosen).input_shape == shape


def test_own_test_and_validation_images_stay(tmp_path: Path) -> None:
    x_test, x_val = draw(6, 6, 5, seed=1), draw(9, 6, 5, seed=2)
    text = save(tmp_path, x_test=x_test, y_test=np.arange(6) % 3, x_val=x_val, y_val=np.arange(9) % 3)
    raw = files.read_raw(text)
    assert raw.splits is not None
    train, validation, test = raw.splits
    assert np.array_equal(raw.images[test][:, 0], x_test)
    assert np.array_equal(raw.images[validation][:, 0], x_val)
    assert len(train) == 30
    assert datasets.split_sizes(text) == (30, 9, 6)


def test_a_missing_validation_split_is_a_tenth_of_training(tmp_path: Path) -> None:
    text = save(tmp_path, x_test=draw(6, 6, 5, seed=1), y_test=np.arange(6) % 3)
    assert datasets.split_sizes(text) == tuple(map(len, files.read_raw(text).splits or ())) == (27, 3, 6)


@pytest.mark.parametrize("names", [[0, 1, 2], ["train", "val", "test"]])
def test_a_split_array_decides(tmp_path: Path, names: list[Any]) -> None:
    split = np.array(names)[np.repeat([0, 1, 2], [15, 6, 9])]
    raw = files.read_raw(save(tmp_path, split=split))
    assert raw.splits is not None
    assert [part.tolist() for part in raw.splits] == [
        list(range(15)),
        list(range(15, 21)),
        list(range(21, 30)),
    ]


def test_labels_are_numbered_by_value_and_named(tmp_path: Path) -> None:
    raw = files.read_raw(save(tmp_path, y=np.array([7, -1, 40])[np.arange(30) % 3][:, None]))
    assert raw.class_names == ("-1", "7", "40")
    assert raw.labels[:3].tolist() == [1, 0, 2]
    words = np.array(["dog", "cat", "owl"])
    assert files.read_raw(save(tmp_path, y=words[np.arange(30) % 3])).class_names == ("cat", "dog", "owl")
    assert files.read_raw(save(tmp_path, class_names=words)).class_names == ("dog", "cat", "owl")


def test_npy_files_are_the_same_data_as_an_npz(tmp_path: Path) -> None:
    x, y = draw(30, 6, 5), np.arange(30) % 3
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    text = f"npy(x={str(tmp_path / 'x.npy')!r}, y={str(tmp_path / 'y.npy')!r})"
    raw, other = files.read_raw(text), files.read_raw(save(tmp_path, x=x, y=y))
    assert np.array_equal(raw.images, other.images)
    assert raw.splits is not None
    assert other.splits is not None
    assert all(np.array_equal(a, b) for a, b in zip(raw.splits, other.splits, strict=True))


def test_equal_images_in_two_splits_are_reported(tmp_path: Path) -> None:
    x = draw(30, 6, 5)
    text = save(tmp_path, x=x, x_test=x[:6], y_test=np.arange(6) % 3)
    notes = files.read_raw(text).notes
    assert sum(int(note.partition(" ")[0]) for note in notes) == 6
    assert all(" and test: the first is image " in note for note in notes)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"y": None}, "it has no array 'y'; it has x"),
    "objects": ({"y": np.array([{}] * 30, dtype=object)}, "Python objects, which are never loaded"),
    "objects as images": ({"x": np.array([{}] * 30, dtype=object)}, "Python objects"),
    "one class": ({"y": np.zeros(30, int)}, "it has 1 classes; two or more"),
    "too few": ({"x": draw(4, 6, 5), "y": np.array([0, 0, 1, 1])}, "class '0' has 2 images; 3 or more"),
    "other count": ({"y": np.arange(29)}, r"y is \[29\], and there are 30 images"),
    "flat": ({"x": draw(30, 30)}, r"images are \[N, H, W\]"),
    "no images": ({"x": draw(0, 6, 5), "y": np.arange(0)}, "x has no images"),
    "no pixels": ({"x": draw(30, 0, 5)}, "no pixels"),
    "two channels": ({"x": draw(30, 2, 6, 5)}, "neither 1 nor 3 channels"),
    "half labels": ({"y": np.arange(30) / 2}, "whole numbers, or texts"),
    "half a test": ({"x_test": draw(6, 6, 5)}, "only one of x_test and y_test"),
    "other shape": ({"x_test": draw(6, 7, 5), "y_test": np.arange(6) % 3}, "differ in shape"),
    "class in test alone": (
        {"x_test": draw(2, 6, 5), "y_test": np.array([0, 9])},
        "class '9' has no training images",
    ),
    "bad split": ({"split": np.full(30, 3)}, "split has 3; give 0, 1, 2"),
    "split twice": (
        {"split": np.zeros(30, int), "x_val": draw(3, 6, 5), "y_val": np.arange(3)},
        "leave one out",
    ),
    "names twice": ({"class_names": np.array(["a", "a", "b"])}, "different texts"),
    "name with a newline": ({"y": np.array(["a\nb", "c", "d"])[np.arange(30) % 3]}, "cannot name a class"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    text = save(tmp_path, **content)
    with pytest.raises(DataError, match=message) as caught:
        datasets.info(text)
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert loading_fails(text)


def loading_fails(text: str) -> bool:
    try:
        loading.digest(text)
    except DataError:
        return True
    return False


@pytest.mark.parametrize(
    "x",
    [draw(30, 6, 5).astype(float) - 300, draw(30, 6, 5) * np.nan, draw(30, 6, 5) * 1j],
    ids=["below 0", "nan", "complex"],
)
def test_numbers_that_are_no_pixels_are_refused(tmp_path: Path, x: Array) -> None:
    with pytest.raises(DataError, match="uint8, or floats"):
        files.read_raw(save(tmp_path, x=x))


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    text, file = save(tmp_path), tmp_path / "a.npz"
    whole = file.read_bytes()
    for content in (b"", b"no zip", whole[:200], whole[: len(whole) // 2], whole[:-30]):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            files.check_files(text)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="is not there"):
        files.check_files(text)
    file.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        files.check_files(text)


def test_an_array_that_is_shorter_than_its_header_says_is_cut_off(tmp_path: Path) -> None:
    text = save(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"(30, 6, 5)", b"(30, 6, 9)"))
    with pytest.raises(DataError, match="x is cut off: its header says 1620 bytes, and 1028 are there"):
        files.read_raw(text)


def test_a_changed_file_has_another_digest_and_is_read_again(tmp_path: Path) -> None:
    text = save(tmp_path)
    files.check_files(text)
    first = loading.digest(text)
    assert loading.digest(save(tmp_path)) == first
    assert loading.digest(save(tmp_path, x=draw(30, 6, 5, seed=9))) != first
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="is damaged"):
        files.check_files(text)


def test_options_are_typed() -> None:
    with pytest.raises(SpaceError, match="npz needs a path"):
        find_source("npz()")
    with pytest.raises(SpaceError, match=r"npz\(layout\): unknown value 'firsts'; did you mean first"):
        find_source("npz(path='a.npz', layout='firsts')")
    with pytest.raises(SpaceError, match="npy needs x and y"):
        find_source("npy(x='x.npy')")
