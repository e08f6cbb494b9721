"""Return the summary of a finished sweep without importing torch and Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.results import load_results
from orchestrator.data.datasets import OWN
from orchestrator.data.files import data_folder, file_stamps
from orchestrator.errors import DataError, StoreError
from orchestrator.execution.summary import Summary
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.space.names import SPACES
from orchestrator.storage.manifest import sizes_match
from orchestrator.storage.runs import RunRecord, newest_first
from orchestrator.storage.sqlite_runs import SqliteRuns
from orchestrator.storage.uri import UNREADABLE, outbox_folder
from orchestrator.system import provenance
from orchestrator.system.files import read_regular
from orchestrator.trial.task import SweepOutcome
from pruning.registry import parse_method
from pruning.user_code import stored_code
from pruning.user_code.plugins import all_entry_points

if TYPE_CHECKING:
    from orchestrator.execution.options import SweepOptions
    from orchestrator.space.space import Space

REQUEST_SHA256 = "asked_sha256"
LARGEST_SPACE = 256 * 1024  # bytes, as in yaml_loader, which refuses a longer file
PLUGIN_GROUPS = ("models.", "pruning.", "orchestrator.")  # of entry points


@dataclass(frozen=True)
class SweepRequest:
    """All that decides the plan of a sweep besides the code; `stop` is as for --stop."""

    name: str
    text: str
    sets: tuple[str, ...]
    device: str
    precision: str
    stop: str | None
    gpu_bytes: int | None = None
    fast: bool = False
    compile: bool = False
    devices: int = 1
    sync_batch_norm: bool = False

    def sha256(self) -> str | None:
        """Return a hash of the request, the code and the files of the data sets; None if there are plug-ins.

        Files count by their size and the time of their last change.
        """
        if any(entry.group.startswith(PLUGIN_GROUPS) for entry in all_entry_points()):
            return None
        facts = [
            asdict(self),
            provenance.source_digest(),
            _torchvision(),
            str(data_folder()),
            *map(_stamp, OWN),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _torchvision() -> str:
    """Return the version of torchvision, which builds networks, without importing it."""
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return "not installed"


def _stamp(dataset: str) -> list[list[str | int]] | None:
    try:
        return file_stamps(dataset)
    except (DataError, OSError):  # it cannot be read, as the sweep itself will say
        return None


def request_of(space: Space, options: SweepOptions) -> SweepRequest | None:
    """Return the request for a space; None if its text does not decide the plan.

    That is so for a search, a source model and files of the user's own, data among them.
    """
    has_own_files = bool(stored_code.codes_in(str(space.choices()))) or any(
        parse_method(text)[0] not in OWN for text in space.axes.dataset
    )
    if has_own_files or space.search.method != "grid" or space.source_model is not None:
        return None
    return _make_request(space.name, space.text, space.sets, options)


def read_request(space: str, sets: Sequence[str], options: SweepOptions) -> SweepRequest | None:
    """Return the request for the words of a command; None if the space cannot be read."""
    is_named = space in {file.stem for file in SPACES.glob("*.yaml")}
    file = SPACES / f"{space}.yaml" if is_named else Path(space)
    try:
        text = read_regular(file, at_most=LARGEST_SPACE).decode("utf-8-sig")
    except (OSError, ValueError):  # the sweep itself says what is wrong
        return None
    return _make_request(file.stem, text, tuple(sets), options)


def _make_request(name: str, text: str, sets: tuple[str, ...], options: SweepOptions) -> SweepRequest:
    return SweepRequest(
        name,
        text,
        sets,
        options.device,
        options.precision,
        options.stop,
        options.gpu_bytes(),
        options.fast,
        options.compile,
        options.devices,
        options.sync_batch_norm,
    )


def cached_summary(request: SweepRequest, *, uri: str) -> Summary | None:
    """Return the summary of a sweep whose trials are all in the store; None if a plan has to be made.

    That is so for a store on a server, and if a trial failed.
    """
    sha256 = request.sha256()
    if sha256 is None or _has_pending(uri):
        return None
    runs = SqliteRuns(uri)
    try:
        sweep = next(iter(runs.search(f"tags.kind = 'sweep' and tags.{REQUEST_SHA256} = '{sha256}'")), None)
        if sweep is None or sweep.status != "FINISHED":
            return None
        of_its_name = [row for row in runs.search("tags.kind = 'sweep'") if row.name == sweep.name]
        if newest_first(of_its_name)[0].run_id != sweep.run_id:
            return None  # it is to be the latest, and nothing is written here
        return _make_summary(request, runs, sweep)
    except StoreError:
        return None


def _has_pending(uri: str) -> bool:
    """Return whether results wait for the store; a folder that cannot be read may hold some."""
    folder = outbox_folder(uri)
    try:
        return folder.exists() and any(path.suffix != UNREADABLE for path in folder.iterdir())
    except PermissionError:
        return True


def _make_summary(request: SweepRequest, runs: SqliteRuns, sweep: RunRecord) -> Summary | None:
    text = runs.read_text(sweep, PLAN)
    keys = {row[name] for row in load_planned_rows(text) for name in ("key", "dense_key")}
    rows = runs.find_all_finished(keys)
    if not all(
        sizes_match(row.local_path("model"), row.tags.get("manifest_sha256", "")) for row in rows.values()
    ):
        return None
    results = load_results(runs, sweep, all_finished=rows).results
    if not results["status"].isin(("finished", "stopped")).all():
        return None
    return Summary(request.name, len(results), sweep, results, SweepOutcome(()), len(results))
