"""Regular files are read at their size, and whole where they have none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.system import files
from orchestrator.system.files import read_regular


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
