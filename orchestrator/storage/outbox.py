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
from orchestrator.storage.locks import owner, owner_lives
from orchestrator.storage.runs import MetricPoint, Value
from orchestrator.system.files import make_private, room_in, write

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


HALF = ".half "  # before the owner of a folder that is being written, or removed
LOCK = ".lock"
Fill = Callable[[Path], Closing]  # writes a run's files into a folder, and says how the run ends


def new_id(point: str) -> str:
    """The name of a parcel of a point."""
    return f"{point[:16]}-{uuid4().hex[:16]}"


@dataclass(frozen=True)
class Outbox:
    folder: Path

    @contextmanager
    def packed(self, id: str, opening: Opening, fill: Fill, *, begun: bool) -> Iterator[Parcel]:
        """A new parcel, whole, held by this process until the end of the block. DiskFullError."""
        half, place = self._half(), self.folder / id
        with ExitStack() as cleaning:
            cleaning.callback(shutil.rmtree, half, ignore_errors=True)
            with room_in(self.folder):
                make_private(self.folder)
                (half / FILES).mkdir(parents=True)
                closing = fill(half / FILES)
                save(Parcel(half, opening, closing, begun))
                cleaning.enter_context(FileLock(half / LOCK))  # before anyone else can see it
                half.rename(place)
            yield Parcel(place, opening, closing, begun)

    @contextmanager
    def held(self, parcel: Parcel) -> Iterator[bool]:
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

    def parcels(self) -> list[Parcel]:
        """All that wait, dense ones first; what a dead process left half-done is removed."""
        found = [parcel for folder in self._folders() if (parcel := self._load(folder))]
        return sorted(found, key=lambda parcel: (parcel.opening.kind != "dense", parcel.id))

    def count(self) -> int:
        """How many wait, whole or not."""
        return len(self._folders())

    def of_point(self, key: str) -> Parcel | None:
        """The whole result of a point that waits here."""
        found = (self._load(folder) for folder in self.folder.glob(f"{key[:16]}-*"))
        return next((parcel for parcel in found if parcel and parcel.closing.key == key), None)

    def remove(self, parcel: Parcel) -> None:
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
            if folder.name.startswith(HALF) and not owner_lives(_owner_of(folder)):
                shutil.rmtree(folder, ignore_errors=True)
        return [folder for folder in folders if not folder.name.startswith(".")]

    def _load(self, folder: Path) -> Parcel | None:
        parcel = load(folder)
        if parcel is None:
            self._discard(folder)  # unless another process has delivered it meanwhile, and it is gone
        return parcel

    def _discard(self, folder: Path) -> None:
        half = self._half()
        try:
            folder.rename(half)
        except FileNotFoundError:
            return
        shutil.rmtree(half, ignore_errors=True)

    def _half(self) -> Path:
        return self.folder / f"{HALF}{owner()} {uuid4().hex[:8]}"


def _owner_of(half: Path) -> str:
    return half.name.removeprefix(HALF).rpartition(" ")[0]
