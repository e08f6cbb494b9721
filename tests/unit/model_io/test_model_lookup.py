"""Where a network's files are looked for: here, or behind a server, and never through a link."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Store

from orchestrator.errors import StoreError
from orchestrator.model_io.model_lookup import resolve_source, source_of_run
from orchestrator.storage.manifest import LocalFolder
from orchestrator.tracking.artifacts import RemoteFiles, make_file_source


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "{}"])
def test_a_store_on_this_disk_is_read_in_place(tmp_path: Path, form: str) -> None:
    found = make_file_source(form.format(tmp_path / "a b"), "model", uri="sqlite:////x.db")
    assert found == LocalFolder(tmp_path / "a b" / "model")


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/1/2/artifacts", "s3://bucket/1", "http://host/x"])
def test_others_are_listed_first(uri: str) -> None:
    found = make_file_source(uri, "model", uri="http://127.0.0.1:1")
    assert isinstance(found, RemoteFiles)
    assert found.where == f"{uri}/model"


def test_secrets_of_an_address_are_not_shown() -> None:
    found = make_file_source("https://user:secret@host/x", "model", uri="http://127.0.0.1:1")
    assert "secret" not in found.where


def test_every_form_of_a_runs_name_finds_the_run(store: Store) -> None:
    run_id = store.dense("slp")
    for text in (run_id, f"runs:/{run_id}", f"runs:/{run_id}/", f"runs:/{run_id}/model"):
        found = resolve_source(text, uri=store.uri)
        assert (found.run_id, found.accuracy) == (run_id, store.row(run_id).metrics["final/accuracy"])
        assert found.data_digests() == set(store.tracker.data_digests(run_id).values()) != set()


def test_a_runs_folder_that_is_a_link_is_refused(store: Store, tmp_path: Path) -> None:
    folder = store.model(store.dense("slp"))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    found = source_of_run(store.tracker, store.row(store.dense("slp")))
    with pytest.raises(StoreError, match="is a link"):
        found.files.sizes()
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
