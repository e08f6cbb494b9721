"""`data check` and `data list`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import orchestrate
from PIL import Image

from orchestrator.data import checking, loading
from orchestrator.errors import DataError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos of two classes, ten images each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    for number, label in enumerate(("cat", "dog")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for image in range(10):
            pixels = np.full((8, 8, 3), 20 * image + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{image}.png")
    return tmp_path


TEXT = "folder(path='photos', size=8)"


def test_counts_scale_and_sizes_are_those_of_what_is_loaded(project: Path) -> None:
    checked = checking.check(TEXT)
    loaded = loading.load_dataset(TEXT)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert checked.counts == {"cat": (7, 1, 2), "dog": (7, 1, 2)}
    assert tuple(sum(part) for part in zip(*checked.counts.values(), strict=True)) == tuple(map(len, splits))
    scale = loading.scaling(TEXT)
    assert checked.mean == pytest.approx(scale.mean)
    assert checked.deviation == pytest.approx(scale.deviation)
    assert (checked.notes, checked.broken) == ((), ())


def test_the_command_lists_every_broken_image_and_fails(project: Path) -> None:
    (project / "photos" / "cat" / "3.png").write_bytes(b"")
    (project / "photos" / "dog" / "0.png").write_bytes(b"no image")
    for text in (TEXT, "folder(path='photos', size=8, skip_broken=False)"):
        done = orchestrate("data", "check", text, "--json", cwd=project)
        content = json.loads(done.stdout)
        assert done.returncode == 4
        assert [line.partition(" ")[0] for line in content["broken"]] == [
            f"{project}/photos/cat/3.png",
            f"{project}/photos/dog/0.png",
        ]
        assert sum(content["splits"].values()) == 18


def test_images_in_two_splits_are_named(project: Path) -> None:
    (project / "photos").rename(project / "train")
    (project / "photos").mkdir()
    (project / "train").rename(project / "photos" / "train")
    for label in ("cat", "dog"):
        (project / "photos" / "test" / label).mkdir(parents=True)
        copied = (project / "photos" / "train" / label / "9.png").read_bytes()
        (project / "photos" / "test" / label / "new.png").write_bytes(copied)
    done = orchestrate("data", "check", TEXT, cwd=project)
    assert done.returncode == 0
    assert "train/cat/9.png = test/cat/new.png" in done.stdout


def test_classes_without_images_in_a_split_are_noted(project: Path) -> None:
    (project / "photos").rename(project / "train")
    (project / "photos").mkdir()
    (project / "train").rename(project / "photos" / "train")
    (project / "photos" / "test" / "dog").mkdir(parents=True)
    (project / "photos" / "train" / "dog" / "9.png").rename(project / "photos" / "test" / "dog" / "9.png")
    done = orchestrate("data", "check", TEXT, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "note: no test images of cat: `classes` with none but these is refused" in done.stdout.splitlines()


def test_the_sheet_has_a_row_of_training_images_for_each_class(project: Path) -> None:
    done = orchestrate("data", "check", TEXT, "--sheet", "sheet.png", cwd=project)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(project / "sheet.png"))
    assert sheet.shape == (2 * 34 + 2, 10 * 34 + 2, 3)
    checked = checking.check(TEXT)
    for row in range(2):
        of_class = checked.train[checked.raw.labels[checked.train] == row]
        shown = [int(sheet[3 + 34 * row, 3 + 34 * column, 0]) for column in range(7)]
        assert shown == [int(checked.raw.images[position].flat[0]) for position in of_class]
        assert (sheet[3 + 34 * row, 3 + 34 * 7 :] == 255).all()
    again = orchestrate("data", "check", TEXT, "--sheet", "sheet.png", cwd=project)
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["foldr(path='photos')"], 2, "did you mean folder"),
        (["folder(path='none')"], 4, "none is not there"),
        (["digits(classes=[0, 1])"], 2, "leave classes out"),
        ([TEXT, "--sheet", "sheet.jpg"], 2, "ends with .png"),
    ],
)
def test_bad_words_are_one_line(project: Path, words: list[str], code: int, message: str) -> None:
    done = orchestrate("data", "check", *words, cwd=project)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert message in done.stderr


def test_digits_are_checked_in_their_own_levels(project: Path) -> None:
    checked = checking.check("digits")
    assert checked.mean == pytest.approx((float(loading.load_dataset("digits").train.images.mean()),))
    checking.write_sheet(checked, project / "digits.png")
    assert np.asarray(Image.open(project / "digits.png")).max() == 255


def test_the_list_says_what_is_there(project: Path) -> None:
    lines = orchestrate("data", "list", cwd=project).stdout.splitlines()
    states = {line.split()[0]: line for line in lines}
    assert " there " in states["digits"]
    assert " not there " in states["cifar10"]
    assert "your files" in states["folder"]


def test_equal_pixels_in_other_files_are_named_beside_equal_files(project: Path) -> None:
    for label, value in (("cat", 50), ("dog", 150)):
        for split in ("train", "val", "test"):
            (project / "own" / split / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), (value, 0, 0)).save(project / "own" / "val" / label / "0.png")
    for number in range(8):
        for label, value in (("cat", 0), ("dog", 100)):
            pixels = Image.fromarray(np.full((8, 8, 3), value + number, dtype=np.uint8))
            pixels.save(project / "own" / "train" / label / f"{number}.png")
            if number < 2:  # the same file, and the same pixels in another one
                pixels.save(project / "own" / "test" / label / f"{number}.{'png' if number else 'bmp'}")
    notes = checking.check("folder(path='own', size=8)").notes
    assert any(
        note.startswith("2 images stand in both train and test: the first is train/") for note in notes
    )
    assert any(note.startswith("by pixels, 4 images stand in both train and test") for note in notes)


def test_a_class_that_is_broken_throughout_names_its_files(project: Path) -> None:
    for file in (project / "photos" / "cat").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"class 'cat' has 0 images; .*; broken: .*0\.png .*, and 9 more"):
        checking.check(TEXT)
