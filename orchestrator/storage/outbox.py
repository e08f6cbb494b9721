"""Runs that wait in folders until the store has them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from orchestrator.errors import StoreError
from orchestrator.storage.locks import is_owner_alive, owner
from orchestrator.storage.runs import MetricPoint, Value
from orchestrator.system.files import make_private, translating_disk_full, write_file

RUN, FILES = "run.json", "artifacts"


@dataclass(frozen=True)
class DataInput:
    """The data set that a run reads; `sizes` in images."""

    name: str
    digest: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class RunStart:
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
class RunEnd:
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
class PendingRun:
    """A run, whole, in `folder`. `begun`: its params and data are in the store already."""

    folder: Path
    start: RunStart
    end: RunEnd
    params_logged: bool = False

    @property
    def id(self) -> str:
        """Its name, which its run has for a tag."""
        return self.folder.name

    @property
    def files(self) -> Path:
        return self.folder / FILES

    @property
    def final_metrics(self) -> dict[str, float]:
        """The final metrics of a whole run, by name."""
        return {point.name: point.value for point in self.end.metrics if point.name.startswith("final/")}


def save_pending_run(parcel: PendingRun) -> None:
    """Write run.json beside the artifacts, which are there already; DiskFullError."""
    content = {
        "opening": asdict(parcel.start),
        "closing": asdict(parcel.end),
        "begun": parcel.params_logged,
        "files": {path: _digest(parcel.files / path) for path in _paths(parcel.files)},
    }
    write_file(parcel.folder / RUN, json.dumps(content))


def load_pending_run(folder: Path) -> PendingRun | None:
    """A parcel, every file of it compared with its hash; None for one that is not whole."""
    try:
        content = json.loads((folder / RUN).read_bytes())
        whole = all(_digest(folder / FILES / path) == sha256 for path, sha256 in content["files"].items())
        return _pending_run(folder, content) if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _pending_run(folder: Path, content: Mapping[str, Any]) -> PendingRun:  # JSON
    opening, closing = content["opening"], content["closing"]
    return PendingRun(
        folder,
        RunStart(**{**opening, "data": DataInput(**opening["data"])}),
        RunEnd(
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


PARTIAL = ".half "  # before the owner of a folder that is being written, or removed
LOCK = ".lock"
Fill = Callable[[Path], RunEnd]  # writes a run's files into a folder, and says how the run ends


def new_pending_id(point: str) -> str:
    """The name of a parcel of a point."""
    return f"{point[:16]}-{uuid4().hex[:16]}"


@dataclass(frozen=True)
class Outbox:
    folder: Path

    @contextmanager
    def write(self, id: str, opening: RunStart, fill: Fill, *, params_logged: bool) -> Iterator[PendingRun]:
        """A new parcel, whole, held by this process until the end of the block. DiskFullError."""
        half, place = self._partial_folder(), self.folder / id
        with ExitStack() as cleaning:
            cleaning.callback(shutil.rmtree, half, ignore_errors=True)
            with translating_disk_full(self.folder):
                make_private(self.folder)
                (half / FILES).mkdir(parents=True)
                closing = fill(half / FILES)
                save_pending_run(PendingRun(half, opening, closing, params_logged))
                cleaning.enter_context(FileLock(half / LOCK))  # before anyone else can see it
                half.rename(place)
            yield PendingRun(place, opening, closing, params_logged)

    @contextmanager
    def locked(self, parcel: PendingRun) -> Iterator[bool]:
        """Whether this process alone holds the parcel now; not if another has it, or has delivered it."""
        lock = FileLock(parcel.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError):  # held by another; or gone
            yield False
            return
        try:
            there = (parcel.folder / RUN).exists()
            if not there:
                self._discard(parcel.folder)  # the lock file has made the folder anew
            yield there
        finally:
            lock.release()

    def pending_runs(self) -> list[PendingRun]:
        """All that wait, dense ones first; what a dead process left half-done is removed."""
        found = [parcel for folder in self._folders() if (parcel := self._load(folder))]
        return sorted(found, key=lambda parcel: (parcel.start.kind != "dense", parcel.id))

    def count(self) -> int:
        """How many wait, whole or not."""
        return len(self._folders())

    def find_task_result(self, key: str) -> PendingRun | None:
        """The whole result of a point that waits here."""
        found = (self._load(folder) for folder in self.folder.glob(f"{key[:16]}-*"))
        return next((parcel for parcel in found if parcel and parcel.end.key == key), None)

    def remove(self, parcel: PendingRun) -> None:
        """Out of sight first: what is removed in part is no parcel."""
        self._discard(parcel.folder)

    def _folders(self) -> list[Path]:
        try:
            folders = sorted(self.folder.iterdir()) if self.folder.exists() else []
        except PermissionError as error:
            raise StoreError(
                f"{self.folder} is another user's, whose results wait there; share a store "
                "by an MLflow server, and set MLFLOW_TRACKING_URI to it"
            ) from error
        for folder in folders:
            if folder.name.startswith(PARTIAL) and not is_owner_alive(_owner_of(folder)):
                shutil.rmtree(folder, ignore_errors=True)
        return [folder for folder in folders if not folder.name.startswith(".")]

    def _load(self, folder: Path) -> PendingRun | None:
        parcel = load_pending_run(folder)
        if parcel is None:
            self._discard(folder)  # unless another process has delivered it meanwhile, and it is gone
        return parcel

    def _discard(self, folder: Path) -> None:
        half = self._partial_folder()
        try:
            folder.rename(half)
        except FileNotFoundError:
            return
        shutil.rmtree(half, ignore_errors=True)

    def _partial_folder(self) -> Path:
        return self.folder / f"{PARTIAL}{owner()} {uuid4().hex[:8]}"


def _owner_of(half: Path) -> str:
    return half.name.removeprefix(PARTIAL).rpartition(" ")[0]
