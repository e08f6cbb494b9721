"""Check that the planned runs fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import models
from orchestrator.config import TrialConfig
from orchestrator.errors import DiskFullError
from orchestrator.formatting import format_size
from orchestrator.planning.constraints import shape_of
from orchestrator.trial.metrics import dense_bytes
from orchestrator.trial.recovery import reuses_dense_weights
from orchestrator.trial.task import Task
from pruning.masking import prunable_layers

if TYPE_CHECKING:
    pass


RUN_BYTES = 80_000  # of one without its tensors: ten files of a block each, and its rows in the database


def check_disk_space(points: Sequence[Task], folder: Path | None) -> None:
    """DiskFullError where the points would not fit on the disk of `folder`; None is a store elsewhere."""
    if folder is not None and needed_bytes(points) > shutil.disk_usage(folder).free:
        raise DiskFullError(disk_space_message(points, folder))


def disk_space_message(points: Sequence[Task], folder: Path) -> str:
    """What is there, what is needed for the points, and what to do."""
    free = format_size(shutil.disk_usage(folder).free)
    left = "the run that is left needs" if len(points) == 1 else f"the {len(points)} runs that are left need"
    need = format_size(needed_bytes(points))
    return f"{folder} has {free} left, and {left} about {need}; make room, and the same command carries on"


def needed_bytes(points: Iterable[Task]) -> int:
    """Bytes that the runs of these points take: weights where they were trained, masks, and the rest."""
    return sum(_needed(point) for point in points)


def _needed(point: Task) -> int:
    weights, masks = _tensor_bytes(point.dense.model, *shape_of(point.dense.dataset))
    if not isinstance(point.config, TrialConfig):
        return RUN_BYTES + weights
    return RUN_BYTES + masks + (0 if reuses_dense_weights(point.config) else weights)


@lru_cache(maxsize=64)
def _tensor_bytes(model: str, input_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int]:
    with torch.device("meta"):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
    masks = sum((layer.weight.numel() + 7) // 8 for layer in prunable_layers(net).values())
    return dense_bytes(net), masks
