"""A file is replaced whole, by one of several processes at once, and nothing else is left."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.errors import DiskFullError
from orchestrator.system import files
from orchestrator.system.files import replace_file


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
