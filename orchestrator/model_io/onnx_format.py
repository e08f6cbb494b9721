"""onnx: a graph that ONNX Runtime and others run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import ExportError, UsageError
from orchestrator.model_io.format import Run
from orchestrator.model_io.pt2_format import program, quietly
from orchestrator.storage.model_spec import ModelSpec

IMAGES, LOGITS = "images", "logits"
LARGEST = 2_000_000_000  # bytes that one file of protobuf can hold


def write(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    import onnx

    held = sum(tensor.nbytes for tensor in net.state_dict().values())
    if held > LARGEST:
        raise UsageError(f"one onnx file holds 2 GB, and the network has {held:,} bytes; take safetensors")
    with quietly():
        found = torch.onnx.export(
            program(net, plan), input_names=[IMAGES], output_names=[LOGITS], dynamo=True, verbose=False
        )
    if found is None:
        raise ExportError("torch wrote no onnx graph for this network")
    model = found.model_proto
    for node in model.graph.node:  # where in this machine's files each came from
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    model.graph.ClearField("value_info")  # it is derived, and stands in the way of quantization
    onnx.save(model, path)


def session(path: Path) -> Any:  # onnxruntime has no types
    """ONNX Runtime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Run:
    found = session(path)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(found.run([LOGITS], {IMAGES: images.numpy()})[0])

    return run
