"""Exports compute what the network computes, or are not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import Store
from safetensors.torch import load_file
from torch import Tensor, nn

import models
import orchestrator
from orchestrator.data.loading import Scaling, load_dataset, scaling
from orchestrator.errors import DataError, ExportError, StoreError, UsageError
from orchestrator.model_io import formats
from orchestrator.model_io.comparison import compare_outputs
from orchestrator.model_io.description import normalisation, usage_text
from orchestrator.model_io.export import export
from orchestrator.model_io.formats import load_safetensors
from orchestrator.storage.model_files import ModelSpec
from pruning.cutting.layer_widths import resize


def by_torch(path: Path, images: Tensor) -> Tensor:
    logits: Tensor = torch.export.load(path).module()(images)
    return logits


def by_onnxruntime(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def by_hand(path: Path, images: Tensor) -> Tensor:
    """As the docs say: three lines with public functions."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        arch = json.loads(file.metadata()["arch"])
    net = models.build(arch["model"], input_shape=tuple(arch["input_shape"]), num_classes=arch["num_classes"])
    net = resize(net, arch["cut_widths"]).eval()
    net.load_state_dict(load_file(path))
    logits: Tensor = net(images)
    return logits


SAFETENSORS = formats.FORMATS["safetensors"]
READERS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "pt2": by_torch,
    "onnx": by_onnxruntime,
    "safetensors": by_hand,
}
FORMATS = ["safetensors", "pt2", pytest.param("onnx", marks=pytest.mark.slow)]
SMALL = ("slp", "mlp", "cnn")
LONG = [pytest.mark.slow, pytest.mark.long]
CASES = [
    *((family, format) for family in SMALL for format in ("safetensors", "pt2")),
    *(pytest.param(family, "onnx", marks=pytest.mark.slow) for family in SMALL),
    *(pytest.param("densenet121", format, marks=LONG) for format in ("safetensors", "pt2", "onnx")),
]


def test_every_form_has_a_reader_of_its_own() -> None:
    converted = {"openvino", "tflite"}  # test_converters.py
    assert READERS.keys() | converted == formats.FORMATS.keys()


