"""Folders of finished runs that wait for the store.

The names in run.json (`opening`, `closing`, `begun`, `emptied`, `point`) are fixed: outboxes of earlier
versions are read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from orchestrator.errors import StoreError
from orchestrator.storage.locks import is_owner_alive, owner
from orchestrator.storage.runs import MetricPoint, Value
from orchestrator.storage.uri import UNREADABLE
from orchestrator.system.console import print_line
from orchestrator.system.files import make_private, translating_disk_full, write_file

RUN, FILES, LOCK = "run.json", "artifacts", ".lock"
PARTIAL = ".half "  # prefix of a folder that is being written or removed; its owner follows


@dataclass(frozen=True)
class DataInput:
    """The data set that a run reads; `sizes` is split -> images."""

    name: str
    digest: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class RunStart:
    """The start of a run; `parent` is its sweep's run, `point` the key of its task."""

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
    """The end of a run. `key`: by which a whole result is found; None for any other end.

    `emptied`: runs whose checkpoints are obsolete once this run is stored.
    """

    status: str
    end_ms: int
    tags: Mapping[str, str]
    metrics: tuple[MetricPoint, ...] = ()
    key: str | None = None
    emptied: tuple[str, ...] = ()


@dataclass(frozen=True)
class PendingRun:
    """A finished run in `folder`. `params_logged`: the store has its params and data set already."""

    folder: Path
    start: RunStart
    end: RunEnd
    params_logged: bool = False

    @property
    def id(self) -> str:
        """The name of its folder, and a tag of its run in the store."""
        return self.folder.name

    @property
    def files(self) -> Path:
        return self.folder / FILES

    @property
    def final_metrics(self) -> dict[str, float]:
        """The final metrics of a whole result, by name."""
        return {point.name: point.value for point in self.end.metrics if point.name.startswith("final/")}


Fill = Callable[[Path], RunEnd]  # writes a run's files into a folder, and returns the run's end


def save_pending_run(pending_run: PendingRun) -> None:
    """Write run.json beside the run's artifacts, which must be there already. DiskFullError."""
    files = pending_run.files
    paths = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
    start, end = pending_run.start, pending_run.end
    # Not `asdict`, which copies each of dozens of metrics: a tenth of a trial that trains nothing.
    content = {
        "opening": {**vars(start), "data": vars(start.data)},
        "closing": {**vars(end), "metrics": list(map(vars, end.metrics))},
        "begun": pending_run.params_logged,
        "files": {path: _digest(files / path) for path in paths},
    }
    write_file(pending_run.folder / RUN, json.dumps(content))


def load_pending_run(folder: Path) -> PendingRun | None:
    """Load a pending run, and check the hash of every file; None where there is no run.json.

    ValueError for one that is damaged, or that another version has written in another form.
    """
    try:
        text = (folder / RUN).read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        for path, sha256 in content["files"].items():
            if _digest(folder / FILES / path) != sha256:
                raise ValueError(f"{path} is not as it was written")
        start, end = content["opening"], content["closing"]
        run_start = RunStart(**{**start, "data": DataInput(**start["data"])})
        metrics = tuple(MetricPoint(**point) for point in end["metrics"])
        run_end = RunEnd(**{**end, "metrics": metrics, "emptied": tuple(end["emptied"])})
        return PendingRun(folder, run_start, run_end, content["begun"])
    except FileNotFoundError as error:
        if not (folder / RUN).exists():
            return None  # another process has delivered it meanwhile
        raise ValueError(f"{error.filename} is missing") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RUN}: {type(error).__name__}: {error}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def new_pending_id(key: str) -> str:
    """Return a new id for a pending run of a task."""
    return f"{key[:16]}-{uuid4().hex[:16]}"


