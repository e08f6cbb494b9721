"""Export formats: how their files are written and how they are run."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import models
from orchestrator.errors import ExportError, StoreError, UsageError, unknown_name
from orchestrator.formatting import is_encodable
from orchestrator.model_io import converters
from orchestrator.model_io.interface import BARE, Interface, Shipped
from orchestrator.storage.model_files import ModelSpec
from orchestrator.storage.tensor_files import METADATA, load_expected_tensors, max_file_bytes, read_header
from orchestrator.system.files import open_regular, read_regular, size_of
from pruning.cutting.layer_widths import layer_widths, resize
from pruning.eval_mode import eval_mode

ARCH = "arch"  # in the metadata of a safetensors file
BATCH = "batch"
EXAMPLE_IMAGES = 3  # from a single image torch would take the batch size to be fixed
IMAGES = "images"
LARGEST_ONNX = 2_000_000_000  # bytes that one protobuf file can hold
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Predict = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> outputs [N, classes]


@dataclass(frozen=True)
class ExportFormat:
    """A file format: `write` saves a network, `load` returns a function that runs the file.

    `tolerance` is the largest difference allowed for outputs up to 1; for larger ones in proportion.
    `packages` come with the extra `extra`. A format that `computes` holds a program and not tensors alone, so
    that scaling can be inside. `companions` are the endings of files that FILE comes with.
    """

    name: str
    about: str
    tolerance: float
    write: Callable[[nn.Module, ModelSpec, Path], None]
    load: Callable[[Path], Predict]
    packages: tuple[str, ...] = ()
    extra: str = "export"
    suffix: str = ""
    companions: tuple[str, ...] = ()
    computes: bool = True
    batch: int | str = BATCH  # a number where the batch size is fixed

    @property
    def ending(self) -> str:
        """The ending of a file's name."""
        return self.suffix or f".{self.name}"


def find_format(name: str) -> ExportFormat:
    """Return the format of a name.

    Raises UsageError, with near names, for an unknown one, and ExportError where its packages are missing.
    """
    if name not in FORMATS:
        raise UsageError(unknown_name("format", name, FORMATS))
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise ExportError(
            f"--format {name} needs {', '.join(missing)}, not installed here: "
            f"pip install 'pruning-orchestrator[{FORMATS[name].extra}]'"
        )
    return FORMATS[name]


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's export warns about torch's own modules
        yield


def interface_of(net: nn.Module) -> Interface:
    """Return what a network takes and gives: a plain one is bare."""
    return net.interface if isinstance(net, Shipped) else BARE


