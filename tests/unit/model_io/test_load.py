"""Recorded networks come back as they were, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from recorded import Store
from torch import nn

import models
import orchestrator
from orchestrator.errors import DeviceError, OrchestrateError, StoreError, UsageError
from orchestrator.model_io import load
from orchestrator.model_io.load import recorded_data
from orchestrator.model_io.model_lookup import ModelSource, resolve_source
from orchestrator.storage.manifest import LocalFolder
from orchestrator.storage.model_files import save_model
from orchestrator.training.evaluation import evaluate
from orchestrator.trial.context import NetworkState
from pruning import apply_masks, prune, shrink
from pruning.channels import trace
from pruning.cutting.layer_widths import layer_widths
from pruning.masking import Masks
from pruning.user_code import own_code, stored_code

FAMILIES = ["slp", "mlp", "cnn", pytest.param("densenet121", marks=pytest.mark.slow)]
# Of densenet121 the rest is long: what is stored is the same as of a cnn, and each takes half a minute.
DENSENET = {("weight", "none")}
CASES = [
    pytest.param(
        *case,
        marks=[]
        if case[0] != "densenet121"
        else [pytest.mark.slow, *([] if case[1:] in DENSENET else [pytest.mark.long])],
    )
    for case in product(
        ("slp", "mlp", "cnn", "densenet121"),
        ("weight", "unit", "channel"),
        ("none", "finetune(epochs=1)"),
    )
]


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    """A folder with a network of its own."""
    return shutil.copytree(store.model(store.trial("cnn")), tmp_path / "copy")


def manifest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def forge(folder: Path, name: str, content: bytes) -> str:
    """Change a file, and the manifest with it; its hash."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest_of(folder)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        orchestrator.load(folder, manifest_sha256=manifest_of(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "granularity", "recover"), CASES)
def test_a_loaded_network_has_the_recorded_accuracy(
    store: Store, family: str, granularity: str, recover: str
) -> None:
    run_id = store.trial(family, granularity, recover)
    net, record = orchestrator.load(f"runs:/{run_id}", uri=store.uri, strict=True)
    whole, _ = orchestrator.load(run_id, cut=False, uri=store.uri, strict=True)
    images = recorded_data(resolve_source(run_id, uri=store.uri), "cpu")
    again = evaluate(net, images.test, numerics=store.numerics)
    assert again.accuracy == record.metrics["final/accuracy"] == record.accuracy
    assert sum(p.numel() for p in net.parameters()) == record.metrics["final/parameters_physical"]
    assert sum(p.numel() for p in whole.parameters()) == record.metrics["final/parameters_dense"]
    assert torch.allclose(whole(images.test.images[:32]), net(images.test.images[:32]), atol=1e-4)
    assert record.verified
    assert not net.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_network_comes_back(store: Store, family: str) -> None:
    _, record = orchestrator.load(store.dense(family), uri=store.uri, strict=True)
    assert record.masks == {}


def test_a_stopped_trial_comes_back_as_it_was_after_its_last_round(store: Store) -> None:
    run_id = store.stopped("cnn")
    assert "key" not in store.row(run_id).tags
    net, record = orchestrator.load(run_id, uri=store.uri, strict=True)
    assert record.accuracy == store.tracker.metric_history(run_id, "round/accuracy")[1]
    assert "final/accuracy" not in record.metrics
    dense, _ = orchestrator.load(store.dense("cnn"), uri=store.uri)
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in dense.parameters())


def test_strict_refuses_another_accuracy_and_other_data(store: Store) -> None:
    run_id = store.trial("mlp", "weight", "finetune(epochs=3)")
    store.tracker.client.log_metric(run_id, "final/accuracy", 0.123)
    with pytest.raises(StoreError, match=r"accuracy of .* where 0\.123 is recorded"):
        orchestrator.load(run_id, uri=store.uri, strict=True)
    orchestrator.load(run_id, uri=store.uri)


def test_a_folder_is_held_against_the_hash_that_is_given(store: Store, copy: Path) -> None:
    net, record = orchestrator.load(copy, manifest_sha256=manifest_of(copy))
    known, _ = orchestrator.load(store.trial("cnn"), uri=store.uri)
    assert record.verified
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), known.parameters(), strict=True))
    with pytest.raises(StoreError, match="not the manifest"):
        orchestrator.load(copy, manifest_sha256="0" * 64)