@dataclass(frozen=True)
class Outbox:
    """A folder of pending runs, one folder each.

    A pending run appears and disappears by the rename of its folder, so that no process sees half of it. Who
    delivers it holds the lock file in its folder. One that cannot be read is renamed, too, and kept.
    """

    folder: Path

    @contextmanager
    def write(self, id: str, run_start: RunStart, fill: Fill, *, params_logged: bool) -> Iterator[PendingRun]:
        """Write a pending run, and hold its lock until the end of the block. DiskFullError."""
        partial_folder, folder = self._partial_folder(), self.folder / id
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, partial_folder, ignore_errors=True)
            with translating_disk_full(self.folder):
                make_private(self.folder)
                (partial_folder / FILES).mkdir(parents=True)
                run_end = fill(partial_folder / FILES)
                save_pending_run(PendingRun(partial_folder, run_start, run_end, params_logged))
                # Locked before the rename: no other process can be faster.
                stack.enter_context(FileLock(partial_folder / LOCK))
                partial_folder.rename(folder)
            yield PendingRun(folder, run_start, run_end, params_logged)

    @contextmanager
    def locked(self, pending_run: PendingRun) -> Iterator[bool]:
        """Lock a pending run for the block; yield False if another process holds it or has delivered it."""
        with self._locked(pending_run.folder) as is_locked:
            yield is_locked

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[bool]:
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError):  # OSError: the folder is gone
            yield False
            return
        try:
            is_there = (folder / RUN).exists()
            if not is_there:
                self._discard(folder)  # the lock file has created the folder again
            yield is_there
        finally:
            lock.release()

    def pending_runs(self) -> list[PendingRun]:
        """Return all pending runs, dense ones first; remove what dead processes left incomplete.

        One that cannot be read is set aside, and a line says where it is kept.
        """
        pending_runs = [pending_run for folder in self._folders() if (pending_run := self._load(folder))]
        return sorted(pending_runs, key=lambda run: (run.start.kind != "dense", run.id))

    def count(self) -> int:
        """Return the number of pending runs, without those that are set aside."""
        return len(self._folders())

    def unreadable_runs(self) -> list[Path]:
        """Return the folders of the runs that are set aside."""
        return sorted(self.folder.glob(f"*{UNREADABLE}"))

    def find_task_result(self, key: str) -> PendingRun | None:
        """Return the pending run that holds the whole result of a task, or None."""
        folders = [folder for folder in self.folder.glob(f"{key[:16]}-*") if folder.suffix != UNREADABLE]
        pending_runs = map(self._load, folders)
        return next((run for run in pending_runs if run and run.end.key == key), None)

    def remove(self, pending_run: PendingRun) -> None:
        """Remove a pending run."""
        self._discard(pending_run.folder)

    def _folders(self) -> list[Path]:
        try:
            folders = sorted(self.folder.iterdir()) if self.folder.exists() else []
        except PermissionError as error:
            raise StoreError(
                f"{self.folder} is another user's, whose results wait there; share a store "
                "by an MLflow server, and set MLFLOW_TRACKING_URI to it"
            ) from error
        for folder in folders:
            run_owner = folder.name.removeprefix(PARTIAL).rpartition(" ")[0]
            if folder.name.startswith(PARTIAL) and not is_owner_alive(run_owner):
                shutil.rmtree(folder, ignore_errors=True)
        return [
            folder for folder in folders if not folder.name.startswith(".") and folder.suffix != UNREADABLE
        ]

    def _load(self, folder: Path) -> PendingRun | None:
        try:
            pending_run = load_pending_run(folder)
        except ValueError as error:
            self._set_aside(folder, str(error)[:200])
            return None
        if pending_run is None:
            self._discard(folder)  # or another process has delivered it meanwhile, and the folder is gone
        return pending_run

    def _set_aside(self, folder: Path, reason: str) -> None:
        """Rename a pending run that cannot be read, and say so; not one that another process holds."""
        aside = folder.with_name(f"{folder.name}{UNREADABLE}")
        if aside.exists():  # it was copied back from there
            aside = folder.with_name(f"{folder.name}-{uuid4().hex[:8]}{UNREADABLE}")
        with self._locked(folder) as is_locked:
            if is_locked:
                folder.rename(aside)
        if is_locked:
            print_line(
                f"a result that waits for the store cannot be read ({reason}), and is kept in {aside}; if "
                f"another version has written it, take {UNREADABLE} off its name and run `orchestrate "
                "deliver` of that version; otherwise remove it, and the next sweep runs its trial again",
                error=True,
            )

    def _discard(self, folder: Path) -> None:
        """Rename a folder before its removal: a process killed in between leaves no incomplete run."""
        partial_folder = self._partial_folder()
        try:
            folder.rename(partial_folder)
        except FileNotFoundError:
            return
        shutil.rmtree(partial_folder, ignore_errors=True)

    def _partial_folder(self) -> Path:
        return self.folder / f"{PARTIAL}{owner()} {uuid4().hex[:8]}"
