"""Texts of data with options: canonical forms, paths, and all that asks them for facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from in_process import orchestrate

from orchestrator.config import DenseConfig
from orchestrator.data import datasets, files, loading, paths
from orchestrator.data.sources import registry
from orchestrator.data.sources.registry import SOURCES, find_source, parse_dataset
from orchestrator.errors import DataError, SpaceError
from orchestrator.execution.cached_summary import request_of
from orchestrator.execution.options import SweepOptions
from orchestrator.model_io.description import class_names, normalisation
from orchestrator.planning.constraints import shape_of, train_size
from orchestrator.planning.fingerprints import _cached_sha256, clear_caches, data_sha256, missing_data
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space.catalog import describe, items
from orchestrator.space.space import Space, load_space
from orchestrator.space.values import canonical_dataset
from orchestrator.trial.weight_transfer import classes_of

SPACE = """\
version: 1
axes:
  model: [slp]
  dataset: ["{text}"]
  technique: [weight]
  amount: [0.5]
  seed: [0]
train: {{epochs: 1}}
recover: none
"""
TEXT = "npz(path='../images.npz')"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images.npz and a folder spaces; the data folder lies in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "spaces").mkdir()
    save(tmp_path)
    clear_caches()
    return tmp_path


def save(folder: Path, seed: int = 0) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    words = np.array(["left", "right", "up", "down"])
    np.savez(folder / "images.npz", x=x, y=words[np.arange(40) % 4])


def save_with_splits(folder: Path) -> str:
    """Save ten images of each of six classes: of 4 and 5 none is for validation, of 5 none for the test.

    Returns the text of the set.
    """
    x = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
    y, number = np.arange(60) % 6, np.arange(60) // 6
    split = np.where((number < 2) & (y < 4), 1, np.where((number < 4) & (y < 5), 2, 0))
    np.savez(folder / "split.npz", x=x, y=y, split=split, class_names=np.array(list("abcdef")))
    return "npz(path='split.npz')"


def space_of(project: Path, text: str = TEXT) -> Space:
    (project / "spaces" / "own.yaml").write_text(SPACE.format(text=text))
    return load_space("spaces/own.yaml")


def dense_of(plan: Plan) -> DenseConfig:
    return plan.trials[0].config.dense


# ---- texts


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("folder(path='a')", "folder(path='a')"),
        ("folder(size=64, path='./b/../a/')", "folder(path='a')"),
        ("folder(path='a', size=32, classes=[1, 0])", "folder(path='a', size=32, classes=[1, 0])"),
        ({"method": "folder", "path": "/a//b", "fit": "pad"}, "folder(path='/a/b', fit='pad')"),
        ("npz(path='a.npz', layout='auto')", "npz(path='a.npz')"),
        ("npy(y='y.npy', x='x.npy')", "npy(x='x.npy', y='y.npy')"),
        ("mnist-5k", "mnist-5k"),
        ("mnist-5k(samples_per_class=3)", "mnist-5k(samples_per_class=3)"),
    ],
)
def test_equal_data_have_one_text_which_is_its_own_canonical_form(written: object, canonical: str) -> None:
    assert canonical_dataset(written) == canonical
    assert canonical_dataset(canonical) == canonical
    name, selection = parse_dataset(canonical)
    assert find_source(name) is not None
    assert set(selection) <= {"classes", "samples_per_class"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("foldr(path='a')", "unknown dataset 'foldr'; did you mean folder"),
        ("folder", "folder needs a path"),
        ("folder(path='a', szie=3)", "unknown option of folder 'szie'; did you mean size"),
        ("folder(path='')", "folder needs a path"),
        ("folder(path='a\\0b')", "is no path"),
        ("folder(path='a', classes='cat')", "give a list of integers"),
        ("digits(path='a')", "unknown option of digits 'path'"),
    ],
)
def test_bad_texts_say_what_is_allowed(written: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        canonical_dataset(written)
    assert "\n" not in str(caught.value)


def test_a_path_is_relative_to_the_space_file_and_recorded_from_the_current_folder(project: Path) -> None:
    assert space_of(project).axes.dataset == ("npz(path='images.npz')",)
    assert space_of(project, "npz(path='images.npz')").axes.dataset == ("npz(path='spaces/images.npz')",)
    whole = f"npz(path='{project}/images.npz')"
    assert space_of(project, whole).axes.dataset == (whole,)


def test_a_worker_elsewhere_finds_the_files_of_its_sweep(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    monkeypatch.setattr(paths, "_workers_folder", None)
    with pytest.raises(DataError, match=r"elsewhere/images\.npz is not there"):
        loading.digest("npz(path='images.npz')")
    paths.set_base(str(project))
    assert len(loading.digest("npz(path='images.npz')")) == 64


def test_every_source_is_listed_and_described() -> None:
    listed = {item.name: item for item in items("datasets")}
    for name in SOURCES:
        assert registry.source_class(name).name == name
        assert name in listed
        example = listed[name].example()
        assert name in describe(name)
        if name not in datasets.DATASETS:
            text = example.partition("[")[2].rpartition("]")[0].strip('"')
            assert parse_dataset(canonical_dataset(text))[0].partition("(")[0] == name


# ---- who asks


def test_a_plan_has_the_digest_of_what_is_trained_on_and_a_new_key_for_changed_files(project: Path) -> None:
    first = dense_of(make_plan(space_of(project)))
    assert first.dataset == "npz(path='images.npz')"
    assert first.data_sha256 == loading.digest(first.dataset) == loading.load_dataset(first.dataset).digest
    assert first.batch_size == train_size(first.dataset) == datasets.split_sizes(first.dataset)[0]
    assert dense_of(make_plan(space_of(project))).key() == first.key()
    save(project, seed=1)
    second = dense_of(make_plan(space_of(project)))
    assert second.key() != first.key()
    with pytest.raises(DataError, match="are not those with which the sweep was planned"):
        loading.load_planned_data(first, None)


def test_a_digest_is_cached_by_folder_and_stamps(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "npz(path='images.npz')"
    first = data_sha256(text)
    clear_caches()
    files._whole.clear()
    _cached_sha256.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(loading, "digest", lambda *args, **options: pytest.fail("it was read again"))
        patch.setattr(files, "_read_source", lambda *args: pytest.fail("it was read again"))
        assert data_sha256(text) == first
        files.check_files(text)
    (project / "other").mkdir()
    save(project / "other", seed=2)
    monkeypatch.chdir(project / "other")
    clear_caches()
    assert data_sha256(text) == loading.digest(text) != first


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (
            [5, 4],
            "it has no validation images of f, e; choose other classes, or add validation images of these",
        ),
        ([4, 5, 0], ""),  # of class 0 there are some
        (None, ""),
    ],
)
def test_classes_without_images_in_a_split_are_refused(
    project: Path, classes: list[int] | None, problem: str
) -> None:
    text = save_with_splits(project)
    selected = text if classes is None else f"{text[:-1]}, classes={classes})"
    if not problem:
        loading.load_dataset(text, classes=classes)
        assert missing_data({selected}) == {}
        return
    for samples in (None, 1):
        with pytest.raises(DataError) as caught:
            loading.load_dataset(text, classes=classes, samples_per_class=samples)
        assert str(caught.value) == f"{text}: {problem}"
    assert data_sha256(selected) == ""
    # A whole set is named by its files, a selection by its text: the set itself is whole.
    assert missing_data({selected, text, "digits"}) == {selected: problem}


def test_a_plan_and_a_sweep_name_classes_without_images(project: Path) -> None:
    text = f"{save_with_splits(project)[:-1]}, classes=[4, 5])".replace("split.npz", "../split.npz")
    space_of(project, text)
    problem = "it has no validation images of e, f; choose other classes"
    done = orchestrate("plan", "spaces/own.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("missing data"))
    assert f"classes=[4, 5]): {problem}" in line
    done = orchestrate("sweep", "--space", "spaces/own.yaml", cwd=project)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert f"classes=[4, 5]): {problem}" in done.stderr


def test_missing_and_broken_data_are_named_before_anything_is_trained(project: Path) -> None:
    text = "npz(path='images.npz')"
    (project / "images.npz").write_bytes(b"no zip")
    clear_caches()
    assert data_sha256(text) == ""
    assert "is damaged" in missing_data({text, "digits"})[text]
    space_of(project)
    done = orchestrate("sweep", "--space", "spaces/own.yaml", cwd=project)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "images.npz is damaged" in done.stderr
    (project / "images.npz").unlink()
    done = orchestrate("plan", "--space", "spaces/own.yaml", cwd=project)
    assert done.returncode == 4
    assert done.stderr == f"error: npz {project}/images.npz is not there; give the path of a file\n"
    assert not (project / "mlruns").exists()


def test_classes_that_the_data_do_not_have_are_refused_by_the_plan(project: Path) -> None:
    with pytest.raises(SpaceError, match="from 0 to 3"):
        make_plan(space_of(project, "npz(path='../images.npz', classes=[0, 4])"))


def test_shapes_classes_and_scale_are_known_of_texts_with_options(project: Path) -> None:
    text = "npz(path='images.npz', classes=[2, 0])"
    assert shape_of(text) == ((1, 6, 6), 2)
    assert classes_of(text) == ("npz/right", "npz/down")
    assert class_names(text, 2) == ["right", "down"]
    scale = normalisation(text)
    assert scale is not None
    raw = files.read_raw("npz(path='images.npz')")
    assert raw.splits is not None
    assert scale["mean"] == pytest.approx([raw.images[raw.splits[0]].mean() / 255])
    (project / "images.npz").unlink()
    clear_caches()
    assert class_names(text, 2) is None
    assert normalisation(text) == {"divide_by": 255, "mean": None, "deviation": None}


def test_a_finished_sweep_on_own_files_is_planned_again(project: Path) -> None:
    assert request_of(space_of(project), SweepOptions()) is None
    assert request_of(space_of(project, "digits"), SweepOptions()) is not None


def test_verify_names_what_is_wrong(project: Path) -> None:
    done = orchestrate("data", "verify", "npz(path='images.npz')", cwd=project)
    assert (done.returncode, done.stdout) == (0, "npz(path='images.npz'): ok\n")
    done = orchestrate("data", "verify", "npz(path='none.npz')", cwd=project)
    assert done.returncode == 4
    assert "none.npz is not there" in done.stderr
