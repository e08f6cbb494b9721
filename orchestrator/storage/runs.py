"""Runs as plain data, and the search for runs by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

TAG_LENGTH = 500  # characters; longer texts are cut
DIGEST_LENGTH = 36  # characters of a data set's digest that MLflow stores
Value = str | int | float | bool | None
FEW_KEYS = 4  # searched one by one, so that the time does not grow with the store

# A tag of a run whose batch norms saw fewer images at a time than a batch has: how many, of how many.
NORM_IMAGES = "batch_norm_images"

# Artifacts and a tag of a sweep's run.
PICTURE = "accuracy-against-sparsity.png"
TABLES = "comparison.md"
REPORT = "report.html"
COMMAND = "command"
COMMAND_LENGTH = 4000  # characters; the store cuts tags at 8000
LAST_ASKED = "last_asked_ms"  # when a sweep was asked for again, after another one of its name


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric; `step` counts epochs or rounds."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class RunRecord:
    """One run as the store lists it."""

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifact_uri: str
    start_ms: int
    end_ms: int | None

    def local_path(self, path: str) -> Path | None:
        """Return the path of its artifacts below `path` on this disk; None for a store elsewhere."""
        if not self.artifact_uri.startswith("file://"):
            return None
        return Path(url2pathname(urlsplit(self.artifact_uri).path)) / path


def newest_first(sweeps: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the runs of sweeps by when each was last asked for, the newest first."""
    return sorted(sweeps, key=lambda row: max(row.start_ms, int(row.tags.get(LAST_ASKED, 0))), reverse=True)


class Runs(ABC):
    """Find runs by key, over a whole store; a subclass implements the search."""

    @abstractmethod
    def search(self, query: str, *, everywhere: bool = False) -> list[RunRecord]:
        """Return active runs, newest first."""

    @abstractmethod
    def read_text(self, row: RunRecord, path: str) -> str:
        """Return a text artifact of a run."""

    def find_all_finished(self, keys: Collection[str] | None = None) -> dict[str, RunRecord]:
        """Return key -> finished run; of two runs with one key the older."""
        if keys is not None and len(keys) <= FEW_KEYS:
            rows = {key: self.find_finished(key) for key in keys}
            return {key: row for key, row in rows.items() if row is not None}
        runs: dict[str, RunRecord] = {}
        for row in self.search("attributes.status = 'FINISHED' and tags.key LIKE '_%'", everywhere=True):
            key = row.tags["key"]
            is_valid = (keys is None or key in keys) and "invalid" not in row.tags
            if is_valid and (key not in runs or row.start_ms < runs[key].start_ms):
                runs[key] = row
        return runs

    def find_finished(self, key: str) -> RunRecord | None:
        """Return the finished run of a key, or None; of two the older."""
        rows = self.search(f"attributes.status = 'FINISHED' and tags.key = '{key}'", everywhere=True)
        return next((row for row in reversed(rows) if "invalid" not in row.tags), None)

    def find_all_stopped(self, keys: Collection[str], stop: str) -> dict[str, RunRecord]:
        """Return key -> the latest run that the early-stopping rule `stop` ended."""
        rows = self.search("attributes.status = 'FINISHED' and tags.stopped_key LIKE '_%'", everywhere=True)
        runs = {row.tags["stopped_key"]: row for row in reversed(rows) if row.tags.get("stop") == stop}
        return {key: row for key, row in runs.items() if key in keys}

    def find_all_failed(self, keys: Collection[str]) -> dict[str, RunRecord]:
        """Return key -> the latest FAILED run of the task."""
        if not keys:
            return {}
        rows = self.search("attributes.status = 'FAILED' and tags.point LIKE '_%'", everywhere=True)
        return {row.tags["point"]: row for row in reversed(rows) if row.tags["point"] in keys}
