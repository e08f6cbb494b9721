"""A recorded network, back in memory: checked file by file, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import models
from orchestrator import model_files
from orchestrator.address import default_uri
from orchestrator.errors import StoreError
from orchestrator.tracking import RunRow, Tracker, initialise
from pruning.masking import Masks, apply_masks
from pruning.structure import shrink


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a loaded network: its run, params, final metrics, and masks of the uncut network."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    masks: Masks


def load(source: str, *, cut: bool = True, uri: str | None = None) -> tuple[nn.Module, Record]:
    """The network of a run, `runs:/<id>` or the id alone, on the CPU in eval mode, and its record.

    With `cut`, dead units and channels are taken out where the trial did so; else the whole network
    with its dead weights at zero. StoreError where there is no such run, or a file is not as written.
    """
    where = uri or default_uri(Path.cwd())
    initialise(where)
    tracker = Tracker(where, "")
    row = tracker.row(source.removeprefix("runs:/").strip("/"))
    saved = saved_model(tracker, row)
    net = models.build(
        saved.arch["model"],
        input_shape=tuple(saved.arch["input_shape"]),
        num_classes=saved.arch["num_classes"],
    )
    net.load_state_dict(weights_of(tracker, saved))
    apply_masks(net, saved.masks)
    if cut and saved.arch["cut_widths"] is not None:
        net = shrink(net, saved.masks, torch.zeros((2, *saved.arch["input_shape"])))
    return net.eval(), Record(row.run_id, row.name, row.params, row.metrics, saved.masks)


def saved_model(tracker: Tracker, row: RunRow) -> model_files.Saved:
    """The checked files of a run; StoreError where it holds no whole model."""
    if "manifest_sha256" not in row.tags:
        raise StoreError(f"run {row.run_id} is {row.status} and holds no whole model")
    return model_files.load(tracker.folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"])


def weights_of(tracker: Tracker, saved: model_files.Saved) -> dict[str, torch.Tensor]:
    """Its weights, or those of the parent where it holds masks alone (not masked yet)."""
    if saved.weights is not None:
        return saved.weights
    parent = tracker.finished_one(saved.arch["parent"])
    if parent is None:
        raise StoreError(f"the dense network that this run starts from is gone: key {saved.arch['parent']}")
    return saved_model(tracker, parent).state().weights
