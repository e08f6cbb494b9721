"""Formats that other converters write: OpenVINO's IR and LiteRT's (TensorFlow Lite's) flatbuffer."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.eval_mode import eval_mode

Predict = Callable[[Tensor], Tensor]
STANDARD_STREAMS = (1, 2)


def write_openvino(onnx_file: Path, path: Path) -> None:
    """Write PATH.xml and PATH.bin from an onnx file, with its numbers as they are."""
    import openvino

    model = openvino.convert_model(onnx_file)
    # Left to itself, OpenVINO stores weights in float16.
    openvino.save_model(model, path, compress_to_fp16=False)


def load_openvino(path: Path) -> Predict:
    """Compile a model for one thread of the CPU, in float32 where it would choose bfloat16."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options)

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(model(images.numpy())[0].copy())

    return predict


def write_tflite(net: nn.Module, images: Tensor, path: Path) -> None:
    """Write a flatbuffer for batches of the size of `images`."""
    with _silence(), eval_mode(net):
        import litert_torch

        litert_torch.convert(net, (images,)).export(os.fspath(path))


def load_tflite(path: Path) -> Predict:
    """Open a flatbuffer of batch size one in LiteRT's interpreter, which runs a batch image by image."""
    from ai_edge_litert.interpreter import Interpreter

    with _silence():
        interpreter = Interpreter(os.fspath(path), num_threads=1)
        interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: Any) -> Tensor:
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(target["index"]))

    return lambda images: torch.cat([run(image) for image in images.numpy()[:, None]])


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what the converter prints, from Python and from C++: a line for each of its passes."""
    disabled = logging.root.manager.disable
    copies = [os.dup(stream) for stream in STANDARD_STREAMS]
    with tempfile.TemporaryFile() as sink:
        try:
            logging.disable(logging.CRITICAL)
            for stream in STANDARD_STREAMS:
                os.dup2(sink.fileno(), stream)
            yield
        finally:
            logging.disable(disabled)
            for stream, before in zip(STANDARD_STREAMS, copies, strict=True):
                os.dup2(before, stream)
                os.close(before)
