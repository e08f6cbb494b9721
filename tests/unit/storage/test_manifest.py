"""Files of a saved network: nothing is read that a manifest does not vouch for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.storage.manifest import LARGEST_MANIFEST, LocalFolder, parse_json_object, read_manifest

CONTENT = {"arch.json": b"{}", "weights.safetensors": b"weights"}


def entry(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    for name, data in CONTENT.items():
        (place / name).write_bytes(data)
    listed(place, {name: entry(data) for name, data in CONTENT.items()})
    return place


def listed(place: Path, entries: object) -> None:
    (place / "manifest.json").write_text(json.dumps(entries))


def refused(place: Path, match: str, sha256: str | None = None) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        read_manifest(LocalFolder(place), manifest_sha256=sha256)
    assert "\n" not in str(caught.value)


def test_whole_files_are_read(folder: Path) -> None:
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    for known in (sha256, None):
        manifest = read_manifest(LocalFolder(folder), manifest_sha256=known)
        assert manifest.sha256 == sha256
        assert {name: manifest.read(name, at_most=7) for name in manifest.entries} == CONTENT


def test_another_hash_is_refused_although_the_files_agree(folder: Path) -> None:
    refused(folder, "not the manifest that was written", "0" * 64)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "sub/arch.json", "..", "", "model.pth", "weights.safetensors\0", "manifest.json"],
)
def test_a_name_that_is_no_saved_networks_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "x").write_bytes(b"weights")
    listed(folder, {"arch.json": entry(b"{}"), name: entry(b"weights")})
    refused(folder, "names")


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    (folder / "model.pth").write_bytes(b"")
    refused(folder, "holds 'model.pth'")


def test_a_missing_file_and_a_missing_entry_are_refused(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    refused(folder, r"weights\.safetensors is not there")
    listed(folder, {"weights.safetensors": entry(b"weights")})
    refused(folder, "does not name arch.json")


def as_link(path: Path) -> None:
    target = path.rename(path.parent.parent / path.name)
    path.symlink_to(target)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "arch.json", "manifest.json"])
@pytest.mark.parametrize("change", [as_link, as_folder, as_pipe])
def test_what_is_no_plain_file_is_refused(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    change(folder / name)
    refused(folder, f"{name} is no plain file")


def test_a_file_that_turns_into_a_link_is_not_followed(folder: Path) -> None:
    manifest = read_manifest(LocalFolder(folder), manifest_sha256=None)
    as_link(folder / "weights.safetensors")
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        manifest.read("weights.safetensors", at_most=7)


def test_a_folder_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    refused(tmp_path / "link", "is a link")


def test_a_file_that_grows_after_it_was_listed_is_refused(folder: Path) -> None:
    manifest = read_manifest(LocalFolder(folder), manifest_sha256=None)
    with (folder / "weights.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(StoreError, match="not as it was written"):
        manifest.read("weights.safetensors", at_most=7)


def test_a_file_beyond_its_limit_is_not_opened(folder: Path) -> None:
    manifest = read_manifest(LocalFolder(folder), manifest_sha256=None)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(StoreError, match="has 7 bytes; at most 6 are allowed"):
        manifest.read("weights.safetensors", at_most=6)


@pytest.mark.parametrize(
    "bad",
    [
        {"bytes": "7", "sha256": "0"},
        {"bytes": -1, "sha256": "0"},
        {"bytes": True, "sha256": "0"},
        {"bytes": 7.0, "sha256": "0"},
        {"bytes": 7, "sha256": None},
        {"bytes": 7},
        {"bytes": 7, "sha256": "0", "mode": 1},
        [7, "0"],
        None,
    ],
)
def test_an_entry_of_another_form_is_refused(folder: Path, bad: object) -> None:
    listed(folder, {"arch.json": entry(b"{}"), "weights.safetensors": bad})
    refused(folder, "weights.safetensors has")


def test_a_manifest_beyond_all_measure_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * (LARGEST_MANIFEST + 1))
    refused(folder, f"larger than {LARGEST_MANIFEST}")


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[]", b"3", b"{", b'{"a": 1, "a": 2}', b"[" * 200_000, b'{"a":' * 100_000]
)
def test_json_that_is_not_written_here_is_one_line(text: bytes) -> None:
    with pytest.raises(StoreError) as caught:
        parse_json_object(text, "file")
    assert "\n" not in str(caught.value)
