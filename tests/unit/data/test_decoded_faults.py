"""Decoded files that are cut, written to or removed while they are in use, and disks that fill: one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.data import decoded_cache, decoded_files, loading
from orchestrator.data.batches import iter_batches
from orchestrator.data.decoded_files import load_or_decode
from orchestrator.data.scaled_images import read_batches
from orchestrator.errors import DataError, DiskFullError

X = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A set that is decoded into a file, however small it is."""
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(decoded_cache, "SMALL_BYTES", 0)
    monkeypatch.setattr(loading, "FLOAT_BYTES", 0)
    loading.load_data.cache_clear()
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(len(X)) % 3)
    return f"npz(path={str(tmp_path / 'a.npz')!r})"


def decoded_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "data" / "decoded").glob("*.u8")
    time.sleep(decoded_cache.TICK_SECONDS)  # so that a change of it has another time
    return file


def cut(file: Path) -> None:
    os.truncate(file, 100)


def cut_and_fill_with_zeros(file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, 100)
    os.truncate(file, size)


def write_to(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(bytes(1000))


CHANGES = (cut, cut_and_fill_with_zeros, write_to)


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_mapped_is_one_line_and_decoded_again(
    text: str, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    dense = DenseConfig("slp", text, 8, 0, Train(), Numerics(), data_sha256=loading.digest(text))
    images = loading.load_planned_data(dense, None).train.images
    batches = read_batches(images, iter_batches(len(images), 4, torch.Generator().manual_seed(0)))
    first = next(batches)
    change(decoded_file(tmp_path))
    with pytest.raises(DataError, match=r"\.u8 was changed while it was in use") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    again = loading.load_planned_data(dense, None)
    assert again.digest == dense.data_sha256
    batches = read_batches(again.train.images, iter_batches(len(images), 4, torch.Generator().manual_seed(0)))
    assert torch.equal(first, next(batches))


@pytest.mark.parametrize("change", CHANGES)
def test_pixels_that_change_while_a_batch_is_read_are_not_used(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    images, preadv = loading.load_dataset(text).train.images, os.preadv
    file = decoded_file(tmp_path)

    def meanwhile(*args: Any) -> int:
        count = preadv(*args)
        change(file)
        return count

    monkeypatch.setattr(os, "preadv", meanwhile)
    with pytest.raises(DataError, match="was changed while it was in use"):
        images[:4]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_before_it_is_mapped_is_decoded_again(
    text: str, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    digest = loading.digest(text)
    change(decoded_file(tmp_path))
    assert loading.digest(text) == digest


def test_a_file_that_changes_while_the_set_is_loaded_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = loading._scale

    def meanwhile(*args: Any, **keywords: Any) -> Any:
        cut(decoded_file(tmp_path))
        return scale(*args, **keywords)

    digest = loading.digest(text)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_scale", meanwhile)
        with pytest.raises(DataError, match="was changed while it was in use"):
            loading.load_dataset(text)
    assert loading.load_dataset(text).digest == digest


def test_who_has_a_removed_file_mapped_keeps_it_and_others_decode_it_again(text: str, tmp_path: Path) -> None:
    first = loading.load_dataset(text)
    before = first.train.images[:]
    shutil.rmtree(tmp_path / "data" / "decoded")
    assert torch.equal(first.train.images[:], before)
    second = loading.load_dataset(text)
    assert second.digest == first.digest
    assert torch.equal(second.train.images[:], before)
    assert decoded_file(tmp_path).stat().st_size == X.nbytes


# ---- folders that vanish, and disks that fill, while a file is made


class Removing:
    """Decodes, and removes the folder meanwhile, so many times."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times, self.calls = folder, times, 0

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        self.calls += 1
        pixels[:] = 5
        if self.calls <= self.times:
            shutil.rmtree(self.folder)
        return {}


def test_a_folder_that_is_removed_while_a_file_is_made_is_made_again(tmp_path: Path) -> None:
    fill = Removing(tmp_path / "decoded", 1)
    decoded = load_or_decode(tmp_path / "decoded", "key", shape=(4, 3, 2, 2), fill=fill, name="folder")
    assert decoded.pixels.min() == 5
    assert fill.calls == 2
    assert sorted(file.name for file in (tmp_path / "decoded").iterdir()) == [
        "key.json",
        "key.lock",
        "key.u8",
    ]


def test_a_folder_that_is_removed_each_time_is_one_line(tmp_path: Path) -> None:
    fill = Removing(tmp_path / "decoded", 99)
    with pytest.raises(DataError, match=r"folder: cannot write decoded images into .*decoded \(No such file"):
        load_or_decode(tmp_path / "decoded", "key", shape=(4, 3, 2, 2), fill=fill, name="folder")
    assert fill.calls == decoded_files.TRIES
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def ones(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    pixels[:] = 1
    return {"labels": [0] * 100_000}  # JSON of 300 kB


@pytest.mark.parametrize("images", [800, 2000])
def test_a_real_disk_that_fills_while_a_file_is_made(
    disk: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    """Its pixels do not fit, or they do and its description does not."""
    monkeypatch.setattr(decoded_files, "SPARE_BYTES", -10_000_000)  # as if it had been free a moment before
    with pytest.raises(DiskFullError, match=r"no room is left in .*decoded: No space left") as caught:
        load_or_decode(disk / "decoded", "key", shape=(images, 1, 32, 32), fill=ones, name="folder")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert [file.name for file in (disk / "decoded").iterdir()] == ["key.lock"]
    again = load_or_decode(disk / "decoded", "key", shape=(300, 1, 32, 32), fill=ones, name="folder")
    assert again.pixels.min() == 1


def test_a_limit_on_the_size_of_files_is_one_line_of_the_command_and_a_rerun_works(tmp_path: Path) -> None:
    """Not forced: a set that is large by itself."""
    x = np.random.default_rng(0).integers(0, 256, (90, 3, 256, 256), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(90) % 3)
    command = f'"{sys.executable}" -m orchestrator data check "npz(path=\'a.npz\')"'
    environment = {**os.environ, "ORCHESTRATE_DATA_DIR": str(tmp_path / "data")}

    def check(prefix: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-c", prefix + command]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    limited = check("ulimit -f 10000; ")
    assert limited.returncode == 4
    assert limited.stdout == ""
    (line,) = limited.stderr.splitlines()
    assert line.startswith("error: npz ")
    assert "cannot write decoded images into" in line
    assert "File too large" in line
    assert [file.suffix for file in (tmp_path / "data" / "decoded").iterdir()] == [".lock"]
    again = check("")
    assert again.returncode == 0, again.stderr
    assert "90 images of 3x256x256" in again.stdout