def export_program(net: nn.Module, spec: ModelSpec) -> ExportedProgram:
    """Return the network in eval mode as torch's exported program, with an open batch size."""
    images = torch.zeros((EXAMPLE_IMAGES, *spec.input_shape), dtype=interface_of(net).dtype)
    with _no_warnings(), eval_mode(net):
        program = torch.export.export(net, (images,), dynamic_shapes=({0: Dim(BATCH)},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def save_pt2(net: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write an exported program, which runs without this package or the network's classes."""
    with _no_warnings():
        torch.export.save(export_program(net, spec), path)


def load_pt2(path: Path) -> Predict:
    """Load a program that this process has just written: a stranger's can run code as it is loaded."""
    with _no_warnings():
        return _without_gradients(torch.export.load(path).module())


def save_onnx(net: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write a graph that ONNX Runtime and others run; UsageError for a network of more than 2 GB."""
    import onnx

    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    if size > LARGEST_ONNX:
        raise UsageError(f"one onnx file holds 2 GB, and the network has {size:,} bytes; take safetensors")
    with _no_warnings():
        program = torch.onnx.export(
            export_program(net, spec),
            input_names=[IMAGES],
            output_names=[interface_of(net).output],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch wrote no onnx graph for this network")
    model = program.model_proto
    for node in model.graph.node:  # these name files of this machine
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    model.graph.ClearField("value_info")  # ONNX Runtime derives it, and cannot quantize a graph that has it
    for value in (*model.graph.input, *model.graph.output):  # torch calls it s77
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    onnx.save(model, path)


def describe_onnx(path: Path, metadata: Mapping[str, str]) -> None:
    """Set the metadata of an onnx file, in the order of their names."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.save(model, path)


def load_onnx(path: Path) -> Predict:
    """Open a graph in ONNX Runtime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {IMAGES: images.numpy()})[0])

    return predict


def save_openvino(net: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write OpenVINO's IR, an .xml file with a .bin file beside it, by way of onnx."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-openvino-") as folder:
        onnx_file = Path(folder) / "network.onnx"
        save_onnx(net, spec, onnx_file)
        converters.write_openvino(onnx_file, path)


def save_tflite(net: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write a flatbuffer for one image at a time: the converter takes no open batch size."""
    with _no_warnings():
        converters.write_tflite(net, torch.zeros((1, *spec.input_shape), dtype=interface_of(net).dtype), path)


def save_safetensors(net: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write the state dict, and in the header's metadata the architecture with the widths as they are now."""
    from safetensors.torch import save

    arch = spec.model_copy(update={"cut_widths": layer_widths(net), "mask_shapes": {}, "parent": None})
    content = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    path.write_bytes(
        save(content, {ARCH: arch.model_dump_json()})
    )  # save_file's are readable by the owner alone


def load_safetensors(path: Path) -> nn.Module:
    """Build the network of an exported safetensors file, on the CPU in eval mode.

    Raises StoreError for a file that is not an export, or whose tensors are not those of its architecture.
    """
    try:
        with open_regular(path, follow_links=True) as file:
            start, size = file.read(max_file_bytes(0)), size_of(file)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    metadata = read_header(start, str(path)).get(METADATA)
    text = metadata.get(ARCH) if isinstance(metadata, dict) else None
    if not isinstance(text, str) or not is_encodable(text):
        raise StoreError(f"{path} has no {ARCH!r} among its metadata: it is no export of a network")
    net = _meta_network(ModelSpec.from_json(text.encode(), f"{ARCH} of {path}"), path)
    state = net.state_dict()
    expected_size = sum(tensor.nbytes for tensor in state.values())
    # Checked before the file is read: it takes no more memory than its network does.
    if size > max_file_bytes(expected_size):
        raise StoreError(f"{path} is larger than its network")
    if size < expected_size:
        raise StoreError(f"{path} is smaller than its network")
    forms = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    content = load_expected_tensors(read_regular(path, at_most=size), forms, str(path))
    net.to_empty(device="cpu").load_state_dict(content)
    return net.eval()


def _meta_network(spec: ModelSpec, path: Path) -> nn.Module:
    """The network of an architecture, cut to its widths, without memory for its tensors."""
    spec.meta_state_dict()  # refuses what is too large
    with torch.device("meta"):
        uncut = models.build(spec.model, input_shape=spec.input_shape, num_classes=spec.num_classes)
    try:
        return resize(uncut, spec.cut_widths or {})
    except ValueError as error:
        raise StoreError(f"{ARCH} of {path}: {error}") from error


def _without_gradients(net: nn.Module) -> Predict:
    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = net(images)
        return logits

    return predict


FORMATS = {
    "pt2": ExportFormat("pt2", "torch's exported program", 1e-6, save_pt2, load_pt2),
    "onnx": ExportFormat("onnx", "a graph for ONNX Runtime", 1e-5, save_onnx, load_onnx, ONNX_PACKAGES),
    "safetensors": ExportFormat(
        "safetensors",
        "tensors, by name",
        0.0,
        save_safetensors,
        lambda path: _without_gradients(load_safetensors(path)),
        computes=False,
    ),
    "openvino": ExportFormat(
        "openvino",
        "OpenVINO's IR",
        1e-5,
        save_openvino,
        converters.load_openvino,
        (*ONNX_PACKAGES, "openvino"),
        extra="openvino",
        suffix=".xml",
        companions=(".bin",),
    ),
    "tflite": ExportFormat(
        "tflite",
        "LiteRT's flatbuffer, once TensorFlow Lite's",
        1e-5,
        save_tflite,
        converters.load_tflite,
        ("litert_torch", "ai_edge_litert"),
        extra="tflite",
        batch=1,
    ),
}
