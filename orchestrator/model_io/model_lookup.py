"""Find a model: a run, a registered model or a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import StoreError, UsageError
from orchestrator.storage.manifest import ARCH, FileSource, LocalFolder
from orchestrator.tracking import RunRecord, Tracker, open_store
from orchestrator.tracking.artifacts import make_file_source
from orchestrator.tracking.model_registry import load_version

MODEL = "model"  # folder of the network among a run's artifacts
NETWORK = "network"  # folder of the network among the files of a registered model
RUN_ID = re.compile("[0-9a-f]{32}")
REGISTERED = re.compile(r"models:/([^/@:]+)(?:/([1-9][0-9]*)|@([^/@:]+))")
ACCEPTED_SOURCES = "a run's id, runs:/<id>, models:/name@alias, models:/name/3, or a folder with arch.json"


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A stored network. `manifest_sha256` is a hash that is stored apart from its files, if there is one."""

    name: str
    files: FileSource
    manifest_sha256: str | None
    run_id: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    tracker: Tracker | None = None

    @property
    def accuracy(self) -> float | None:
        """On test images, as recorded; of a trial that was stopped early, after its last round."""
        return self.metrics.get("final/accuracy", self.metrics.get("round/accuracy"))

    def data_digests(self) -> set[str]:
        """Return the digests of the data that it was measured on; empty where none is recorded."""
        if "data_digest" in self.tags:
            return {self.tags["data_digest"]}
        return set(self.tracker.data_digests(self.run_id).values()) if self.tracker else set()


def resolve_source(source: str | Path, *, uri: str, manifest_sha256: str | None = None) -> ModelSource:
    """Return the stored network that a text names; StoreError or UsageError where there is none."""
    text = str(source)
    if text.startswith("models:"):
        return _registered(open_store(uri), text)
    run_id = text.removeprefix("runs:/").strip("/").removesuffix(f"/{MODEL}")
    if text.startswith("runs:") or RUN_ID.fullmatch(text):
        tracker = open_store(uri)
        return source_of_run(tracker, tracker.get_run(run_id))
    if Path(text).is_dir():
        path = Path(text).resolve()
        if not (path / ARCH).exists():
            raise StoreError(f"{path} has no {ARCH}: it is no saved network; give {ACCEPTED_SOURCES}")
        return ModelSource(path.name, LocalFolder(path), manifest_sha256)
    raise StoreError(f"no run {text[:200]!r}, and no folder either; give {ACCEPTED_SOURCES}")


def source_of_run(tracker: Tracker, row: RunRecord) -> ModelSource:
    """Return the network of a run; StoreError where it has no complete one."""
    if "manifest_sha256" not in row.tags:
        reason = f" ({row.tags['reason'].splitlines()[0][:200]})" if row.tags.get("reason") else ""
        kind = row.tags.get("kind", "foreign run")
        raise StoreError(
            f"run {row.run_id} is a {kind}, {row.status}{reason}, and holds no whole model; "
            "give a finished dense run or trial"
        )
    if "invalid" in row.tags:
        raise StoreError(f"run {row.run_id} was found to be damaged: {row.tags['invalid'][:300]}")
    files = make_file_source(row.artifact_uri, MODEL, uri=tracker.uri)
    run = (row.run_id, row.params, row.metrics, row.tags)
    return ModelSource(row.name, files, row.tags["manifest_sha256"], *run, tracker)


def _registered(tracker: Tracker, text: str) -> ModelSource:
    match = REGISTERED.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text[:200]!r} names no registered model; write models:/name@alias or models:/name/3"
        )
    name, version, alias = match.groups()
    version_info = load_version(tracker, name, version=version or "", alias=alias or "")
    if "manifest_sha256" not in version_info.tags:
        raise StoreError(
            f"{text} was not made by `orchestrate register`, and other forms of a model are never opened; "
            f"its run is {version_info.run_id or 'not known'}"
        )
    files = make_file_source(version_info.artifact_uri, NETWORK, uri=tracker.uri)
    run = (version_info.run_id, version_info.params, version_info.metrics, version_info.tags)
    title = f"{name} version {version_info.version}"
    return ModelSource(title, files, version_info.tags["manifest_sha256"], *run, tracker)
