"""`orchestrate bench`: times and memory of an .onnx file, in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ExportError, UsageError
from orchestrator.latency.exported_files import BatchTime, Bench, bench_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_matrix(
    path: Path, *, batch: str | int = "batch", features: str | int = 4, kind: str = "FLOAT"
) -> None:
    """A file that multiplies its images by a matrix of 4 x 3, and casts them before."""
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", getattr(TensorProto, kind), [batch, features])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "matrix", [images], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def measured(path: Path, *batches: int) -> Bench:
    return bench_file(path, threads=1, batches=batches or (1,), seconds=0.01)


@pytest.mark.parametrize("kind", ["FLOAT", "UINT8", "FLOAT16"])
def test_times_and_memory_of_every_batch_size(tmp_path: Path, kind: str) -> None:
    write_matrix(tmp_path / "net.onnx", kind=kind)
    result = measured(tmp_path / "net.onnx", 3, 1)
    assert [time.batch for time in result.timings] == [3, 1]
    assert all(0 < time.p50_ms <= time.p95_ms and time.calls >= 40 for time in result.timings)
    assert 0 < result.loaded_bytes <= result.peak_bytes < 200_000_000  # of the file, and not of this process
    assert result.bytes == (tmp_path / "net.onnx").stat().st_size
    assert result.to_json()["timings"][1]["batch"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch": 7}, "its batch size is fixed to 7; give --batch 7"),
        ({"features": "any"}, "sizes beside the batch are open"),
        ({"kind": "INT64"}, "its input is tensor(int64); known: tensor(float)"),
    ],
)
def test_what_cannot_be_timed_is_one_line(tmp_path: Path, options: dict[str, str | int], reason: str) -> None:
    write_matrix(tmp_path / "net.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ExportError) as raised:
        measured(tmp_path / "net.onnx")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_kind_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no protobuf")
    with pytest.raises(ExportError, match="cannot be timed"):
        measured(tmp_path / "text.onnx")
    with pytest.raises(UsageError, match=r"is no \.onnx file"):
        measured(tmp_path / "net.pt2")
    with pytest.raises(UsageError, match="there is no file"):
        measured(tmp_path / "net.onnx")


def test_times_that_differ_between_equal_calls_are_not_reliable() -> None:
    steady = BatchTime(batch=1, p50_ms=0.5, p95_ms=0.7, aa=1.02, calls=100)
    result = Bench("net.onnx", 1000, 2, 5000, 6000, (steady,), busy="")
    assert result.doubts == ()
    lines = list(result.lines())
    assert lines[0] == "net.onnx: 1 kB, memory 5 kB loaded, 6 kB at most; 2 threads of this CPU"
    assert lines[2].split() == ["1", "0.500", "0.700", "2,000", "1.02", "100"]
    shaky = replace(result, timings=(replace(steady, aa=1.3),), busy="other processes kept 1 of 2 cores busy")
    assert list(shaky.lines())[-1] == (
        "not reliable: A/A is 1.30 at batch 1; other processes kept 1 of 2 cores busy"
    )
