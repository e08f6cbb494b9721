"""The source model of a sweep, stored with it and found by its hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from time import monotonic, sleep

from orchestrator.config import DenseConfig
from orchestrator.data.loading import Dataset
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage import model_files
from orchestrator.storage.manifest import sizes_match
from orchestrator.tracking import TAG_LENGTH, RunRecord, Tracker, breaker_for
from orchestrator.tracking.artifacts import make_file_source
from orchestrator.trial.context import fit_of, make_context
from orchestrator.trial.weight_transfer import SourceModel, SourceModelInfo

FOLDER = NAME = "ancestor"  # of a sweep's run: the artifacts' folder, and the tag with the ancestor's name
SHA256 = "ancestor_sha256"  # the tag with the SHA-256 of the folder's manifest
WAIT_SECONDS, TRY_SECONDS = 60.0, 1.0
HASH = re.compile("[0-9a-f]{64}")


def upload_source_model(tracker: Tracker, sweep: RunRecord, ancestor: SourceModelInfo) -> None:
    """Put the ancestor among the artifacts of a sweep's run, files before the tag; once is enough."""
    there = sweep.tags.get(SHA256) == ancestor.sha256
    if there and sizes_match(tracker.local_folder(sweep, FOLDER), ancestor.sha256):
        return
    tracker.upload(sweep.run_id, {f"{FOLDER}/{name}": content for name, content in ancestor.files.items()})
    tracker.set_tag(sweep.run_id, NAME, ancestor.name)
    tracker.set_tag(sweep.run_id, SHA256, ancestor.sha256)


def load_source_model(tracker: Tracker, config: DenseConfig) -> SourceModel | None:
    """What a training starts from, every file of it checked; None for one that starts from a draw.

    StoreError where no sweep of the store has it whole. It stays in memory, for the next trial of a process.
    Nothing can be done without it: a store that is away is waited for, a minute long, before AwayError.
    """
    if config.start == "scratch":
        return None
    last = monotonic() + WAIT_SECONDS
    while True:
        try:
            with tracker.translating_errors():
                return _by_hash(tracker, config.ancestor_sha256)
        except StoreUnavailableError:
            if monotonic() > last:
                raise
            sleep(TRY_SECONDS)
            breaker_for(tracker.uri).reset()


def transfer_tags(config: DenseConfig, data: Dataset, ancestor: SourceModel | None) -> dict[str, str]:
    """What a run's tags say of it: how many tensors came from the ancestor, and which did not, and why."""
    if ancestor is None:
        return {}
    bench = make_context(config, data)
    found = fit_of(bench, bench.meta_module(), ancestor)
    told = {
        "inherited": found.inherited,
        "adapted": _listed(found.adapted),
        "replaced": _listed(found.replaced),
    }
    return {name: text for name, text in told.items() if text}


def _listed(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in reasons.items())[:TAG_LENGTH]


@lru_cache(maxsize=2)
def _by_hash(tracker: Tracker, sha256: str) -> SourceModel:
    if not HASH.fullmatch(sha256):
        raise StoreError(f"{sha256[:80]!r} is no SHA-256 of an ancestor")
    with tracker.translating_errors():
        rows = tracker.search(f"tags.kind = 'sweep' and tags.{SHA256} = '{sha256}'", everywhere=True)
    damage = "no sweep of this store has it"
    for row in rows:
        try:
            return _read(tracker, row, sha256)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            damage = str(error)
    raise StoreError(
        f"the ancestor with the manifest {sha256[:12]}... cannot be had: {damage}; "
        "a sweep with the same --from puts it there again"
    )


def _read(tracker: Tracker, row: RunRecord, sha256: str) -> SourceModel:
    files = make_file_source(row.artifact_uri, FOLDER, uri=tracker.uri)
    saved = model_files.load_model_from(files, manifest_sha256=sha256)
    classes = saved.spec.classes
    return SourceModel(saved.state().weights, saved.masks, None if classes is None else tuple(classes))
