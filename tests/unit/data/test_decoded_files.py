"""Decoded files are made once, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from orchestrator.data.decoded_files import Shape, load_or_decode
from orchestrator.errors import DataError, DiskFullError

SHAPE: Shape = (4, 3, 2, 2)


class Source:
    """Counts how often it is decoded."""

    def __init__(self, *, count: int = SHAPE[0]) -> None:
        self.calls, self.count = 0, count

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        self.calls += 1
        pixels[: self.count] = np.arange(self.count)[:, None, None, None]
        return {"labels": list(range(self.count)), "count": self.count}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_decoded_once(tmp_path: Path) -> None:
    source = Source()
    first = load_or_decode(tmp_path / "decoded", "key", shape=SHAPE, fill=source, name="folder")
    again = load_or_decode(tmp_path / "decoded", "key", shape=SHAPE, fill=source, name="folder")
    assert source.calls == 1
    assert first.facts == again.facts == {"labels": [0, 1, 2, 3]}
    assert isinstance(again.pixels, np.memmap)
    assert not again.pixels.flags.writeable
    assert again.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert names_in(tmp_path / "decoded") == ["key.json", "key.lock", "key.u8"]


def test_fewer_images_may_be_written(tmp_path: Path) -> None:
    decoded = load_or_decode(tmp_path, "key", shape=SHAPE, fill=Source(count=3), name="folder")
    assert decoded.pixels.shape == (3, 3, 2, 2)
    assert (tmp_path / "key.u8").stat().st_size == 3 * 12


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def broken(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        raise DataError("folder: cat.png is broken")

    with pytest.raises(DataError, match=r"cat\.png"):
        load_or_decode(tmp_path, "key", shape=SHAPE, fill=broken, name="folder")
    assert names_in(tmp_path) == ["key.lock"]


@pytest.mark.parametrize("damage", ["cut", "not JSON", "gone", "other bytes", "other facts"])
def test_a_damaged_file_is_decoded_anew(tmp_path: Path, damage: str) -> None:
    source = Source()
    load_or_decode(tmp_path, "key", shape=SHAPE, fill=source, name="folder")
    if damage == "cut":
        os.truncate(tmp_path / "key.u8", 7)
    elif damage == "not JSON":
        (tmp_path / "key.json").write_text("[1")
    elif damage == "other bytes":
        with (tmp_path / "key.u8").open("r+b") as stream:
            stream.write(b"\x07")
    elif damage == "other facts":
        text = (tmp_path / "key.json").read_text()
        (tmp_path / "key.json").write_text(text.replace("labels", "label"))
    else:
        (tmp_path / "key.u8").unlink()
    assert load_or_decode(tmp_path, "key", shape=SHAPE, fill=source, name="folder").pixels[3, 0, 0, 0] == 3
    assert source.calls == 2


def test_a_full_disk_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1000))
    source = Source()
    with pytest.raises(DiskFullError, match="ORCHESTRATE_DATA_DIR"):
        load_or_decode(tmp_path, "key", shape=SHAPE, fill=source, name="folder")
    assert source.calls == 0
    assert names_in(tmp_path) == ["key.lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="ORCHESTRATE_DATA_DIR"):
        load_or_decode(tmp_path / "decoded", "key", shape=SHAPE, fill=Source(), name="folder")


@pytest.mark.parametrize("place", ["file/decoded", "/proc/decoded", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write decoded images into .*; set ORCHESTRATE_DATA_DIR"):
        load_or_decode(tmp_path / place, "key", shape=SHAPE, fill=Source(), name="folder")


CODE = """
    import sys, time
    from pathlib import Path
    from orchestrator.data.decoded_files import load_or_decode

    def fill(pixels):
        print("decoding", flush=True)
        time.sleep(float(sys.argv[2]))
        pixels[:] = 1
        return {}

    print(load_or_decode(Path(sys.argv[1]), "key", shape=(4, 3, 2, 2), fill=fill, name="folder").pixels.sum())
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_for_the_first_and_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    killed = start(tmp_path, 60)
    assert killed.stdout
    assert killed.stdout.readline() == "decoding\n"
    waiting = [start(tmp_path, 0.1), start(tmp_path, 0.1)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    outputs = [process.communicate(timeout=60)[0] for process in waiting]
    assert sum("decoding" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert names_in(tmp_path) == ["key.json", "key.lock", "key.u8"]


def test_files_of_an_earlier_state_are_removed(tmp_path: Path) -> None:
    earlier = load_or_decode(tmp_path, "cats-1", shape=SHAPE, fill=Source(), name="folder")
    load_or_decode(tmp_path, "dogs-1", shape=SHAPE, fill=Source(), name="folder")
    load_or_decode(tmp_path, "cats-2", shape=SHAPE, fill=Source(), name="folder")
    files = [name for name in names_in(tmp_path) if not name.endswith(".lock")]
    assert files == ["cats-2.json", "cats-2.u8", "dogs-1.json", "dogs-1.u8"]
    assert earlier.pixels[3, 0, 0, 0] == 3  # of a process that has it mapped


def test_the_lock_of_another_state_stays(tmp_path: Path) -> None:
    """Who waits for a file that is removed holds a lock beside the next one's, and both decode."""
    with FileLock(tmp_path / "cats-1.lock"):
        load_or_decode(tmp_path, "cats-2", shape=SHAPE, fill=Source(), name="folder")
        with pytest.raises(Timeout):
            FileLock(tmp_path / "cats-1.lock", timeout=0).acquire()


def test_a_disk_that_fills_while_space_is_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    source = Source()
    with pytest.raises(DiskFullError, match="no room is left"):
        load_or_decode(tmp_path, "key", shape=SHAPE, fill=source, name="folder")
    assert source.calls == 0
    assert names_in(tmp_path) == ["key.lock"]
