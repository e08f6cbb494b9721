"""Large `npz`, `npy` and one's own functions: a decoded file with the bits of what lies in memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.data import decoded_cache, files, loading, paths
from orchestrator.data.loading import Dataset
from orchestrator.data.scaled_images import ScaledImages
from orchestrator.data.sources import array_reader, own_data
from orchestrator.errors import DataError
from orchestrator.space.values import canonical_dataset
from orchestrator.training.inputs import Inputs

COUNT, SHAPE = 60, (3, 8, 11)
X = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
X[7] = X[3]  # equal images stay in one split
Y = np.arange(COUNT) % 3
OWN = """\
from pathlib import Path
import numpy as np

def load(seconds: float = 0.0):
    import time
    time.sleep(seconds)
    with open("calls", "a") as file:
        file.write("called\\n")
    x = np.load("own.npy")
    return x, np.arange(len(x)) % 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "_workers_folder", None)
    monkeypatch.setattr(own_data, "_slow", set())
    loading.load_data.cache_clear()
    return tmp_path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return the function after which every set is large, and arrays are read a few images at once."""

    def set_limits() -> None:
        monkeypatch.setattr(decoded_cache, "SMALL_BYTES", 0)
        monkeypatch.setattr(loading, "FLOAT_BYTES", 0)
        monkeypatch.setattr(array_reader, "BLOCK_NUMBERS", 7 * int(np.prod(SHAPE)))

    return set_limits


def npz() -> str:
    np.savez("a.npz", x=X, y=Y)
    return "npz(path='a.npz')"


def npz_of_floats() -> str:
    np.savez_compressed(
        "a.npz", x=(X[:40] / 255).astype(np.float32), y=Y[:40], x_test=X[40:] / 255, y_test=Y[40:]
    )
    return "npz(path='a.npz')"


def npz_in_order_of_fortran() -> str:
    np.savez("a.npz", x=np.asfortranarray(X), y=Y)
    return "npz(path='a.npz')"


def npy_channels_last() -> str:
    np.save("x.npy", X.transpose(0, 2, 3, 1).copy())
    np.save("y.npy", Y)
    return "npy(x='x.npy', y='y.npy')"


def npy_of_integers() -> str:
    np.save("x.npy", X.astype(">i4"))
    np.save("y.npy", Y)
    return "npy(x='x.npy', y='y.npy')"


def own() -> str:
    Path("own.py").write_text(OWN)
    np.save("own.npy", X)
    return canonical_dataset("own.py:load")


def trained(data: Dataset) -> list[torch.Tensor]:
    """Return the weights after a few steps on augmented batches."""
    torch.manual_seed(0)
    net = models.build("cnn", input_shape=data.input_shape, num_classes=data.num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    inputs = Inputs(data.train, Train(augment="crop_flip"), torch.Generator().manual_seed(0))
    for _, micro_batches in inputs.epoch(8, micro_batch=4):
        for images, labels in micro_batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images), labels.own).backward()
            optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


FORMS = (npz, npz_of_floats, npz_in_order_of_fortran, npy_channels_last, npy_of_integers, own)


@pytest.mark.parametrize("form", FORMS)
def test_small_and_large_train_to_the_same_bits(form: Callable[[], str], large: Callable[[], None]) -> None:
    text = form()
    small, in_memory = loading.load_dataset(text), files.read_raw(text)
    assert not Path("data/decoded").exists()
    large()
    decoded, mapped = loading.load_dataset(text), files.read_raw(text)
    assert isinstance(small.train.images, torch.Tensor)
    assert isinstance(decoded.train.images, ScaledImages)
    assert isinstance(mapped.images, np.memmap)
    assert np.array_equal(mapped.images, X)
    assert np.array_equal(mapped.images, in_memory.images)
    assert mapped.notes == in_memory.notes
    assert small.digest == decoded.digest == loading.digest(text)
    assert small.class_names == decoded.class_names
    assert all(map(torch.equal, trained(small), trained(decoded)))
    assert sorted(file.suffix for file in Path("data/decoded").iterdir()) == [".json", ".lock", ".u8"]


@pytest.mark.parametrize("form", [npz, npy_channels_last])
def test_a_set_is_decoded_once_until_its_files_change(
    form: Callable[[], str], large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    large()
    text = form()
    files.read_raw(text)
    with monkeypatch.context() as patch:
        patch.setattr(array_reader.NamedArrays, "blocks", lambda *_: pytest.fail("it was decoded again"))
        files.read_raw(text)
    np.savez("a.npz", x=255 - X, y=Y)
    np.save("x.npy", 255 - X)
    assert np.array_equal(files.read_raw(text).images, 255 - X)


@pytest.mark.long
@pytest.mark.parametrize("form", [npz, npz_of_floats, npy_channels_last])
def test_neither_decoding_nor_reading_holds_the_images_in_memory(
    form: Callable[[], str], large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    large()
    monkeypatch.setattr(array_reader, "BLOCK_NUMBERS", 1 << 16)
    images = np.random.default_rng(0).integers(0, 256, (2000, 3, 64, 64), dtype=np.uint8)
    monkeypatch.setitem(globals(), "X", images)
    monkeypatch.setitem(globals(), "Y", np.arange(len(images)) % 3)
    text = form()
    for _ in range(2):
        tracemalloc.start()
        files.read_raw(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < images.nbytes / 4


def test_a_set_that_is_damaged_leaves_nothing(large: Callable[[], None]) -> None:
    large()
    np.savez_compressed("a.npz", x=X, y=Y)
    content = bytearray(Path("a.npz").read_bytes())
    content[2000:2010] = bytes(10)
    Path("a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"npz .*a\.npz is damaged: ") as caught:
        files.read_raw("npz(path='a.npz')")
    assert "\n" not in str(caught.value)
    assert sorted(file.suffix for file in Path("data/decoded").iterdir()) == [".lock"]


def test_files_that_change_while_they_are_decoded_are_refused(
    large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    large()
    text, blocks = npz(), array_reader.NamedArrays.blocks

    def changing(self: Any, name: str) -> Any:
        yield from blocks(self, name)
        os.utime("a.npz")

    monkeypatch.setattr(array_reader.NamedArrays, "blocks", changing)
    with pytest.raises(DataError, match="its files changed while they were read"):
        files.read_raw(text)
    assert sorted(file.suffix for file in Path("data/decoded").iterdir()) == [".lock"]


# ---- a function of one's own: called for the plan, and by no worker


def calls() -> int:
    return len(Path("calls").read_text().splitlines())


def planned(text: str) -> DenseConfig:
    return DenseConfig("slp", text, 8, 0, Train(epochs=1), Numerics(), data_sha256=loading.digest(text))


@pytest.fixture
def as_worker(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def become() -> None:
        monkeypatch.setattr(paths, "_workers_folder", here)

    return become


def test_workers_read_what_the_function_returned_for_the_plan(
    large: Callable[[], None], as_worker: Callable[[], None]
) -> None:
    large()
    dense = planned(own())
    called = calls()
    as_worker()
    data = loading.load_planned_data(dense, None)
    assert calls() == called
    assert data.digest == dense.data_sha256
    assert data.train.images.shape[1:] == SHAPE
    assert own_data.OwnData(text=dense.dataset).facts().split_sizes == tuple(
        map(len, (data.train, data.validation, data.test))
    )


def test_a_slow_function_is_not_called_by_workers_however_small_its_images(
    as_worker: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "SLOW_SECONDS", 0.05)
    quick, slow = planned(own()), planned(canonical_dataset("own.py:load(seconds=0.1)"))
    assert quick.data_sha256 == slow.data_sha256
    called = calls()
    as_worker()
    loading.load_planned_data(slow, None)
    assert calls() == called
    loading.load_planned_data(quick, None)
    assert calls() == called + 1
    loading.load_planned_data(quick, None)
    assert calls() == called + 1


def test_what_a_plan_does_not_mean_is_forgotten_and_the_function_called(
    large: Callable[[], None], as_worker: Callable[[], None]
) -> None:
    """As on another machine of a cluster, whose file is of an earlier sweep."""
    large()
    text = own()
    planned(text)
    np.save("own.npy", 255 - X)
    earlier = {file: file.read_bytes() for file in Path("data/decoded").iterdir()}
    times = {file: file.stat().st_mtime_ns for file in earlier}
    dense = planned(text)
    for file in Path("data/decoded").iterdir():
        file.unlink()
    for file, content in earlier.items():
        file.write_bytes(content)
        os.utime(file, ns=(times[file], times[file]))
    called = calls()
    as_worker()
    data = loading.load_planned_data(dense, None)
    assert data.digest == dense.data_sha256
    assert calls() > called
    np.save("own.npy", X)
    loading.load_data.cache_clear()
    assert loading.load_planned_data(dense, None).digest == dense.data_sha256  # from the file


def test_a_data_folder_that_cannot_be_written_matters_to_large_sets_alone(
    large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "SLOW_SECONDS", 0.0)
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", "/proc/nowhere")
    text = own()
    assert np.array_equal(files.read_raw(text).images, X)
    large()
    with pytest.raises(DataError, match="set ORCHESTRATE_DATA_DIR to a folder of your own"):
        files.read_raw(text)
