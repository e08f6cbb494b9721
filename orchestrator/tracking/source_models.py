"""Store the source model of a sweep with the sweep's run, and load it by its hash."""

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
from orchestrator.trial.context import make_context
from orchestrator.trial.weight_transfer import SourceModel, SourceModelInfo

FOLDER = NAME = "ancestor"  # of a sweep's run: the artifact folder, and the tag with the source model's name
SHA256 = "ancestor_sha256"  # the tag with the SHA-256 of the folder's manifest
WAIT_SECONDS, RETRY_SECONDS = 60.0, 1.0
SHA256_TEXT = re.compile("[0-9a-f]{64}")


def upload_source_model(tracker: Tracker, sweep: RunRecord, source: SourceModelInfo) -> None:
    """Upload the source model to a sweep's run, files before tags, unless it is there already."""
    is_tagged = sweep.tags.get(SHA256) == source.sha256
    if is_tagged and sizes_match(tracker.local_folder(sweep, FOLDER), source.sha256):
        return
    tracker.upload(sweep.run_id, {f"{FOLDER}/{name}": content for name, content in source.files.items()})
    tracker.set_tag(sweep.run_id, NAME, source.name)
    tracker.set_tag(sweep.run_id, SHA256, source.sha256)


def load_source_model(tracker: Tracker, config: DenseConfig) -> SourceModel | None:
    """Load the model that a training starts from, with every file checked; None for one from scratch.

    It is cached for the next trial of this process. StoreError if no sweep of the store has it whole. A
    training cannot start without it: StoreUnavailableError only after WAIT_SECONDS of tries.
    """
    if config.start == "scratch":
        return None
    deadline = monotonic() + WAIT_SECONDS
    while True:
        try:
            with tracker.translating_errors():
                return _load_by_hash(tracker, config.ancestor_sha256)
        except StoreUnavailableError:
            if monotonic() > deadline:
                raise
            sleep(RETRY_SECONDS)
            breaker_for(tracker.uri).reset()


def transfer_tags(config: DenseConfig, data: Dataset, source: SourceModel | None) -> dict[str, str]:
    """Return a run's tags on the transfer: how many tensors were inherited, and which were not, and why."""
    if source is None:
        return {}
    mapping = make_context(config, data).match(source)
    tags = {
        "inherited": mapping.inherited,
        "adapted": _join_reasons(mapping.adapted),
        "replaced": _join_reasons(mapping.replaced),
    }
    return {name: text for name, text in tags.items() if text}


def _join_reasons(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in reasons.items())[:TAG_LENGTH]


@lru_cache(maxsize=2)
def _load_by_hash(tracker: Tracker, sha256: str) -> SourceModel:
    if not SHA256_TEXT.fullmatch(sha256):
        raise StoreError(f"{sha256[:80]!r} is no SHA-256 of a source model")
    with tracker.translating_errors():
        rows = tracker.search(f"tags.kind = 'sweep' and tags.{SHA256} = '{sha256}'", everywhere=True)
    problem = "no sweep of this store has it"
    for row in rows:
        try:
            return _load(tracker, row, sha256)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            problem = str(error)
    raise StoreError(
        f"the source model with the manifest {sha256[:12]}... cannot be loaded: {problem}; "
        "a sweep with the same --from stores it again"
    )


def _load(tracker: Tracker, row: RunRecord, sha256: str) -> SourceModel:
    files = make_file_source(row.artifact_uri, FOLDER, uri=tracker.uri)
    saved = model_files.load_model_from(files, manifest_sha256=sha256)
    classes = saved.spec.classes
    return SourceModel(saved.state().weights, saved.masks, None if classes is None else tuple(classes))
