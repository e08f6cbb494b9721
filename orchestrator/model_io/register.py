"""Register a recorded network in MLflow's model registry, with all files that are needed to load it.

A version holds the network's files with its weights, also where the run itself stores masks alone: it
outlives its run and the dense run. Beside them is an MLflow model, an exported program (pt2) of the
network with its channels cut out: for MLflow's pages and `mlflow models serve`, never loaded here.
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
from orchestrator.model_io.comparison import OutputComparison, compare_outputs
from orchestrator.model_io.formats import FORMATS
from orchestrator.model_io.load import load_module, weights_of
from orchestrator.model_io.model_lookup import NETWORK, ModelSource, resolve_source, source_of_run
from orchestrator.storage import model_files
from orchestrator.storage.manifest import MANIFEST, read_manifest
from orchestrator.storage.model_files import SavedModel
from orchestrator.system.files import write_file
from orchestrator.tracking import RunRecord, Tracker, model_registry
from orchestrator.trial.context import NetworkState
from orchestrator.trial.metrics import profile
from pruning.user_code import own_code

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
RESERVED = re.compile(r"v[0-9]+|latest", re.IGNORECASE)  # aliases that MLflow does not allow
EXAMPLE_IMAGES = 2


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `comparison` is None where it was registered before."""

    name: str
    version: str
    alias: str | None
    run: str
    comparison: OutputComparison | None

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        alias = f", alias {self.alias}" if self.alias else ""
        verb = "is already" if self.comparison is None else "is now"
        yield f"{self.run} {verb} version {self.version} of {self.name}{alias}"
        if self.comparison is not None:
            yield (
                f"its MLflow model (pt2) differs by {self.comparison.largest:.3g} at most from the network; "
                f"{self.comparison.allowed:.3g} is allowed"
            )
        reference = f"@{self.alias}" if self.alias else f"/{self.version}"
        yield f'orchestrator.load("models:/{self.name}{reference}")'


def register(source: str, *, name: str, alias: str | None = None, uri: str) -> RegisteredVersion:
    """Register a run's network under a name; the same network of the same run is registered once.

    Raises UsageError for a name or an alias that MLflow does not allow, and StoreError where the run has no
    complete network.
    """
    _check_names(name, alias)
    model = resolve_source(source, uri=uri)
    if model.tracker is None:
        raise UsageError(f"{source} is a folder; give a run of the store, whose record goes with it")
    tracker = model.tracker
    row = tracker.get_run(model.run_id)
    model = source_of_run(tracker, row)  # of a registered model, the run behind it
    identity = {"run_id": row.run_id, "run_manifest_sha256": str(model.manifest_sha256)}
    comparison, version = None, model_registry.find_version(tracker, name, identity)
    if version is None:
        comparison, version = _create_version(tracker, row, model, name=name, identity=identity)
    if alias is not None:
        model_registry.set_alias(tracker, name, alias, version)
    return RegisteredVersion(name, version, alias, f"run {row.run_id} ({row.name})", comparison)


def _check_names(name: str, alias: str | None) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: give letters, digits, - and _, at most 100, as digits-densenet")
    if alias is not None and (not ALIAS.fullmatch(alias) or RESERVED.fullmatch(alias)):
        raise UsageError(
            f"--alias {alias!r}: give letters, digits, - and _, from a letter on, but not latest or v1, "
            "which MLflow keeps for itself; as champion"
        )


def _create_version(
    tracker: Tracker, row: RunRecord, model: ModelSource, *, name: str, identity: Mapping[str, str]
) -> tuple[OutputComparison, str]:
    """Upload the MLflow model with the network's files, then make the version: none is ever incomplete."""
    net, saved = load_module(model, cut=True)
    pt2, shape = FORMATS["pt2"], saved.spec.input_shape
    with (
        tempfile.TemporaryDirectory() as parent,
        model_registry.create_logged_model(tracker, row, name) as model_id,
    ):
        folder = Path(parent) / "model"
        images = torch.rand((EXAMPLE_IMAGES, *shape), generator=torch.Generator().manual_seed(0))
        program = model_registry.save_program(folder, net, images, row=row, model_id=model_id)
        pt2.write(net, saved.spec, program)  # over MLflow's, which names files of this machine
        comparison = compare_outputs(net, pt2.load(program), shape, tolerance=pt2.tolerance)
        manifest = _save_files(folder / NETWORK, model, saved)
        model_registry.upload_model_files(tracker, model_id, folder)
    tags = {**identity, **_tags(model, net, saved), "manifest_sha256": manifest}
    text = _description(row.name, tags)
    version = model_registry.add_version(
        tracker, name, model_id, run_id=row.run_id, tags=tags, description=text
    )
    return comparison, version


def _save_files(folder: Path, model: ModelSource, saved: SavedModel) -> str:
    """Save the network's files, its weights among them, and return the manifest's SHA-256."""
    folder.mkdir()
    spec = saved.spec
    if saved.weights is None:
        weights = weights_of(model.tracker, saved)
        state = NetworkState(weights, saved.masks, **spec.spent.state_fields)
        arch = spec.model_dump(mode="json", include={"model", "input_shape", "num_classes", "cut_widths"})
        return model_files.save_model(folder, state, arch=arch, code=saved.code)
    # Files that have the weights are copied as they are.
    manifest = read_manifest(model.files, manifest_sha256=saved.manifest_sha256)
    for name, entry in manifest.entries.items():
        write_file(folder / name, manifest.read(name, at_most=entry.bytes))
    write_file(folder / MANIFEST, manifest.text)
    return manifest.sha256


def _tags(model: ModelSource, net: nn.Module, saved: SavedModel) -> dict[str, str]:
    """The tags of a version, with all digits of its numbers: `load(strict=True)` compares them."""
    cost, metrics = profile(net, saved.spec.input_shape), model.metrics
    sparsity = metrics.get("final/sparsity", metrics.get("sparsity"))
    numbers = {"accuracy": model.accuracy, "sparsity": sparsity}
    tags = {name: repr(value) for name, value in numbers.items() if value is not None}
    tags |= {"parameters": str(cost.parameters), "macs": str(cost.total_macs)}
    tags |= {"model": saved.spec.model, "dataset": model.params.get("dataset", "")}
    if digests := sorted(model.data_digests()):
        tags["data_digest"] = digests[0]
    if "stopped_because" in model.tags:
        tags["stopped_because"] = model.tags["stopped_because"]
    return tags


def _description(name: str, tags: Mapping[str, str]) -> str:
    figures = [f"{float(tags[kind]):.2%} {kind}" for kind in ("accuracy", "sparsity") if kind in tags]
    figures += [f"{int(tags['parameters']):,} parameters", f"{int(tags['macs']):,} MACs an image"]
    early = f" Its trial was stopped early: {tags['stopped_because']}." if "stopped_because" in tags else ""
    return f"{name}, {own_code.shown(tags['model'])} on {tags['dataset']}: {', '.join(figures)}.{early}"
