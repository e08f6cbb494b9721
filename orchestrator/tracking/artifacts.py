"""Artifacts of runs, on this disk or behind a server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.storage.manifest import FileSource, LocalFolder
from orchestrator.storage.runs import RunRecord
from orchestrator.storage.uri import redact_uri
from orchestrator.system.files import replace_file, write_file
from orchestrator.tracking.connection import connect
from orchestrator.tracking.errors import translates_errors, translating_errors


def make_file_source(artifact_uri: str, path: str, *, uri: str) -> FileSource:
    """What lies below `path` of an artifact location; `uri` is the store that it belongs to."""
    if urlsplit(artifact_uri).scheme in ("file", ""):
        return LocalFolder(Path(url2pathname(urlsplit(artifact_uri).path)) / path)
    return RemoteFiles(artifact_uri, path, uri)


@dataclass(frozen=True)
class RemoteFiles:
    """Artifacts behind a server: listed first, then fetched one by one, by names that we chose."""

    artifact_uri: str
    path: str
    uri: str

    @property
    def where(self) -> str:
        return f"{redact_uri(self.artifact_uri)}/{self.path}"

    def sizes(self) -> Mapping[str, int]:
        with self._repository() as repository:
            listed = repository.list_artifacts(self.path)
        sizes: dict[str, int] = {}
        for info in listed:
            if info.is_dir or info.file_size is None:
                raise StoreError(f"{self.where} holds {info.path!r}, which is no plain file; this is refused")
            sizes[PurePosixPath(info.path).name] = info.file_size
        return sizes

    def read(self, name: str, size: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            with self._repository() as repository:
                place = repository.download_artifacts(f"{self.path}/{name}", folder)
            return LocalFolder(Path(place).parent).read(name, size)

    @contextmanager
    def _repository(self) -> Iterator[ArtifactRepository]:
        try:
            with translating_errors(self.uri):
                yield get_artifact_repository(self.artifact_uri, tracking_uri=self.uri)
        except OSError as error:  # of this disk: a file that is not there
            raise StoreError(f"{self.where} cannot be read: {error.strerror}") from error


class Artifacts:
    """Files of the runs of one store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        self._client = self._client or connect(self.uri)
        return self._client

    @translates_errors
    def upload(self, run_id: str, files: Mapping[str, str | bytes]) -> None:
        """Artifacts of a run from text or bytes, by path."""
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                place = Path(folder) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                write_file(place, content)
            self.client.log_artifacts(run_id, folder)

    @translates_errors
    def replace_text(self, row: RunRecord, path: str, content: str) -> None:
        """A text artifact anew; on this disk, never half of one."""
        if (place := self.local_folder(row, path)) is None:
            self.upload(row.run_id, {path: content})
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, content)

    @translates_errors
    def has_artifact(self, row: RunRecord, path: str) -> bool:
        """Whether a run has an artifact."""
        if (place := self.local_folder(row, path)) is not None:
            return place.exists()
        return any(item.path == path for item in self.client.list_artifacts(row.run_id))

    @translates_errors
    def read_text(self, row: RunRecord, path: str) -> str:
        """A text artifact of a run; StoreError if it is not there."""
        try:
            return self.read_bytes(row, path).decode()
        except (StoreUnavailableError, DiskFullError):
            raise
        except (OSError, StoreError, UnicodeDecodeError) as error:
            raise StoreError(f"run {row.run_id} has no artifact {path}: {error}") from error

    def local_folder(self, row: RunRecord, path: str) -> Path | None:
        """Where a run's artifacts below `path` lie on this disk; None for a store elsewhere."""
        return row.local_path(path)

    @translates_errors
    def download_folder(self, row: RunRecord, path: str) -> Path:
        """A local folder with a run's artifacts below `path`: the store's own where it is on this disk."""
        return self.local_folder(row, path) or Path(
            self.client.download_artifacts(row.run_id, path, tempfile.mkdtemp())
        )

    @translates_errors
    def read_bytes(self, row: RunRecord, path: str) -> bytes:
        """One file of a run."""
        if (place := self.local_folder(row, path)) is not None:
            return place.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(row.run_id, path, folder)).read_bytes()

    @translates_errors
    def delete_files(self, row: RunRecord, path: str) -> None:
        """Remove a run's artifacts below `path`, if there are any."""
        place = self.local_folder(row, path)
        if place is None:
            get_artifact_repository(row.artifact_uri, tracking_uri=self.uri).delete_artifacts(path)
        elif place.exists():
            shutil.rmtree(place)
