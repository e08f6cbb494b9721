"""Where parcels wait for the store: a folder that several processes fill and empty."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from orchestrator.errors import StoreError
from orchestrator.store import parcel as parcels
from orchestrator.store.ownership import owner, owner_lives
from orchestrator.store.parcel import FILES, RUN, Closing, Opening, Parcel
from orchestrator.store.writing import make_private, room_in

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
                parcels.save(Parcel(half, opening, closing, begun))
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
        parcel = parcels.load(folder)
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
