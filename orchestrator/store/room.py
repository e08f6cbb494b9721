"""Room on the disk of a store: what runs take of it, what is left, and what to say where it is too little."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import models
from orchestrator.comparing.summary import size
from orchestrator.config import TrialConfig
from orchestrator.errors import DiskFullError, StoreError
from orchestrator.launching.outcome import Ended
from orchestrator.launching.point import Point
from orchestrator.measure import dense_bytes
from orchestrator.planning.refusals import shape_of
from orchestrator.store.address import outbox_folder, store_folder
from orchestrator.store.recording import keeps_weights
from pruning.masking import prunable_layers

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker

RUN_BYTES = 80_000  # of one without its tensors: ten files of a block each, and its rows in the database


def check_room(points: Sequence[Point], folder: Path | None) -> None:
    """DiskFullError where the points would not fit on the disk of `folder`; None is a store elsewhere."""
    if folder is not None and needed_bytes(points) > shutil.disk_usage(folder).free:
        raise DiskFullError(short_of_room(points, folder))


def give_up_if_full(tracker: Tracker, sweep_run: str, ended: Ended, points: Sequence[Point]) -> None:
    """DiskFullError if that is what ended a sweep of these points; what its workers left open is closed."""
    if not ended.no_room or ended.signal:
        return
    with suppress(StoreError), tracker.reaching():
        tracker.close_children(sweep_run, "no room was left")
    done = {outcome.point.key for outcome in ended.outcomes}
    folder = store_folder(tracker.uri) or outbox_folder(tracker.uri)
    left = [point for point in points if point.key not in done]
    raise DiskFullError(f"{ended.no_room.partition(': ')[2]}; {short_of_room(left, folder)}")


def short_of_room(points: Sequence[Point], folder: Path) -> str:
    """What is there, what is needed for the points, and what to do."""
    free = size(shutil.disk_usage(folder).free)
    left = "the run that is left needs" if len(points) == 1 else f"the {len(points)} runs that are left need"
    need = size(needed_bytes(points))
    return f"{folder} has {free} left, and {left} about {need}; make room, and the same command carries on"


def needed_bytes(points: Iterable[Point]) -> int:
    """Bytes that the runs of these points take: weights where they were trained, masks, and the rest."""
    return sum(_needed(point) for point in points)


def _needed(point: Point) -> int:
    weights, masks = _tensor_bytes(point.dense.model, *shape_of(point.dense.dataset))
    if not isinstance(point.config, TrialConfig):
        return RUN_BYTES + weights
    return RUN_BYTES + masks + (0 if keeps_weights(point.config) else weights)


@lru_cache(maxsize=64)
def _tensor_bytes(model: str, input_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int]:
    with torch.device("meta"):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
    masks = sum((layer.weight.numel() + 7) // 8 for layer in prunable_layers(net).values())
    return dense_bytes(net), masks
