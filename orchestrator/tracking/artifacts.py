"""Read and write artifacts of runs, on this disk or through a server."""

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

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.storage.manifest import FileSource, LocalFolder
from orchestrator.storage.runs import RunRecord
from orchestrator.storage.uri import redact_uri
from orchestrator.system.files import replace_file, write_file
from orchestrator.tracking.connection import connect
from orchestrator.tracking.errors import translates_errors, translating_errors
from orchestrator.tracking.mlflow_patches import ArtifactRepository, artifact_repository


def make_file_source(artifact_uri: str, path: str, *, uri: str) -> FileSource:
    """Return the files below `path` of an artifact URI; `uri` is the store that it belongs to."""
    if urlsplit(artifact_uri).scheme in ("file", ""):
        return LocalFolder(Path(url2pathname(urlsplit(artifact_uri).path)) / path)
    return RemoteFiles(artifact_uri, path, uri)


@dataclass(frozen=True)
class RemoteFiles:
    """Artifacts behind a server, listed first and then fetched one by one under names of our own.

    A server is not trusted: a recursive download would write files under the names that it sends.
    """

    artifact_uri: str
    path: str
    uri: str

    @property
    def where(self) -> str:
        return f"{redact_uri(self.artifact_uri)}/{self.path}"

    def sizes(self) -> Mapping[str, int]:
        with self._repository() as repository:
            infos = repository.list_artifacts(self.path)
        sizes: dict[str, int] = {}
        for info in infos:
            if info.is_dir or info.file_size is None:
                raise StoreError(f"{self.where} holds {info.path!r}, which is no plain file; this is refused")
            sizes[PurePosixPath(info.path).name] = info.file_size
        return sizes

    def read(self, name: str, size: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            with self._repository() as repository:
                path = repository.download_artifacts(f"{self.path}/{name}", folder)
            return LocalFolder(Path(path).parent).read(name, size)

    @contextmanager
    def _repository(self) -> Iterator[ArtifactRepository]:
        try:
            with translating_errors(self.uri):
                yield artifact_repository(self.artifact_uri, uri=self.uri)
        except OSError as error:  # a missing file, which `translating_errors` lets through
            raise StoreError(f"{self.where} cannot be read: {error.strerror}") from error


class Artifacts:
    """The files of the runs of one store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        self._client = self._client or connect(self.uri)
        return self._client

    @translates_errors
    def upload(self, run_id: str, files: Mapping[str, str | bytes]) -> None:
        """Upload artifacts of a run: path -> text or bytes."""
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                file = Path(folder) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                write_file(file, content)
            self.client.log_artifacts(run_id, folder)

    @translates_errors
    def replace_text(self, row: RunRecord, path: str, content: str) -> None:
        """Replace a text artifact; on this disk, in one step."""
        if (file := self.local_folder(row, path)) is None:
            self.upload(row.run_id, {path: content})
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)

    @translates_errors
    def has_artifact(self, row: RunRecord, path: str) -> bool:
        """Whether a run has an artifact."""
        if (file := self.local_folder(row, path)) is not None:
            return file.exists()
        return any(item.path == path for item in self.client.list_artifacts(row.run_id))

    @translates_errors
    def read_text(self, row: RunRecord, path: str) -> str:
        """Return a text artifact of a run; StoreError if it is missing."""
        try:
            return self.read_bytes(row, path).decode()
        except (StoreUnavailableError, DiskFullError):
            raise
        except (OSError, StoreError, UnicodeDecodeError) as error:
            raise StoreError(f"run {row.run_id} has no artifact {path}: {error}") from error

    def local_folder(self, row: RunRecord, path: str) -> Path | None:
        """Return the path of a run's artifacts on this disk; None for a store elsewhere."""
        return row.local_path(path)

    @translates_errors
    def download_folder(self, row: RunRecord, path: str) -> Path:
        """Return a local folder with a run's artifacts below `path`: the store's own if it is local."""
        return self.local_folder(row, path) or Path(
            self.client.download_artifacts(row.run_id, path, tempfile.mkdtemp())
        )

    @translates_errors
    def read_bytes(self, row: RunRecord, path: str) -> bytes:
        """Return the content of one artifact."""
        if (file := self.local_folder(row, path)) is not None:
            return file.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(row.run_id, path, folder)).read_bytes()

    @translates_errors
    def delete_files(self, row: RunRecord, path: str) -> None:
        """Remove a run's artifacts below `path`, if there are any."""
        folder = self.local_folder(row, path)
        if folder is None:
            artifact_repository(row.artifact_uri, uri=self.uri).delete_artifacts(path)
        elif folder.exists():
            shutil.rmtree(folder)
