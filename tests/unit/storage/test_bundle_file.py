"""Bundles: what is written is read, and nothing else is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import StoreError
from orchestrator.storage import bundle_file
from orchestrator.storage.bundle_file import ABOUT, dump_bundle, read_bundle

MEMBERS = {"space.yaml": b"version: 1\n", "plan.json": b"{}", "runs.json": b"{}", "environment.json": b"{}"}
ABOUT_SWEEP = {"space": "small", "sets": ["seed=0"]}


def written(folder: Path, data: bytes, name: str = "x.zip") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def with_member(name: str, content: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A bundle with one more member, whatever its name."""
    buffer = io.BytesIO(dump_bundle(ABOUT_SWEEP, MEMBERS))
    with zipfile.ZipFile(buffer, "a", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data = dump_bundle(ABOUT_SWEEP, MEMBERS)
    bundle = read_bundle(written(tmp_path, data))
    assert bundle.members == MEMBERS
    assert bundle.about["space"] == "small"
    assert bundle.text("space.yaml") == "version: 1\n"
    assert bundle.text("code.json") == ""
    assert data == dump_bundle(ABOUT_SWEEP, MEMBERS)


def test_only_names_of_a_bundle_are_written() -> None:
    with pytest.raises(ValueError, match=r"a bundle has no evil\.py"):
        dump_bundle({}, {**MEMBERS, "evil.py": b""})


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil", "evil.pkl", "code/evil.py", "..\\evil", "space.yaml/x", "plan.json"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_names_and_second_ones_are_refused_and_nothing_is_unpacked(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, with_member(name, b"x"))
    with pytest.raises(StoreError, match="beside, or twice, what a bundle has") as caught:
        read_bundle(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_that_grows_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    bomb = with_member("code.json", b" " * (bundle_file.LIMITS["code.json"] + 1))
    assert len(bomb) < 100_000
    with pytest.raises(StoreError, match=r"code\.json has more than 16,000,000 bytes, and is refused"):
        read_bundle(written(tmp_path, bomb))


def test_a_size_that_is_a_lie_is_found(tmp_path: Path) -> None:
    content = b" " * (bundle_file.LIMITS["code.json"] + 1)
    data = with_member("code.json", content)
    # The size, in the header of the member and in that of the directory.
    lie = data.replace(struct.pack("<L", len(content)), struct.pack("<L", 10))
    assert lie != data
    with pytest.raises(StoreError, match=r"cannot be read as a bundle|has more than"):
        read_bundle(written(tmp_path, lie))


def test_a_directory_of_any_length_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(1000):
            archive.writestr(str(number), b"")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(StoreError, match="no bundle of a sweep: 1000 files in it"):
        read_bundle(written(tmp_path, buffer.getvalue()))


def test_a_changed_member_is_found(tmp_path: Path) -> None:
    about = json.loads(zipfile.ZipFile(io.BytesIO(dump_bundle(ABOUT_SWEEP, MEMBERS))).read(ABOUT))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(ABOUT, json.dumps(about))
        for name, content in {**MEMBERS, "runs.json": b"{ }"}.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match=r"runs\.json is not as it was written: its SHA-256 differs"):
        read_bundle(written(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no zip, or is cut off"),
        (b"PK\x03\x04 and no more", "is no zip, or is cut off"),
        (dump_bundle(ABOUT_SWEEP, MEMBERS)[:-30], "is no zip, or is cut off"),
        (dump_bundle(ABOUT_SWEEP, {"space.yaml": b""}), "it has no plan.json"),
        (dump_bundle({**ABOUT_SWEEP, "format": 1}, MEMBERS)[:40] + b"\0" * 2000, "is no zip"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(StoreError, match=re.escape(said)) as caught:
        read_bundle(written(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.zip")
    for name in ("fifo.zip", "missing.zip", "."):
        with pytest.raises(StoreError, match="cannot be read as a bundle"):
            read_bundle(tmp_path / name)


def test_another_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_file, "FORMAT", 2)
    path = written(tmp_path, dump_bundle(ABOUT_SWEEP, MEMBERS))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="a bundle of the format 2, and this version reads 1"):
        read_bundle(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_change_of_bytes_is_a_traceback(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(dump_bundle(ABOUT_SWEEP, MEMBERS))
    for place, value in edits:
        data[place % len(data)] = value
    with contextlib.suppress(StoreError):
        # A byte may decide nothing, as one of a date.
        assert read_bundle(written(tmp_path, bytes(data))).members == MEMBERS
