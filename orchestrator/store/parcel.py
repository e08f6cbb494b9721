"""All that one run will hold, in a folder: it waits there until the store has it.

    <id>/run.json      how the run begins and ends, and the SHA-256 of every file
    <id>/artifacts/    the run's files

A parcel is written under another name and renamed: one that bears its own name is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.runs import MetricPoint, Value
from orchestrator.store.writing import write

RUN, FILES = "run.json", "artifacts"


@dataclass(frozen=True)
class DataInput:
    """The data set that a run reads; `sizes` in images."""

    name: str
    digest: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Opening:
    """A run as it begins; `parent` is its sweep's run."""

    experiment: str
    kind: str
    name: str
    parent: str
    point: str
    tags: Mapping[str, str]
    params: Mapping[str, Value]
    data: DataInput
    start_ms: int


@dataclass(frozen=True)
class Closing:
    """A run as it ends. `key` is the one that it may be found by, if it is whole.

    `emptied` are runs whose checkpoints nobody needs once this one is stored.
    """

    status: str
    end_ms: int
    tags: Mapping[str, str]
    metrics: tuple[MetricPoint, ...] = ()
    key: str | None = None
    emptied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parcel:
    """A run, whole, in `folder`. `begun`: its params and data are in the store already."""

    folder: Path
    opening: Opening
    closing: Closing
    begun: bool = False

    @property
    def id(self) -> str:
        """Its name, which its run has for a tag."""
        return self.folder.name

    @property
    def files(self) -> Path:
        return self.folder / FILES

    @property
    def final(self) -> dict[str, float]:
        """The final metrics of a whole run, by name."""
        return {point.name: point.value for point in self.closing.metrics if point.name.startswith("final/")}


def save(parcel: Parcel) -> None:
    """Write run.json beside the artifacts, which are there already; DiskFullError."""
    content = {
        "opening": asdict(parcel.opening),
        "closing": asdict(parcel.closing),
        "begun": parcel.begun,
        "files": {path: _digest(parcel.files / path) for path in _paths(parcel.files)},
    }
    write(parcel.folder / RUN, json.dumps(content))


def load(folder: Path) -> Parcel | None:
    """A parcel, every file of it compared with its hash; None for one that is not whole."""
    try:
        content = json.loads((folder / RUN).read_bytes())
        whole = all(_digest(folder / FILES / path) == sha256 for path, sha256 in content["files"].items())
        return _parcel(folder, content) if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _parcel(folder: Path, content: Mapping[str, Any]) -> Parcel:  # JSON
    opening, closing = content["opening"], content["closing"]
    return Parcel(
        folder,
        Opening(**{**opening, "data": DataInput(**opening["data"])}),
        Closing(
            **{
                **closing,
                "metrics": tuple(MetricPoint(**point) for point in closing["metrics"]),
                "emptied": tuple(closing["emptied"]),
            }
        ),
        content["begun"],
    )


def _paths(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
