"""Write a sweep into one file: space, plan, environment, code, results and masks."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from orchestrator.analysis.results import CONFIG, SweepResults, find_sweep, load_results
from orchestrator.errors import StoreError, StoreUnavailableError, UsageError
from orchestrator.formatting import format_size
from orchestrator.model_io.model_lookup import source_of_run
from orchestrator.planning.plan_file import PLAN
from orchestrator.report.data import ENVIRONMENT, SPACE
from orchestrator.storage import bundle_file, model_files
from orchestrator.storage.manifest import MANIFEST, Manifest, read_manifest
from orchestrator.storage.manifest import MASKS as RUN_MASKS
from orchestrator.storage.runs import COMMAND, COMMAND_LENGTH, RunRecord
from orchestrator.storage.tensor_files import load_tensors
from orchestrator.system.files import check_can_write, naming_file, replace_file
from orchestrator.tracking import Tracker, open_store, source_models
from orchestrator.tracking.artifacts import make_file_source
from pruning.user_code import own_code, stored_code

LARGEST_MASKS = 100_000_000  # bytes of all packed masks; of more their digests alone are in the bundle
Json = dict[str, Any]


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written; `mask_bytes` is None where it has digests of the masks alone."""

    path: Path
    size: int
    runs: int
    mask_bytes: int | None

    def lines(self) -> Iterator[str]:
        """Yield the path, and what is in it."""
        masks = (
            f"digests of masks, which take more than {format_size(LARGEST_MASKS)}"
            if self.mask_bytes is None
            else f"masks ({format_size(self.mask_bytes)})"
        )
        yield str(self.path)
        yield f"{format_size(self.size)}: {self.runs} runs with params and metrics, {masks}"
        yield f"next: `orchestrate rerun {shlex.quote(self.path.name)}` on another machine re-makes it"


def write_bundle(sweep: str, *, uri: str, out: Path | None = None) -> WrittenBundle:
    """Write a sweep into a zip, by default SPACE.zip in the working folder.

    Raises StoreError if there is no such sweep; UsageError for one without results, for one that is too
    large, and where the file cannot be written.
    """
    if out is not None:
        check_can_write(out.absolute())
    tracker = open_store(uri, sweep)
    run = find_sweep(tracker, sweep)
    request = read_request(run)
    loaded = load_results(tracker, run)
    if not loaded.runs:
        raise UsageError(f"no run of {sweep} has finished; there is nothing to bundle")
    contents = _Contents(tracker, loaded)
    runs = [contents.add(row) for row in loaded.runs.values()]
    mask_bytes = sum(sum(tensor.numel() for tensor in masks.values()) for masks in contents.masks.values())
    members = {
        bundle_file.SPACE: tracker.read_text(run, SPACE).encode(),
        bundle_file.PLAN: tracker.read_text(run, PLAN).encode(),
        bundle_file.RUNS: json.dumps({"runs": runs}, sort_keys=True).encode(),
        bundle_file.ENVIRONMENT: _environment(tracker, (run, *loaded.runs.values())).encode(),
        bundle_file.CODE: stored_code.dump(contents.code.values()).encode(),
    }
    members |= {
        bundle_file.SOURCE + name: data for name, data in source_model_files(tracker, run, request).items()
    }
    has_masks = mask_bytes <= LARGEST_MASKS
    if has_masks:
        # One tensor a run: safetensors' header would be refused with one for each layer of 10,000 trials.
        members[bundle_file.MASKS] = save({key: joined_masks(m) for key, m in contents.masks.items()})
    space = str(loaded.plan.get("space", run.name))
    if too_large := [name for name, data in members.items() if len(data) > bundle_file.LIMITS[name]]:
        raise UsageError(
            f"{sweep} is too large for a bundle: {too_large[0]} has {len(members[too_large[0]]):,} bytes"
        )
    about = {"space": space, "sweep": run.run_id, "has_masks": has_masks, **request}
    data = bundle_file.dump_bundle(about, members)
    path = (out or Path(Path(f"{space}.zip").name)).absolute()
    with naming_file(path):
        replace_file(path, data)
    return WrittenBundle(path, len(data), len(runs), mask_bytes if has_masks else None)


def _environment(tracker: Tracker, rows: Iterable[RunRecord]) -> str:
    """Return the recorded environment of the first of these runs that has one."""
    for row in rows:
        try:
            return tracker.read_text(row, ENVIRONMENT)
        except StoreUnavailableError:
            raise
        except StoreError:  # a sweep of an earlier version
            continue
    return "{}"


