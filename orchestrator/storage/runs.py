"""Runs as plain data, and how they are searched by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    pass


TAG_LENGTH = 500
DIGEST_LENGTH = 36
Value = str | int | float | bool | None
FEW_KEYS = 4  # looked for one by one: what else is in the store costs nothing then


@dataclass(frozen=True)
class MetricPoint:
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
        """Where its artifacts below `path` lie on this disk; None for a store elsewhere."""
        if not self.artifact_uri.startswith("file://"):
            return None
        return Path(url2pathname(urlsplit(self.artifact_uri).path)) / path


class Runs(ABC):
    """Runs by their keys, over a whole store; how it is searched is a subclass's."""

    @abstractmethod
    def search(self, query: str, *, everywhere: bool = False) -> list[RunRecord]:
        """Active runs, newest first."""

    @abstractmethod
    def read_text(self, row: RunRecord, path: str) -> str:
        """A text artifact of a run."""

    def find_all_finished(self, keys: Collection[str] | None = None) -> dict[str, RunRecord]:
        """Key -> finished run; of two with one key the older."""
        if keys is not None and len(keys) <= FEW_KEYS:
            rows = {key: self.find_finished(key) for key in keys}
            return {key: row for key, row in rows.items() if row is not None}
        found: dict[str, RunRecord] = {}
        for row in self.search("attributes.status = 'FINISHED' and tags.key LIKE '_%'", everywhere=True):
            key = row.tags["key"]
            wanted = (keys is None or key in keys) and "invalid" not in row.tags
            if wanted and (key not in found or row.start_ms < found[key].start_ms):
                found[key] = row
        return found

    def find_finished(self, key: str) -> RunRecord | None:
        """The finished run of one key, or None."""
        rows = self.search(f"attributes.status = 'FINISHED' and tags.key = '{key}'", everywhere=True)
        return next((row for row in reversed(rows) if "invalid" not in row.tags), None)

    def find_all_stopped(self, keys: Collection[str], stop: str) -> dict[str, RunRecord]:
        """Key -> the latest run that was stopped by the rule `stop`."""
        rows = self.search("attributes.status = 'FINISHED' and tags.stopped_key LIKE '_%'", everywhere=True)
        found = {row.tags["stopped_key"]: row for row in reversed(rows) if row.tags.get("stop") == stop}
        return {key: row for key, row in found.items() if key in keys}

    def find_all_failed(self, keys: Collection[str]) -> dict[str, RunRecord]:
        """Key -> the latest FAILED run of the point."""
        if not keys:
            return {}
        rows = self.search("attributes.status = 'FAILED' and tags.point LIKE '_%'", everywhere=True)
        return {row.tags["point"]: row for row in reversed(rows) if row.tags["point"] in keys}


PICTURE = "accuracy-against-sparsity.png"
TABLES = "comparison.md"
REPORT = "report.html"

COMMAND = "command"  # a tag of a sweep's run
