"""Answer a finished sweep without loading torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from extensions import all_entries
from orchestrator.analysis.results import load_results
from orchestrator.data.datasets import OWN
from orchestrator.data.files import path, stamp
from orchestrator.errors import DataError, StoreError
from orchestrator.execution.summary import Summary
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.space.names import SPACES
from orchestrator.storage.manifest import sizes_match
from orchestrator.storage.runs import RunRecord
from orchestrator.storage.sqlite_runs import SqliteRuns
from orchestrator.storage.uri import outbox_folder
from orchestrator.system import provenance
from orchestrator.system.files import read_regular
from orchestrator.trial.task import SweepOutcome

if TYPE_CHECKING:
    from orchestrator.execution.options import SweepOptions
    from orchestrator.space.space import Space

REQUEST_SHA256 = "asked_sha256"
LARGEST_SPACE = 256 * 1024  # bytes, as in yaml_text; a longer file is refused by who reads it in earnest
OTHERS = ("models.", "pruning.", "orchestrator.")  # groups of entry points by which others add methods


@dataclass(frozen=True)
class SweepRequest:
    """All that decides the plan of a sweep besides the code; `stop` is what --stop says."""

    name: str
    text: str
    sets: tuple[str, ...]
    device: str
    precision: str
    stop: str | None

    def sha256(self) -> str | None:
        """A hash of it, of the code, and of the files of the data sets; None where other packages have a say.

        Files count by their size and the time of their last change: whoever touches one has a plan made.
        """
        if any(entry.group.startswith(OTHERS) for entry in all_entries()):
            return None
        facts = [asdict(self), provenance.source_digest(), _torchvision(), str(path()), *map(_stamp, OWN)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _torchvision() -> str:
    """Its version, from which networks are built; found without importing it."""
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return "not installed"


def _stamp(dataset: str) -> list[list[str | int]] | None:
    try:
        return stamp(dataset)
    except (DataError, OSError):  # it cannot be read, as who needs it will say
        return None


def request_of(space: Space, options: SweepOptions) -> SweepRequest | None:
    """What a space asks for; None for what its text alone does not tell: a search, another network."""
    if space.search.method != "grid" or space.source_model is not None:
        return None
    return SweepRequest(space.name, space.text, space.sets, options.device, options.precision, options.stop)


def read_request(
    space: str, sets: Sequence[str], *, device: str, precision: str, stop: str | None
) -> SweepRequest | None:
    """The same from the words of a command; None where there is no such text."""
    named = space in {file.stem for file in SPACES.glob("*.yaml")}
    file = SPACES / f"{space}.yaml" if named else Path(space)
    try:
        text = read_regular(file, at_most=LARGEST_SPACE).decode("utf-8-sig")
    except (OSError, ValueError):  # what is wrong is told by who reads it in earnest
        return None
    return SweepRequest(file.stem, text, tuple(sets), device, precision, stop)


def cached_summary(request: SweepRequest, *, uri: str) -> Summary | None:
    """The summary of a sweep whose trials are all in the store; None where that has to be looked into.

    So it has for a server, and where a trial failed.
    """
    asked = request.sha256()
    if asked is None or _is_anything_waiting(uri):
        return None
    runs = SqliteRuns(uri)
    try:
        sweep = next(iter(runs.search(f"tags.kind = 'sweep' and tags.{REQUEST_SHA256} = '{asked}'")), None)
        if sweep is None or sweep.status != "FINISHED":
            return None
        return _summary(request, runs, sweep)
    except StoreError:
        return None


def _is_anything_waiting(uri: str) -> bool:
    """Results for the store; what cannot be looked into may hold some."""
    folder = outbox_folder(uri)
    try:
        return folder.exists() and any(folder.iterdir())
    except PermissionError:
        return True


def _summary(request: SweepRequest, runs: SqliteRuns, sweep: RunRecord) -> Summary | None:
    text = runs.read_text(sweep, PLAN)
    keys = {row[name] for row in load_planned_rows(text) for name in ("key", "dense_key")}
    known = runs.find_all_finished(keys)
    if not all(map(_looks_whole, known.values())):
        return None
    results = load_results(runs, sweep, known=known).results
    if not results["status"].isin(("finished", "stopped")).all():
        return None
    return Summary(request.name, len(results), sweep, results, SweepOutcome(()), len(results))


def _looks_whole(row: RunRecord) -> bool:
    return sizes_match(row.local_path("model"), row.tags.get("manifest_sha256", ""))
