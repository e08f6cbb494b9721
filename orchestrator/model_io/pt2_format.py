"""pt2: torch's exported program, which runs without this package or the network's classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from orchestrator.model_io.format import Run
from orchestrator.storage.model_spec import ModelSpec
from pruning.modes import eval_mode

EXAMPLE = 3  # images; from 1 alone torch would take the batch's size for fixed
BATCH = "batch"


def program(net: nn.Module, plan: ModelSpec) -> ExportedProgram:
    """The network in eval mode as a graph with an open batch size."""
    images = torch.zeros((EXAMPLE, *plan.input_shape))
    with quietly(), eval_mode(net):
        found = torch.export.export(net, (images,), dynamic_shapes=({0: Dim(BATCH)},))
    for module in found.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names files of this machine
    return found


def write(net: nn.Module, plan: ModelSpec, path: Path) -> None:
    with quietly():
        torch.export.save(program(net, plan), path)


def runner(path: Path) -> Run:
    """Runs a program that this process has just written: another's can run code as it is loaded."""
    with quietly():
        module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return run


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts about each other
        yield