def test_a_folder_without_a_hash_is_only_consistent_and_says_so(copy: Path) -> None:
    weights = (copy / "weights.safetensors").read_bytes()
    forge(copy, "weights.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.warns(UserWarning, match="compared with each other only"):
        _, record = orchestrator.load(str(copy))
    assert not record.verified
    with pytest.raises(StoreError, match="no recorded accuracy"):
        orchestrator.load(copy, strict=True, manifest_sha256=manifest_of(copy))


def test_a_folder_of_masks_alone_wants_its_store(store: Store) -> None:
    folder = store.model(store.trial("mlp", "weight", "none"))
    assert not (folder / "weights.safetensors").exists()
    with pytest.raises(StoreError, match="masks only"):
        orchestrator.load(folder, manifest_sha256=manifest_of(folder))


def test_masks_of_another_network_than_their_parents_are_refused(store: Store, tmp_path: Path) -> None:
    trial, other = store.trial("mlp", "weight", "none"), store.row(store.dense("slp")).tags["key"]
    folder = store.model(trial)
    kept = shutil.copytree(folder, tmp_path / "kept")
    arch = json.loads((folder / "arch.json").read_text())
    sha256 = forge(folder, "arch.json", json.dumps({**arch, "parent": other}).encode())
    was = store.row(trial).tags["manifest_sha256"]
    store.tracker.set_tag(trial, "manifest_sha256", sha256)
    with pytest.raises(StoreError, match="not the dense network of these masks"):
        orchestrator.load(trial, uri=store.uri)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    store.tracker.set_tag(trial, "manifest_sha256", was)


@pytest.mark.parametrize("name", ["arch.json", "weights.safetensors", "masks.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_changed_file_of_a_run_is_refused(store: Store, name: str, harm: str) -> None:
    run_id = store.trial("cnn", "weight")
    path = store.model(run_id) / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if harm == "flip" else b""))
    with pytest.raises(StoreError, match=name) as caught:
        orchestrator.load(run_id, uri=store.uri)
    path.write_bytes(content)
    assert "\n" not in str(caught.value)


def test_swapped_files_are_refused(copy: Path) -> None:
    weights, masks = copy / "weights.safetensors", copy / "masks.safetensors"
    first, second = weights.read_bytes(), masks.read_bytes()
    weights.write_bytes(second)
    masks.write_bytes(first)
    refused(copy, "not as it was written")
    forge(copy, weights.name, second)
    forge(copy, masks.name, first)
    refused(copy, r"masks\.safetensors holds '.*its names are not those of the network")


def test_a_forged_size_cannot_make_it_read_more_than_a_network_has(copy: Path) -> None:
    with (copy / "weights.safetensors").open("ab") as file:
        file.truncate(50_000_000)  # a hole: it takes no room on the disk
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["weights.safetensors"]["bytes"] = 50_000_000
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(copy, r"has 50000000 bytes; at most \d{7} are allowed")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cut_widths": {"output": [10, 3]}}, "other widths"),
        ({"mask_shapes": {}}, "do not go together"),
        ({"mask_shapes": {"other.weight": [1]}}, "no parameter of the network"),
        ({"parent": "a" * 64}, "either weights or a parent"),
        ({"model": "mlp(widths=[1000000, 1000000])"}, "the most"),
        ({"model": "cnn(widths=[8, 17])"}, "parameter of the network"),
        ({"num_classes": 11}, "parameter of the network|the network has"),
        ({"more": 1}, "more"),
    ],
)
def test_a_forged_architecture_is_refused(copy: Path, change: dict[str, object], match: str) -> None:
    arch = json.loads((copy / "arch.json").read_text())
    forge(copy, "arch.json", json.dumps({**arch, **change}).encode())
    refused(copy, match)


