"""The forms of export by name."""

from __future__ import annotations

from importlib.util import find_spec

from orchestrator.errors import ExportError, UsageError, unknown_name
from orchestrator.model_io import onnx_format, pt2_format, safetensors_format
from orchestrator.model_io.format import ExportFormat

ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "pt2": ExportFormat("pt2", "torch's exported program", 1e-6, pt2_format.write, pt2_format.runner),
    "onnx": ExportFormat(
        "onnx", "a graph for ONNX Runtime", 1e-5, onnx_format.write, onnx_format.runner, ONNX
    ),
    "safetensors": ExportFormat(
        "safetensors", "tensors, by name", 0.0, safetensors_format.write, safetensors_format.runner
    ),
}


def find_format(name: str) -> ExportFormat:
    """The form of a name. UsageError with the nearest names; ExportError where its packages are missing."""
    if name not in FORMATS:
        raise UsageError(unknown_name("format", name, FORMATS))
    missing = [package for package in FORMATS[name].needs if find_spec(package) is None]
    if missing:
        raise ExportError(
            f"--format {name} needs {', '.join(missing)}, not installed here: "
            "pip install 'pruning-orchestrator[export]'"
        )
    return FORMATS[name]
