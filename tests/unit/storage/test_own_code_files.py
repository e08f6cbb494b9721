"""A saved network of one's own file: its code beside it, and what a store cannot make this machine run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import models
from models.own_builders import find_own_builder
from orchestrator.errors import StoreError
from orchestrator.storage.manifest import CODE, LocalFolder
from orchestrator.storage.model_files import load_model_from, save_model
from orchestrator.trial.context import NetworkState
from pruning.user_code import own_code, stored_code

NET = """\
from pathlib import Path

from torch import nn

Path("ran").touch()


def small(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_code, "_CODES", {})
    (tmp_path / "net.py").write_text(f"# {tmp_path}\n{NET}")  # a code that no test before has imported
    return tmp_path


def saved(folder: Path, model: str, code: str) -> tuple[LocalFolder, str]:
    """A saved network as a run has it, and its manifest's hash."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    arch = {"model": model, "input_shape": [1, 8, 8], "num_classes": 10, "cut_widths": None}
    (folder / "saved").mkdir()
    return LocalFolder(folder / "saved"), save_model(
        folder / "saved", NetworkState(net.state_dict()), arch=arch, code=code
    )


@pytest.fixture
def pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The name and kept code of a network that this process then knows nothing of, nor has it run."""
    name = models.resolve("net.py:small")[0]
    code = stored_code.dump(stored_code.codes_in(name))
    monkeypatch.setattr(own_code, "_CODES", {})
    find_own_builder.cache_clear()
    (folder / "ran").unlink()
    return name, code


def test_a_network_whose_file_is_at_hand_is_loaded(folder: Path, pinned: tuple[str, str]) -> None:
    files, sha256 = saved(folder, *pinned)
    loaded = load_model_from(files, manifest_sha256=sha256)
    assert loaded.weights is not None
    assert loaded.spec.build_network(loaded.weights)[1].out_features == 10
    assert loaded.code == pinned[1]


def test_nothing_of_a_kept_copy_runs_without_trust(folder: Path, pinned: tuple[str, str]) -> None:
    files, sha256 = saved(folder, *pinned)
    (folder / "net.py").unlink()
    with pytest.raises(StoreError, match=r"saved: net\.py:small needs its file .* --trust-code"):
        load_model_from(files, manifest_sha256=sha256)
    assert not (folder / "ran").exists()
    with stored_code.trusting(True):
        load_model_from(files, manifest_sha256=sha256)
    assert (folder / "ran").exists()


@pytest.mark.parametrize("code", ["", "{", '{"format": 1, "code": {}}'])
def test_a_store_cannot_name_a_file_without_its_digest(folder: Path, code: str) -> None:
    files, sha256 = saved(folder, "net.py:small", code)
    with (
        stored_code.trusting(True),
        pytest.raises(StoreError, match="without the digest of its file, and is not read"),
    ):
        load_model_from(files, manifest_sha256=sha256)
    assert not (folder / "ran").exists()


def test_a_changed_copy_is_found_by_the_manifest_and_by_the_digest(
    folder: Path, pinned: tuple[str, str]
) -> None:
    files, sha256 = saved(folder, *pinned)
    (folder / "net.py").unlink()
    path = folder / "saved" / CODE
    text = path.read_text()
    path.write_text(text.replace("ran", "bad"))
    with stored_code.trusting(True), pytest.raises(StoreError, match=r"code\.json is not as it was written"):
        load_model_from(files, manifest_sha256=sha256)
    manifest = json.loads((folder / "saved" / "manifest.json").read_text())
    assert CODE in manifest
    path.write_bytes(b"\xff" * len(text))
    with pytest.raises(StoreError, match="code"):
        load_model_from(files, manifest_sha256=sha256)
    assert not (folder / "bad").exists()
