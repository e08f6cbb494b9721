"""A folder of artifacts, on this disk or behind a server, as files of which nothing is trusted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.errors import StoreError
from orchestrator.store.address import shown
from orchestrator.store.checked_files import Files, Folder
from orchestrator.tracking.faults import reaching


def files_at(artifact_uri: str, path: str, *, uri: str) -> Files:
    """What lies below `path` of an artifact location; `uri` is the store that it belongs to."""
    if urlsplit(artifact_uri).scheme in ("file", ""):
        return Folder(Path(url2pathname(urlsplit(artifact_uri).path)) / path)
    return StoredFiles(artifact_uri, path, uri)


@dataclass(frozen=True)
class StoredFiles:
    """Artifacts behind a server: listed first, then fetched one by one, by names that we chose."""

    artifact_uri: str
    path: str
    uri: str

    @property
    def where(self) -> str:
        return f"{shown(self.artifact_uri)}/{self.path}"

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
            return Folder(Path(place).parent).read(name, size)

    @contextmanager
    def _repository(self) -> Iterator[ArtifactRepository]:
        try:
            with reaching(self.uri):
                yield get_artifact_repository(self.artifact_uri, tracking_uri=self.uri)
        except OSError as error:  # of this disk: a file that is not there
            raise StoreError(f"{self.where} cannot be read: {error.strerror}") from error