def read_request(sweep: RunRecord) -> Json:
    """Return the command of a sweep, and its options that decide results.

    These are `sets`, `device`, `precision`, `stop` and `from`; `fast`, `compile`, `sync_batch_norm` and
    `gpus_per_trial` if given.

    UsageError for a sweep whose command was not recorded whole.
    """
    command = sweep.tags.get(COMMAND, "")
    if not command or len(command) >= COMMAND_LENGTH:
        raise UsageError(
            f"the command of the sweep {sweep.run_id} was not recorded whole; no bundle could repeat it"
        )
    words = shlex.split(command)
    options: Json = {
        "command": command,
        "sets": [],
        "device": "cpu",
        "precision": "fp32",
        "stop": None,
        "from": None,
    }
    for name, value in pairwise(words):
        if name == "--set":
            options["sets"].append(value)
        elif name in ("--device", "--precision", "--stop", "--from"):
            options[name.removeprefix("--")] = value
        elif name == "--gpus-per-trial":
            options["gpus_per_trial"] = float(value)
    flags = ("fast", "compile", "sync_batch_norm")
    return options | {flag: True for flag in flags if f"--{flag.replace('_', '-')}" in words}


def source_model_files(tracker: Tracker, sweep: RunRecord, request: Json) -> dict[str, bytes]:
    """Return the files of the network that a sweep starts from, and add its name and hash to `request`.

    StoreError where the store no longer has it whole.
    """
    if request["from"] is None:
        return {}
    sha256 = sweep.tags.get(source_models.SHA256, "")
    files = make_file_source(sweep.artifact_uri, source_models.FOLDER, uri=tracker.uri)
    manifest = read_manifest(files, manifest_sha256=sha256)
    request |= {"source_sha256": sha256, "source_name": sweep.tags.get(source_models.NAME, "")}
    limits = {name.removeprefix(bundle_file.SOURCE): limit for name, limit in bundle_file.LIMITS.items()}
    contents = {name: manifest.read(name, at_most=limits[name]) for name in manifest.entries}
    return contents | {MANIFEST: files.read(MANIFEST, limits[MANIFEST])}


class _Contents:
    """What is gathered from the runs of a sweep: own code by pin, and packed masks by key."""

    def __init__(self, tracker: Tracker, loaded: SweepResults) -> None:
        self._tracker = tracker
        self._plan = loaded.plan
        self.code: dict[str, own_code.OwnCode] = {}
        self.masks: dict[str, Mapping[str, Tensor]] = {}

    def add(self, row: RunRecord) -> Json:
        """Return a run as it stands in the bundle, and gather its code and masks."""
        source = source_of_run(self._tracker, row)
        manifest = read_manifest(source.files, manifest_sha256=source.manifest_sha256)
        config = self._tracker.read_text(row, CONFIG)
        masks = _packed_masks(manifest)
        key = row.tags["key"]
        if masks:
            self.masks[key] = masks
        self._add_code(config, manifest)
        return {
            "key": key,
            "kind": row.tags.get("kind", ""),
            "name": row.name,
            "params": dict(row.params),
            "metrics": dict(row.metrics),
            "config": json.loads(config),
            "masks_sha256": masks_digest(masks),
        }

    def _add_code(self, config: str, manifest: Manifest) -> None:
        pins = {own_code.split(match[0]).pin for match in own_code.NAME.finditer(config) if match[2]}
        if pins <= self.code.keys():
            return
        if text := model_files.read_kept_code(manifest):
            try:
                self.code |= stored_code.parse_kept(text)
            except own_code.OwnCodeError as error:
                raise StoreError(f"{manifest.files.where}: {error}") from error


def _packed_masks(manifest: Manifest) -> dict[str, Tensor]:
    """Return the masks of a run as its file has them: eight entries a byte."""
    if RUN_MASKS not in manifest.entries:
        return {}
    data = manifest.read(RUN_MASKS, at_most=manifest.entries[RUN_MASKS].bytes)
    return load_tensors(data, f"{manifest.files.where}/{RUN_MASKS}")


def joined_masks(masks: Mapping[str, Tensor]) -> Tensor:
    """Return packed masks as one tensor of bytes, in the order of their names."""
    return torch.cat([tensor for _, tensor in sorted(masks.items())])


def masks_digest(masks: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of packed masks by their names; "" without masks."""
    if not masks:
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(masks.items()):
        digest.update(f"{name} {tensor.numel()}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def masks_of_run(tracker: Tracker, row: RunRecord) -> dict[str, Tensor]:
    """Return the packed masks of a run in a store; {} for a dense network."""
    source = source_of_run(tracker, row)
    return _packed_masks(read_manifest(source.files, manifest_sha256=source.manifest_sha256))