def test_a_failed_run_and_a_damaged_one_are_refused_with_their_reason(store: Store) -> None:
    client = store.tracker.client
    failed = store.tracker.start("trial", "t", tags={}).run_id
    client.set_tag(failed, "reason", "DivergedError: the loss is nan\nin epoch 3")
    client.set_terminated(failed, "FAILED")
    with pytest.raises(StoreError, match=r"is a trial, FAILED \(DivergedError: the loss is nan\)"):
        orchestrator.load(failed, uri=store.uri)
    damaged = store.trial("slp", "weight", "finetune(epochs=2)")
    store.tracker.set_tag(damaged, "invalid", "weights.safetensors is not as it was written")
    with pytest.raises(StoreError, match="was found to be damaged"):
        orchestrator.load(damaged, uri=store.uri)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nothing", "no run 'nothing'.*models:/name@alias"),
        ("runs:/nothing", "no run 'nothing'"),
        ("0" * 32, "no run '0"),
        ("models:/nothing/1", "no model is registered yet"),
    ],
)
def test_what_is_not_there_is_one_line(store: Store, source: str, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        orchestrator.load(source, uri=store.uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["models:/a", "models:/a/0", "models:/a/x", "models:/a@", "models:/../x/1", "models:a@b"]
)
def test_what_names_no_registered_model_is_refused(store: Store, source: str) -> None:
    with pytest.raises(UsageError, match=r"models:/name@alias or models:/name/3"):
        orchestrator.load(source, uri=store.uri)


def test_a_folder_that_is_no_network_and_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no arch\.json"):
        orchestrator.load(tmp_path)
    with pytest.raises(StoreError, match="there is no store"):
        orchestrator.load("0" * 32, uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "", "meta", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_first(device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        orchestrator.load("nothing", device=device)
    assert isinstance(caught.value, OrchestrateError)


@pytest.mark.gpu
def test_a_network_comes_back_on_a_gpu(store: Store) -> None:
    here, _ = orchestrator.load(store.trial("cnn"), uri=store.uri)
    there, _ = orchestrator.load(store.trial("cnn"), uri=store.uri, device="cuda")
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(there(images.cuda()).cpu(), here(images), atol=1e-3)


def test_a_network_whose_builder_has_changed_since_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"dense_code": "lab=aaa, torchvision==1.0"}
    origin = ModelSource("trial", LocalFolder(Path("/nowhere")), None, params=recorded)
    monkeypatch.setattr(load, "model_code", lambda model: {"lab": "aaa", "torchvision=": "1.0"})
    load._check_code(origin, "barnet")
    monkeypatch.setattr(load, "model_code", lambda model: {"lab": "bbb"})
    with pytest.raises(StoreError, match="the source of lab has changed since trial was recorded"):
        load._check_code(origin, "barnet")
    monkeypatch.setattr(load, "model_code", lambda model: {"lab": "aaa", "torchvision=": "2.0"})
    with pytest.warns(UserWarning, match=r"built by torchvision 1\.0, and 2\.0 is installed"):
        load._check_code(origin, "barnet")


ATTENTIVE = """\
from torch import nn


class Attentive(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.tokens = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.tokens(images.flatten(1, 2))
        return self.out((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))
"""


def test_widths_that_do_not_say_how_wide_heads_are_load_a_cut_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of earlier versions have them so; other widths stay refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_code, "_CODES", {})
    (tmp_path / "net.py").write_text(ATTENTIVE)
    name = models.resolve("net.py:Attentive")[0]
    net = models.build(name, input_shape=(1, 8, 8), num_classes=10).eval()
    images = torch.randn(2, 1, 8, 8)
    with pytest.warns(UserWarning, match="not pruned"):
        masks = prune(net, amount=0.5, criterion="l2", granularity="head", example_input=images)
    small = shrink(net, masks, images)
    widths = {key: width for key, width in layer_widths(small).items() if not key.endswith(":head_dim")}
    assert len(widths) == len(layer_widths(small)) - 1
    apply_masks(net, masks)
    arch: dict[str, object] = {"model": name, "input_shape": [1, 8, 8], "num_classes": 10}
    code = stored_code.dump(stored_code.codes_in(name))
    for folder, cut_widths in (("old", widths), ("other", {**widths, "attention:num_heads": [2]})):
        (tmp_path / folder).mkdir()
        state = NetworkState(net.state_dict(), masks)
        save_model(tmp_path / folder, state, arch={**arch, "cut_widths": cut_widths}, code=code)
    loaded, _ = orchestrator.load(tmp_path / "old", manifest_sha256=manifest_of(tmp_path / "old"))
    torch.testing.assert_close(loaded(images), small(images))
    refused(tmp_path / "other", "other widths")


GATED = """\
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.hidden, self.gate = nn.Linear(64, 8), nn.Parameter(torch.full((8,), 0.5))
        self.last, self.out = nn.Linear(8, 6), nn.Linear(6, num_classes)

    def forward(self, images):
        return self.out(self.last(self.hidden(images.flatten(1)).relu() * self.gate.clamp(0, 1)).relu())
"""


def save_channels(net: nn.Module, name: str, masks: Masks, folder: Path) -> nn.Module:
    """Save a network as a trial of channels does, by a trace of a fresh one; return what is left of it."""
    fresh = models.build(name, input_shape=(1, 8, 8), num_classes=10)
    images = torch.randn(2, 1, 8, 8)
    small = shrink(net, masks, images, groups=trace(fresh, images))
    apply_masks(net, masks)
    arch = {
        "model": name,
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "cut_widths": layer_widths(small),
    }
    folder.mkdir()
    code = stored_code.dump(stored_code.codes_in(name))
    save_model(folder, NetworkState(net.state_dict(), masks), arch=arch, code=code)
    return small


@pytest.mark.parametrize(("text", "amount"), [(ATTENTIVE, 1.0), (GATED, 0.5)])
@pytest.mark.filterwarnings("ignore:not pruned")
def test_a_network_is_cut_as_it_was_when_it_was_recorded(
    text: str, amount: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all channels of heads are pruned the heads stay; a trained parameter may hide what it acts on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_code, "_CODES", {})
    (tmp_path / "net.py").write_text(text)
    name = models.resolve(f"net.py:{'Gated' if 'Gated' in text else 'Attentive'}")[0]
    net = models.build(name, input_shape=(1, 8, 8), num_classes=10).eval()
    images = torch.randn(2, 1, 8, 8)
    masks = prune(
        net, amount=amount, criterion="l2", granularity="channel", scope="layer", example_input=images
    )
    if hasattr(net, "gate"):
        net.gate.data.fill_(2.0)
    small = save_channels(net, name, masks, tmp_path / "run")
    assert layer_widths(small) != layer_widths(net)
    loaded, _ = orchestrator.load(tmp_path / "run", manifest_sha256=manifest_of(tmp_path / "run"))
    assert layer_widths(loaded) == layer_widths(small)
    torch.testing.assert_close(loaded(images), net(images))
