"""Post-training int8 quantization of an onnx file, layer by layer where accuracy asks for it.

Every layer gets int8 weights first. Where that costs validation accuracy, the layers are ranked by what each
costs alone, and as few as needed stay float. Test images have no part in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from orchestrator.data.loading import Dataset
from orchestrator.errors import ExportError
from orchestrator.model_io.comparison import Reduced, accuracy_and_loss, compare_forms, opened
from orchestrator.model_io.formats import IMAGES, load_onnx
from orchestrator.model_io.interface import BARE, Interface

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 64
LARGEST_DROP = 0.005  # of validation accuracy
FEWEST_IMAGES = 1.5  # a single image that changes sides is no loss, however few there are
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCALING = ("Cast", "Div", "Sub")  # the operations of interface.Shipped before the network


def quantize(source: Path, target: Path, data: Dataset, interface: Interface = BARE) -> Reduced:
    """Write `target`, the int8 form of the onnx file `source`, and compare the two.

    Layers stay float until at most half a point of validation accuracy is lost. Raises ExportError where even
    that is not enough, or where the file gives numbers that are not finite.
    """
    plan = _Quantizer(source, interface.feed(data.train.images[:CALIBRATION_IMAGES]), interface)
    fp32 = load_onnx(source)
    base = accuracy_and_loss(fp32, data.validation, interface)[0]

    def drop() -> float:
        return base - accuracy_and_loss(load_onnx(target), data.validation, interface)[0]

    def loss() -> float:
        return accuracy_and_loss(load_onnx(target), data.validation, interface)[1]

    allowed = max(LARGEST_DROP, FEWEST_IMAGES / len(data.validation))
    float_layers: tuple[str, ...] = ()
    plan.write(target)
    if drop() > allowed:
        ranked = _rank(plan, target, loss)
        float_layers = _fewest_float_layers(plan, target, ranked, drop, allowed)
    files = opened(source, fp32), opened(target, load_onnx(target))
    labels = tuple(plan.layers[name] for name in float_layers)
    return compare_forms(
        "int8", plan.method, files, data, interface, float_layers=labels, layers=len(plan.layers)
    )


def _rank(plan: _Quantizer, target: Path, loss: Callable[[], float]) -> list[str]:
    """Return the layers by the validation loss of a network in which each alone is int8, the worst first."""
    losses = {}
    for layer in plan.layers:
        plan.write(target, float_layers=[name for name in plan.layers if name != layer])
        losses[layer] = loss()
    return sorted(plan.layers, key=lambda layer: losses[layer], reverse=True)


def _fewest_float_layers(
    plan: _Quantizer, target: Path, ranked: Sequence[str], drop: Callable[[], float], allowed: float
) -> tuple[str, ...]:
    """Write the file with as few of the ranked layers in float as the accuracy allows, and return them.

    The number is found by bisection. ExportError where not a single layer can be int8.
    """
    low, high = 0, len(ranked)  # with `high` layers in float nothing is lost
    while low < high:
        middle = (low + high) // 2
        plan.write(target, float_layers=ranked[:middle], weighted_alone=True)
        low, high = (low, middle) if drop() <= allowed else (middle + 1, high)
    if low == len(ranked):
        raise ExportError(
            f"int8 loses more than {max(allowed, 0):.1%} of validation accuracy, whichever of the "
            f"{len(ranked)} layers is quantized; export it without --quantize"
        )
    plan.write(target, float_layers=ranked[:low], weighted_alone=True)
    if (lost := drop()) > allowed:
        raise ExportError(f"int8 loses {lost:.1%} of validation accuracy, and {allowed:.1%} is allowed")
    return tuple(ranked[:low])


@dataclass
class _Quantizer:
    """Writes int8 forms of an onnx file; `layers` has node -> name of the layers with weights."""

    source: Path
    images: Tensor
    interface: Interface

    def __post_init__(self) -> None:
        import onnx

        graph = onnx.load(self.source).graph
        constants = {tensor.name for tensor in graph.initializer}
        weighted = [n for n in graph.node if n.op_type in WEIGHTED and constants & set(n.input)]
        self.layers = {node.name: _label(node, constants) for node in weighted}
        self.has_convolutions = any(node.op_type == "Conv" for node in graph.node)
        self._around = _around_network(graph, self.interface)

    @property
    def method(self) -> str:
        """A description of the method."""
        if self.has_convolutions:
            return f"static, weights by channel, ranges of {len(self.images)} training images"
        return "int8 weights by channel, activations as they come"

    def write(self, target: Path, *, float_layers: Sequence[str] = (), weighted_alone: bool = False) -> None:
        """Write the file; with float layers, or `weighted_alone`, what is between layers is float, too."""
        from onnxruntime import quantization as ort

        excluded = [*self._around, *float_layers]
        with _no_logging():
            if not self.has_convolutions:
                ort.quantize_dynamic(
                    self.source,
                    target,
                    per_channel=True,
                    weight_type=ort.QuantType.QInt8,
                    nodes_to_exclude=excluded,
                )
                return
            ort.quantize_static(
                self.source,
                target,
                _calibration(self.images),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,  # three times as fast on a CPU as int8 ones
                weight_type=ort.QuantType.QInt8,
                nodes_to_exclude=excluded,
                op_types_to_quantize=list(WEIGHTED) if float_layers or weighted_alone else None,
            )


def _around_network(graph: Any, interface: Interface) -> list[str]:  # onnx has no types
    """Return the nodes of scaling and softmax, which are no part of the network and stay float."""
    names, source = [], graph.input[0].name
    if interface.scaling is not None:
        for node in graph.node:  # in the order of computation
            if node.op_type in SCALING and source in node.input:
                names.append(node.name)
                source = node.output[0]
    if interface.output == "probabilities":
        names += [node.name for node in graph.node if graph.output[0].name in node.output]
    return names


def _label(node: Any, constants: set[str]) -> str:
    """Return the name of a layer: that of its weights where the graph has kept it."""
    weights = next(name for name in node.input if name in constants)
    name = weights.removeprefix("net.")  # of interface.Shipped
    return name.removesuffix(".weight") if name.endswith(".weight") else str(node.name)


@contextmanager
def _no_logging() -> Iterator[None]:
    """Silence onnxruntime's advice on the root logger to simplify a graph that torch has simplified."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _calibration(images: Tensor) -> Any:  # onnxruntime has no types
    from onnxruntime.quantization import CalibrationDataReader

    batches = iter(images.split(CALIBRATION_BATCH))

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    return Images()
