"""A recorded network in MLflow's model registry, with all that it takes to have it back.

A version holds the network's own files with its weights, those of a run that stores masks alone too: it
outlives its run and the dense run. Beside them lies an MLflow model, an exported program (pt2) of what would
be shipped, cut out where channels could go: for MLflow's pages and `mlflow models serve`, never read here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from orchestrator.errors import UsageError
from orchestrator.model_io.formats import FORMATS
from orchestrator.model_io.load import load_module, weights_of
from orchestrator.model_io.metadata import Comparison, compare
from orchestrator.model_io.source import NETWORK, ModelSource, resolve_source, source_of_run
from orchestrator.storage import model_files
from orchestrator.storage.manifest import MANIFEST, read_manifest
from orchestrator.storage.model_files import SavedModel
from orchestrator.system.files import write_file
from orchestrator.tracking import RunRecord, Tracker, model_registry
from orchestrator.trial.context import NetworkState
from orchestrator.trial.metrics import profile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
RESERVED = re.compile(r"v[0-9]+|latest", re.IGNORECASE)  # by MLflow
EXAMPLES = 2  # images


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `comparison` is None where it was there already."""

    name: str
    version: str
    alias: str | None
    run: str
    comparison: Comparison | None

    def lines(self) -> Iterator[str]:
        alias = f", alias {self.alias}" if self.alias else ""
        was = "is already" if self.comparison is None else "is now"
        yield f"{self.run} {was} version {self.version} of {self.name}{alias}"
        if self.comparison is not None:
            yield (
                f"its MLflow model (pt2) differs by {self.comparison.largest:.3g} at most from the network; "
                f"{self.comparison.allowed:.3g} is allowed"
            )
        which = f"@{self.alias}" if self.alias else f"/{self.version}"
        yield f'orchestrator.load("models:/{self.name}{which}")'


def register(source: str, *, name: str, alias: str | None = None, uri: str) -> RegisteredVersion:
    """Enter a run's network under a name; the same network of the same run is entered once.

    UsageError for a name or an alias that cannot be, StoreError where there is no whole network.
    """
    _check(name, alias)
    found = resolve_source(source, uri=uri)
    if found.tracker is None:
        raise UsageError(f"{source} is a folder; give a run of the store, whose record goes with it")
    tracker = found.tracker
    row = tracker.get_run(found.run_id)
    origin = source_of_run(tracker, row)
    same = {"run_id": row.run_id, "run_manifest_sha256": str(origin.manifest_sha256)}
    comparison, version = None, model_registry.find_version(tracker, name, same)
    if version is None:
        comparison, version = _create_version(tracker, row, origin, name=name, same=same)
    if alias is not None:
        model_registry.set_alias(tracker, name, alias, version)
    return RegisteredVersion(name, version, alias, f"run {row.run_id} ({row.name})", comparison)


def _check(name: str, alias: str | None) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: give letters, digits, - and _, at most 100, as digits-densenet")
    if alias is not None and (not ALIAS.fullmatch(alias) or RESERVED.fullmatch(alias)):
        raise UsageError(
            f"--alias {alias!r}: give letters, digits, - and _, from a letter on, but not latest or v1, "
            "which MLflow keeps for itself; as champion"
        )


def _create_version(
    tracker: Tracker, row: RunRecord, origin: ModelSource, *, name: str, same: Mapping[str, str]
) -> tuple[Comparison, str]:
    """Its MLflow model and its own files as a logged model, then the version; what has a version is whole."""
    net, saved = load_module(origin, cut=True)
    pt2, shape = FORMATS["pt2"], saved.spec.input_shape
    with (
        tempfile.TemporaryDirectory() as place,
        model_registry.create_logged_model(tracker, row, name) as model_id,
    ):
        folder = Path(place) / "model"
        images = torch.rand((EXAMPLES, *shape), generator=torch.Generator().manual_seed(0))
        program = model_registry.save_program(folder, net, images, row=row, model_id=model_id)
        pt2.write(net, saved.spec, program)  # MLflow's own names files of this machine
        comparison = compare(net, pt2.runner(program), shape, tolerance=pt2.tolerance)
        manifest = _own_files(folder / NETWORK, origin, saved)
        model_registry.upload_model_files(tracker, model_id, folder)
    tags = {**same, **_tags(origin, net, saved), "manifest_sha256": manifest}
    text = _description(row.name, tags)
    version = model_registry.add_version(
        tracker, name, model_id, run_id=row.run_id, tags=tags, description=text
    )
    return comparison, version


def _own_files(folder: Path, origin: ModelSource, saved: SavedModel) -> str:
    """The network's files with its weights; the manifest's SHA-256. Those that have weights are copied."""
    folder.mkdir()
    plan = saved.spec
    if saved.weights is None:
        weights = weights_of(origin.tracker, saved)
        state = NetworkState(weights, saved.masks, **dict(plan.spent))
        arch = plan.model_dump(mode="json", include={"model", "input_shape", "num_classes", "cut_widths"})
        return model_files.save_model(folder, state, arch=arch)
    manifest = read_manifest(origin.files, manifest_sha256=saved.manifest_sha256)
    for name, entry in manifest.entries.items():
        write_file(folder / name, manifest.read(name, at_most=entry.bytes))
    write_file(folder / MANIFEST, manifest.text)
    return manifest.sha256


def _tags(origin: ModelSource, net: nn.Module, saved: SavedModel) -> dict[str, str]:
    """What the registry's pages show of a version, with numbers in full: a load is held against them."""
    cost, metrics = profile(net, saved.spec.input_shape), origin.metrics
    found = {"accuracy": origin.accuracy, "sparsity": metrics.get("final/sparsity", metrics.get("sparsity"))}
    tags = {name: repr(value) for name, value in found.items() if value is not None}
    tags |= {"parameters": str(cost.parameters), "macs": str(cost.total_macs)}
    tags |= {"model": saved.spec.model, "dataset": origin.params.get("dataset", "")}
    if digests := sorted(origin.data_digests()):
        tags["data_digest"] = digests[0]
    if "stopped_because" in origin.tags:
        tags["stopped_because"] = origin.tags["stopped_because"]
    return tags


def _description(name: str, tags: Mapping[str, str]) -> str:
    figures = [f"{float(tags[kind]):.2%} {kind}" for kind in ("accuracy", "sparsity") if kind in tags]
    figures += [f"{int(tags['parameters']):,} parameters", f"{int(tags['macs']):,} MACs an image"]
    early = f" Its trial was stopped early: {tags['stopped_because']}." if "stopped_because" in tags else ""
    return f"{name}, {tags['model']} on {tags['dataset']}: {', '.join(figures)}.{early}"
