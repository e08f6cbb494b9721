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
from orchestrator.model_io import quantization, reduced
from orchestrator.model_io.export import export
from orchestrator.model_io.quantization import quantize

pytestmark = pytest.mark.slow  # times four files, and exports each first


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced, "SECONDS", 0.05)


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
