"""Networks as files: exact round trips, and nothing read that is not as it was written."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from orchestrator.errors import StoreError
from orchestrator.storage import model_files
from orchestrator.training.checkpoint_packing import snapshot
from orchestrator.trial.context import NetworkState
from pruning.masking import apply_masks

ARCH = {"model": "cnn(widths=[4])", "input_shape": [1, 8, 8], "num_classes": 10}


def state(density: float | None = None, seed: int = 0) -> NetworkState:
    """A network of random weights; with a density, every parameter is masked to it."""
    torch.manual_seed(seed)
    net = models.build("cnn(widths=[4])", input_shape=(1, 8, 8), num_classes=10)
    masks = {}
    if density is not None:
        masks = {name: torch.rand(p.shape) < density for name, p in net.named_parameters()}
        apply_masks(net, masks)
    spent = {"epochs": 3, "train_seconds": 1.5, "train_flops": 10**15, "micro_batch": 64}
    return NetworkState(snapshot(net), masks, train_flops_effective=10**14, **spent)


def written(folder: Path, of: NetworkState, parent: str | None = None) -> str:
    folder.mkdir(exist_ok=True)
    return model_files.save_model(folder, of, arch=ARCH, parent=parent)


def check_same(a: NetworkState, b: NetworkState) -> None:
    for mine, yours in ((a.weights, b.weights), (a.masks, b.masks)):
        assert mine.keys() == yours.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == yours[name].dtype
            assert torch.equal(tensor, yours[name]), name
    for name in ("epochs", "train_seconds", "train_flops", "train_flops_effective", "micro_batch"):
        assert getattr(a, name) == getattr(b, name)


def test_a_dense_network_comes_back(tmp_path: Path) -> None:
    sha = written(tmp_path / "model", state())
    saved = model_files.load_model(tmp_path / "model", manifest_sha256=sha)
    check_same(state(), saved.state())
    assert {name: saved.arch[name] for name in ARCH} == ARCH
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "arch.json",
        "weights.safetensors",
        "manifest.json",
    }


@given(density=st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]), seed=st.integers(0, 1000))
def test_a_masked_network_comes_back(density: float, seed: int) -> None:
    masked = state(density, seed)
    with TemporaryDirectory() as folder:
        sha = written(Path(folder) / "model", masked)
        check_same(masked, model_files.load_model(Path(folder) / "model", manifest_sha256=sha).state())


def test_masked_entries_and_bits_take_no_room(tmp_path: Path) -> None:
    written(tmp_path / "dense", state())
    written(tmp_path / "sparse", state(0.1))

    def content(path: Path) -> int:
        read = path.read_bytes()
        return len(read) - 8 - int.from_bytes(read[:8], "little")

    masked = state(0.1)
    living = sum(int(mask.sum()) for mask in masked.masks.values())
    unmasked = sum(
        t.numel() * t.element_size() for name, t in masked.weights.items() if name not in masked.masks
    )
    assert content(tmp_path / "sparse" / "weights.safetensors") == 4 * living + unmasked
    bits = sum((mask.numel() + 7) // 8 for mask in masked.masks.values())
    assert content(tmp_path / "sparse" / "masks.safetensors") == bits


def test_masks_alone_name_their_parent(tmp_path: Path) -> None:
    masked = state(0.4)
    sha = written(tmp_path / "model", masked, parent="a" * 64)
    assert not (tmp_path / "model" / "weights.safetensors").exists()
    saved = model_files.load_model(tmp_path / "model", manifest_sha256=sha)
    assert saved.weights is None
    assert all(torch.equal(saved.masks[name], mask) for name, mask in masked.masks.items())
    with pytest.raises(StoreError, match="masks only.*" + "a" * 64):
        saved.state()


FILES = ["arch.json", "weights.safetensors", "masks.safetensors", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "append", "empty", "remove"])
def test_a_file_that_is_not_as_written_is_refused_by_name(tmp_path: Path, name: str, harm: str) -> None:
    folder = tmp_path / "model"
    sha = written(folder, state(0.4))
    path = folder / name
    content = path.read_bytes()
    last = bytes([content[-1] ^ 1])
    changed = {"flip": content[:-1] + last, "truncate": content[:-1], "append": content + b" ", "empty": b""}
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(changed[harm])
    with pytest.raises(StoreError, match=name):
        model_files.load_model(folder, manifest_sha256=sha)


def test_another_models_manifest_is_refused(tmp_path: Path) -> None:
    sha, other = written(tmp_path / "a", state()), written(tmp_path / "b", state(seed=1))
    assert sha != other
    with pytest.raises(StoreError, match=r"manifest\.json"):
        model_files.load_model(tmp_path / "a", manifest_sha256=other)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not whole"):
        model_files.load_model(tmp_path / "nowhere", manifest_sha256="0" * 64)


def rewritten(folder: Path, name: str, content: bytes) -> str:
    """A forged folder: a manifest that fits the changed file, and its own hash."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("length", [10_000_001, 2**40, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_parsed(tmp_path: Path, length: int) -> None:
    written(tmp_path / "model", state())
    forged = rewritten(tmp_path / "model", "weights.safetensors", struct.pack("<Q", length) + b"{}")
    with pytest.raises(StoreError, match="header"):
        model_files.load_model(tmp_path / "model", manifest_sha256=forged)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("pickle was used")

    for module, names in (
        (pickle, ("load", "loads", "dump", "dumps", "Unpickler")),
        (torch, ("load", "save")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    sha = written(tmp_path / "model", state(0.4))
    check_same(state(0.4), model_files.load_model(tmp_path / "model", manifest_sha256=sha).state())