@pytest.mark.parametrize(("family", "format"), CASES)
def test_an_export_computes_what_the_network_computes(
    store: Store, tmp_path: Path, family: str, format: str
) -> None:
    run_id = store.trial(family)
    done = export(run_id, format=format, out=tmp_path, uri=store.uri)
    net, record = orchestrator.load(run_id, uri=store.uri)
    for size in (1, 2, 5, 300):  # 5 and 300 are not among those that export compares
        images = torch.rand(size, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(READERS[format](done.path, images), net(images), atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [done.path.name, f"{done.path.name}.json"]
    about = json.loads((tmp_path / f"{done.path.name}.json").read_text())
    content = done.path.read_bytes()
    assert about["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["bytes"] == len(content)
    assert about["network"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert about["network"]["macs"] == record.metrics["final/macs_physical"]
    assert about["accuracy"] == record.metrics["final/accuracy"]
    assert about["run_id"] == run_id
    assert about["input"]["shape"] == ["batch", 1, 8, 8]
    assert about["classes"] == (2 if family == "densenet121" else 10)  # see recorded.Store.dense


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_of_this_machine_is_in_a_file(store: Store, tmp_path: Path, format: str) -> None:
    done = export(store.trial("mlp"), format=format, out=tmp_path, uri=store.uri)
    root = str(Path(__file__).parents[3]).encode()
    for path in tmp_path.iterdir():
        assert root not in path.read_bytes()
    assert done.path.stat().st_mode & 0o444 == 0o444  # for others to read, as any new file


def test_the_whole_network_keeps_its_dead_channels(store: Store, tmp_path: Path) -> None:
    run_id = store.trial("cnn")
    cut = export(run_id, format="safetensors", out=tmp_path / "cut", uri=store.uri)
    whole = export(run_id, format="safetensors", out=tmp_path / "whole", whole=True, uri=store.uri)
    _, record = orchestrator.load(run_id, uri=store.uri)
    assert whole.metadata["network"]["parameters"] == record.metrics["final/parameters_dense"]
    assert cut.metadata["network"]["parameters"] == record.metrics["final/parameters_physical"]
    images = torch.rand(4, 1, 8, 8)
    assert torch.allclose(load_safetensors(cut.path)(images), load_safetensors(whole.path)(images), atol=1e-4)


@pytest.mark.parametrize("recover", ["none", "finetune(epochs=1)"])
def test_dense_runs_masks_alone_and_folders_are_exported(store: Store, tmp_path: Path, recover: str) -> None:
    run_id = store.trial("mlp", "weight", recover)
    assert (store.model(run_id) / "weights.safetensors").exists() is (recover != "none")
    for number, source in enumerate((store.dense("mlp"), run_id)):
        export(source, format="safetensors", out=tmp_path / f"{number}", uri=store.uri)
    if recover != "none":
        done = export(str(store.model(run_id)), format="safetensors", out=tmp_path / "folder", uri=store.uri)
        assert done.metadata["input"]["normalisation"] is None
        assert "not known" in usage_text(done.metadata)


def test_a_stopped_trial_is_exported_and_says_so(store: Store, tmp_path: Path) -> None:
    done = export(store.stopped("mlp"), format="safetensors", out=tmp_path, uri=store.uri)
    assert "its trial was stopped early: it has seen enough" in done.lines()
    assert done.metadata["accuracy"] is not None


def spoiled(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    """A form that writes another network."""
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    SAFETENSORS.write(net, plan, path)


def frozen(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    """A program for a batch of two alone."""
    torch.export.save(torch.export.export(net, (torch.zeros(2, *plan.input_shape),)), path)


def not_finite(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    twin = rebuilt_twin(net, plan)
    with torch.no_grad():
        next(twin.parameters()).fill_(float("nan"))
    SAFETENSORS.write(twin, plan, path)


def rebuilt_twin(net: nn.Module, plan: ModelSpec) -> nn.Module:
    twin = models.build(plan.model, input_shape=plan.input_shape, num_classes=plan.num_classes)
    twin.load_state_dict(net.state_dict())
    return twin


@pytest.mark.parametrize("write", [spoiled, not_finite])
def test_a_file_that_computes_something_else_is_not_left_behind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    wrong = replace(
        formats.FORMATS["safetensors"],
        write=lambda net, plan, path: write(rebuilt_twin(net, plan), plan, path),
    )
    monkeypatch.setitem(formats.FORMATS, "safetensors", wrong)
    with pytest.raises(ExportError, match=r"off by .* is allowed|not finite"):
        export(store.dense("mlp"), format="safetensors", out=tmp_path, uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_size_is_noticed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.FORMATS, "pt2", replace(formats.FORMATS["pt2"], write=frozen))
    with pytest.raises((AssertionError, RuntimeError)):  # of torch: a program refuses other sizes by itself
        export(store.dense("slp"), format="pt2", out=tmp_path, uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_measured_and_allowed_in_proportion() -> None:
    net = nn.Flatten()
    found = compare_outputs(net, lambda images: images.flatten(1) + 0.25, (1, 8, 8), tolerance=0.2)
    assert found.largest == pytest.approx(0.25, abs=1e-6)
    assert found.output > 2  # 640 normal numbers
    assert found.allowed == pytest.approx(0.2 * found.output)
    with pytest.raises(ExportError, match=r"off by 0\.25"):
        compare_outputs(net, lambda images: images.flatten(1) + 0.25, (1, 8, 8), tolerance=0.01)
    with pytest.raises(ExportError, match=r"batch 1: it gives \(1, 1, 8, 8\)"):
        compare_outputs(net, lambda images: images, (1, 8, 8), tolerance=0.2)


def test_what_is_there_already_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    run_id, path = store.dense("slp"), tmp_path / "net.st"
    for name in ("net.st", "net.st.json"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UsageError, match=f"{name} is there already"):
            export(run_id, format="safetensors", out=path, uri=store.uri)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is there already"):
        export(run_id, format="safetensors", out=path, uri=store.uri)


def test_a_place_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    run_id = store.dense("slp")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"{tmp_path}/file is no folder"):
        export(run_id, format="safetensors", out=tmp_path / "file" / "net.st", uri=store.uri)
    with pytest.raises(ExportError, match=r"cannot be written: .*; --out names another place") as caught:
        export(run_id, format="safetensors", out=Path("/proc/self/net.st"), uri=store.uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "onx"}, "unknown format 'onx'; did you mean onnx"),
        ({"format": ""}, "known: onnx, openvino, pt2, safetensors, tflite"),
        ({"format": "onnx", "quantization": "int4"}, "unknown quantization 'int4'; did you mean int8"),
        ({"format": "pt2", "quantization": "int8"}, "goes with --format onnx"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, str], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        export("nothing", out=tmp_path, uri="sqlite:////nowhere/x.db", **options)  # type: ignore[arg-type]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ExportError, match=r"needs onnxscript, not installed.*pruning-orchestrator\[export\]"):
        export("nothing", format="onnx", out=tmp_path, uri="sqlite:////nowhere/x.db")


def test_a_rebuilt_file_is_held_against_its_own_architecture(store: Store, tmp_path: Path) -> None:
    path = export(store.dense("mlp"), format="safetensors", out=tmp_path / "net", uri=store.uri).path
    data = path.read_bytes()
    path.write_bytes(data.replace(b"24, 16", b"24, 15"))
    with pytest.raises(StoreError, match=r"output|widths"):
        load_safetensors(path)
    path.write_bytes(data[:-1])
    with pytest.raises(StoreError, match="no safetensors file"):
        load_safetensors(path)
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(StoreError, match="no export of a network"):
        load_safetensors(path)
    with pytest.raises(StoreError, match="cannot be read"):
        load_safetensors(tmp_path / "none")


def test_digits_are_divided_by_16_and_nothing_else() -> None:
    assert scaling("digits") == Scaling(16, (0.0,), (1.0,))
    found = normalisation("digits(samples_per_class=4)")
    assert found is not None
    assert (found["divide_by"], found["mean"], found["deviation"]) == (16, [0.0], [1.0])
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().images).float() / found["divide_by"]
    fed = {tuple(image.flatten().tolist()) for image in load_dataset("digits").test.images}
    assert fed <= {tuple(image.flatten().tolist()) for image in pixels}


def test_what_to_feed_is_said_in_a_line() -> None:
    about = {"input": {"shape": ["batch", 3, 32, 32], "normalisation": None}}
    assert usage_text(about).startswith("input: float32, batch x 3 x 32 x 32; ")
    about["input"]["normalisation"] = {"divide_by": 255, "mean": [0.5, 0.25], "deviation": [0.2, 0.1]}  # type: ignore[call-overload]
    assert usage_text(about).endswith("pixels divided by 255, less 0.5000, 0.2500, by 0.2000, 0.1000")


def test_data_that_are_elsewhere_leave_half_of_it_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError):
        scaling("cifar10")
    assert normalisation("cifar10") == {"divide_by": 255, "mean": None, "deviation": None}
