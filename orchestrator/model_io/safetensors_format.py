"""safetensors: the tensors of the network as it stands, and in the header how it is built."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

import models
from orchestrator.errors import StoreError
from orchestrator.formatting import is_encodable
from orchestrator.model_io.format import Run
from orchestrator.storage.model_spec import ModelSpec
from orchestrator.storage.tensor_files import METADATA, load_expected_tensors, max_file_bytes, read_header
from orchestrator.system.files import open_regular, read_regular, size_of
from pruning.architecture import resize, widths

ARCH = "arch"  # in the file's metadata


def write(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    """The state dict; its widths stand in `cut_widths`, and nothing of it is masked any more."""
    about = plan.model_copy(update={"cut_widths": widths(net), "mask_shapes": {}, "parent": None})
    content = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    path.write_bytes(save(content, {ARCH: about.model_dump_json()}))  # save_file's are for the owner alone


def rebuilt(path: Path) -> nn.Module:
    """The network of such a file, on the CPU in eval mode. StoreError for a file that is none."""
    try:
        with open_regular(path, follow_links=True) as file:
            start, size = file.read(max_file_bytes(0)), size_of(file)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    metadata = read_header(start, str(path)).get(METADATA)
    text = metadata.get(ARCH) if isinstance(metadata, dict) else None
    if not isinstance(text, str) or not is_encodable(text):
        raise StoreError(f"{path} has no {ARCH!r} among its metadata: it is no export of a network")
    plan = ModelSpec.from_json(text.encode(), f"{ARCH} of {path}")
    net = _outline(plan, path)
    forms = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in net.state_dict().items()}
    if size > max_file_bytes(sum(tensor.nbytes for tensor in net.state_dict().values())):
        raise StoreError(f"{path} is larger than its network")
    if size < sum(tensor.nbytes for tensor in net.state_dict().values()):
        raise StoreError(f"{path} is smaller than its network")
    content = load_expected_tensors(read_regular(path, at_most=size), forms, str(path))
    net.to_empty(device="cpu").load_state_dict(content)
    return net.eval()


def _outline(plan: ModelSpec, path: Path) -> nn.Module:
    plan.meta_state_dict()  # refuses what is too large
    with torch.device("meta"):
        whole = models.build(plan.model, input_shape=plan.input_shape, num_classes=plan.num_classes)
    try:
        net = resize(whole, plan.cut_widths or {})
    except ValueError as error:
        raise StoreError(f"{ARCH} of {path}: {error}") from error
    return net


def runner(path: Path) -> Run:
    net = rebuilt(path)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = net(images)
        return logits

    return run
