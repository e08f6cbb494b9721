"""Int8: what is measured is the file that is written, and test images have no part in its making."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from recorded import Store
from test_export import by_onnxruntime

from orchestrator.data.loading import Dataset, Split, load_dataset
from orchestrator.errors import ExportError, UsageError
from orchestrator.model_io import comparison, quantization
from orchestrator.model_io.export import export
from orchestrator.model_io.interface import BARE
from orchestrator.model_io.quantization import quantize
from orchestrator.system.machine import MachineLoad
from orchestrator.system.timing import Spread, Timing

pytestmark = pytest.mark.slow  # times four files, and exports each first


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SECONDS", 0.05)


@pytest.mark.parametrize(
    ("family", "how"), [("cnn", "static"), ("mlp", "as they come"), ("slp", "as they come")]
)
def test_int8_is_measured_as_it_is_written(store: Store, tmp_path: Path, family: str, how: str) -> None:
    run_id, digits = store.trial(family), load_dataset("digits")
    done = export(run_id, format="onnx", out=tmp_path, quantization="int8", uri=store.uri)
    row = store.row(run_id)
    assert done.path.name.endswith("-int8.onnx")
    assert done.reduced is not None
    assert how in done.reduced.method == row.tags["int8"]

    logits = by_onnxruntime(done.path, digits.test.images)
    assert row.metrics["int8/accuracy"] == int((logits.argmax(1) == digits.test.labels).sum()) / 360
    assert row.metrics["int8/loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, digits.test.labels)), abs=1e-4
    )
    assert row.metrics["int8/bytes"] == done.path.stat().st_size
    assert row.metrics["int8/fp32_accuracy"] == row.metrics["final/accuracy"]
    timed = [f"int8/{kind}latency_ms_p50{batch}" for kind in ("", "fp32_") for batch in ("", "_batch256")]
    assert all(row.metrics[name] > 0 for name in timed)

    about = json.loads(done.path.with_name(f"{done.path.name}.json").read_text())
    assert about["accuracy"] == row.metrics["int8/accuracy"]
    assert not any("latency" in name for name in about["int8"])
    kinds = {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert sorted(path.name for path in tmp_path.iterdir()) == [done.path.name, f"{done.path.name}.json"]


def exported(store: Store, folder: Path, family: str) -> Path:
    return export(store.dense(family), format="onnx", out=folder / "fp32.onnx", uri=store.uri).path


def with_images(split: Split, images: torch.Tensor) -> Split:
    return replace(split, images=images)


def test_test_and_validation_images_have_no_part_in_it(store: Store, tmp_path: Path) -> None:
    source, digits = exported(store, tmp_path, "cnn"), load_dataset("digits")
    quantize(source, tmp_path / "a.onnx", digits)
    other = replace(
        digits,
        test=with_images(digits.test, digits.test.images * 50),
        validation=with_images(digits.validation, torch.zeros_like(digits.validation.images)),
    )
    quantize(source, tmp_path / "b.onnx", other)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_training_images_decide_the_ranges(store: Store, tmp_path: Path) -> None:
    source, digits = exported(store, tmp_path, "cnn"), load_dataset("digits")
    quantize(source, tmp_path / "a.onnx", digits)
    brighter: Dataset = replace(digits, train=with_images(digits.train, digits.train.images * 1.5))
    quantize(source, tmp_path / "b.onnx", brighter)
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "b.onnx").read_bytes()


def test_too_great_a_loss_leaves_no_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "LARGEST_DROP", -1.0)
    monkeypatch.setattr(quantization, "FEWEST_IMAGES", -1000)
    with pytest.raises(ExportError, match="of validation accuracy"):
        export(store.dense("cnn"), format="onnx", out=tmp_path, quantization="int8", uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_names_no_data(store: Store, tmp_path: Path) -> None:
    folder = str(store.model(store.dense("cnn")))
    with pytest.raises(UsageError, match="names no data set"):
        export(folder, format="onnx", out=tmp_path, quantization="int8", uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def rescaled(source: Path, target: Path) -> None:
    """The same function in float, in which a channel between two layers is a thousand times as large.

    A rectifier and a maximum are homogeneous, so that the next layer can take it back.
    """
    model = onnx.load(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    first, second = [node for node in model.graph.node if node.op_type == "Conv"]
    for names, factor, axis in ((first.input[1:], 1000.0, 0), (second.input[1:2], 1e-3, 1)):
        for name in names:
            values = onnx.numpy_helper.to_array(tensors[name]).copy()
            values[(slice(None),) * axis + (0,)] *= factor
            tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, target)


def test_layers_that_cost_accuracy_stay_float(store: Store, tmp_path: Path) -> None:
    source, digits = exported(store, tmp_path, "cnn"), load_dataset("digits")
    wide, images = tmp_path / "wide.onnx", digits.test.images[:]
    rescaled(source, wide)
    assert torch.allclose(by_onnxruntime(wide, images), by_onnxruntime(source, images), atol=1e-4)

    def accuracy(path: Path) -> float:
        hits = by_onnxruntime(path, digits.validation.images[:]).argmax(1) == digits.validation.labels
        return float(hits.double().mean())

    everything = tmp_path / "everything.onnx"
    quantization._Quantizer(wide, digits.train.images[:256], BARE).write(everything)
    assert accuracy(everything) < accuracy(wide) - 0.05

    done = quantize(wide, tmp_path / "int8.onnx", digits)
    assert accuracy(tmp_path / "int8.onnx") >= accuracy(wide) - 1.5 / 180
    assert 0 < len(done.float_layers) < done.layers == 3
    assert set(done.float_layers) <= {"blocks.0.conv", "blocks.1.conv", "output"}
    assert any(f"{len(done.float_layers)} of 3 layers stay float" in line for line in done.lines())
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert quantize(source, tmp_path / "plain.onnx", digits).float_layers == ()


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_int8_is_no_default_where_it_is_slower(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    spreads = {"fp32": Spread(1.0, 0.0), "int8": Spread(1 / ratio, 0.0)}
    timing = Timing(spreads, {"fp32": 1.0, "int8": ratio}, 1.0, MachineLoad(0.0, 0.0, 2))
    monkeypatch.setattr(comparison, "side_by_side", lambda calls, seconds: timing)
    run_id = store.dense("slp")
    done = export(run_id, format="onnx", quantization="auto", out=tmp_path / "a.onnx", uri=store.uri)
    kinds = {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    text = "\n".join(done.lines())
    assert done.is_reduced is (ratio > 1) is (onnx.TensorProto.INT8 in kinds) is ("int8" in done.metadata)
    refusal = "int8 is refused, and the file is float32: it is slower: 2.000 ms against 1.000 ms of float32"
    assert (refusal in text) is (ratio < 1)
    forced = export(run_id, format="onnx", quantization="int8", out=tmp_path / "b.onnx", uri=store.uri)
    assert forced.is_reduced
    assert ("--quantize auto refuses it here" in "\n".join(forced.lines())) is (ratio < 1)
