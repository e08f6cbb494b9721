"""Files are read at their size, whole where they have none, and replaced whole."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from orchestrator.errors import DiskFullError
from orchestrator.system import files
from orchestrator.system.files import read_regular, replace_file


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 50])
def test_a_file_is_read_up_to_one_byte_more_than_is_allowed(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(range(size)))
    assert read_regular(tmp_path / "file", at_most=10) == bytes(range(min(size, 11)))


@pytest.mark.parametrize("size", [0, 3, 10])
def test_a_file_that_grows_meanwhile_is_read_whole(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(20)))
    monkeypatch.setattr(files, "size_of", lambda file: size)
    assert read_regular(tmp_path / "file", at_most=50) == bytes(range(20))
    assert read_regular(tmp_path / "file", at_most=10) == bytes(range(11))


@pytest.mark.skipif(sys.platform != "linux", reason="no files without a size here")
def test_a_file_without_a_size_is_read_whole() -> None:
    assert read_regular(Path("/proc/self/status"), at_most=1_000_000).startswith(b"Name:")
    assert b"VmRSS" in read_regular(Path("/proc/self/status"), at_most=1_000_000)


def test_a_writer_amid_another_one_s_work_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second replaces the file between the writing and the rename of the first."""
    path, write_file = tmp_path / "a.json", files.write_file

    def write_and_be_overtaken(temporary: Path, content: bytes | str) -> None:
        write_file(temporary, content)
        monkeypatch.setattr(files, "write_file", write_file)
        replace_file(path, "second")
        assert path.read_text() == "second"

    monkeypatch.setattr(files, "write_file", write_and_be_overtaken)
    replace_file(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "old")
    write_bytes = Path.write_bytes

    def fill_the_disk(file: Path, content: bytes) -> int:
        write_bytes(file, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(DiskFullError):
        replace_file(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("\N{GRINNING FACE}" * 62 + ".json")  # 253 bytes
    replace_file(path, "content")
    assert path.read_text() == "content"
