"""A SQLite file's path and its URI: what is written in one place is read in the same, whatever its name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url
from whole_sweep import NAME, TRIALS, record_sweep

import orchestrator
from orchestrator import cli
from orchestrator.cli.completion import sweeps
from orchestrator.errors import StoreError
from orchestrator.execution.status import status
from orchestrator.execution.summary import Summary
from orchestrator.storage.runs import PICTURE
from orchestrator.storage.uri import (
    default_uri,
    outbox_folder,
    sqlite_path,
    sqlite_uri,
    store_exists,
    store_folder,
)
from orchestrator.tracking import Tracker, initialise
from orchestrator.trial.task import SweepOutcome

NAMES = [
    "a?b",
    "a%41b",
    "a%3Fb",
    "50% full",
    "100%",
    "a#b",
    "a b+c",
    "a@b:c",
    "a;b&c=d",
    "ü é",
    "'\"",
    "~",
    "a?token=b%2541#c",
]


@pytest.mark.parametrize("name", NAMES)
def test_sqlalchemy_reads_the_path_that_was_meant(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name / "mlflow.db", tmp_path / f"{name}.db"):
        uri = sqlite_uri(path)
        assert make_url(uri).database == str(path)
        assert sqlite_path(uri) == path
        assert store_folder(uri) == path.parent
    folder = tmp_path / name
    assert sqlite_path(default_uri(folder)) == folder / "mlruns" / "mlflow.db"
    assert default_uri(folder, "sqlite:///my.db") == sqlite_uri(folder / "my.db")
    assert default_uri(tmp_path, sqlite_uri(folder / "my.db")) == sqlite_uri(folder / "my.db")
    assert outbox_folder(sqlite_uri(folder / "my.db")) == folder / ".outbox" / "my.db"


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_made_there_and_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    uri = default_uri(tmp_path / name)
    assert not store_exists(uri)
    initialise(uri)
    assert store_exists(uri)
    with Tracker(uri, "x").start("trial", "a", tags={"key": "k"}) as run:
        pass
    Tracker(uri, "x").upload(run.run_id, {"a/b.txt": "text"})
    row = Tracker(uri, "x").find_all_finished()["k"]
    assert Tracker(uri, "x").read_text(row, "a/b.txt") == "text"
    assert row.local_path("a/b.txt") == (
        tmp_path / name / "mlruns" / "artifacts" / "x" / row.run_id / "artifacts/a/b.txt"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_command_reads_what_a_sweep_wrote_in_a_folder_whose_name_needs_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "we?ird%41 #d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run = record_sweep(default_uri(folder), tmp_path / "state")
    assert status(uri=default_uri(folder)).done == TRIALS
    assert len(orchestrator.results(NAME)) == TRIALS
    assert len(orchestrator.results(NAME, uri="sqlite:///mlruns/mlflow.db")) == TRIALS
    assert orchestrator.load(run)[1].run_id == run
    assert sweeps("") == [(NAME, "")]
    for words in (
        ["compare", NAME],
        ["report", NAME],
        ["export", run, "--format", "safetensors"],
        ["rerun", run],
    ):
        monkeypatch.setattr(sys, "argv", ["orchestrate", *words])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert raised.value.code == 0, capsys.readouterr().err
    assert (folder / f"{NAME}.html").exists()
    (sweep,) = Tracker(default_uri(folder), NAME).search("tags.kind = 'sweep'")
    picture = Summary(NAME, 0, sweep, orchestrator.results(NAME), SweepOutcome(()), 0).picture()
    assert picture is not None
    assert picture.name == PICTURE
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == [folder.name]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (
            "sqlite:////srv/a?b/mlflow.db",
            "has a `\\?`, .*; write %3F for a question mark in a path, and no options",
        ),
        ("sqlite:////srv/mlflow.db?timeout=5", "has a `\\?`"),
        ("sqlite://", "is no file that every process can open; write sqlite:////PATH/TO/FILE.db"),
        ("sqlite:///", "is no file"),
        ("sqlite:///:memory:", "is no file"),
        ("sqlite:///file:/srv/x.db", "is no file"),
        ("sqlite+pysqlite:////srv/x.db", "is no file"),
        ("SQLite:////srv/x.db", "is no file"),
        ("sqlite:////srv/a%0Ab.db", "has characters that a URI cannot name"),
    ],
)
def test_an_address_that_would_be_read_as_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match=reason) as caught:
        default_uri(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert sweeps("") == []


def test_a_folder_that_is_no_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb"))
    folder.mkdir()
    with pytest.raises(StoreError, match="has characters that a URI cannot name"):
        default_uri(folder)
    assert list(folder.iterdir()) == []


def test_an_escape_that_was_a_name_is_refused_where_that_can_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a%41").mkdir()
    with pytest.raises(
        StoreError, match=r"is read as .*/aA/mlflow.db, and there is no such folder; write %25"
    ):
        default_uri(tmp_path, f"sqlite:///{tmp_path}/a%41/mlflow.db")
    (tmp_path / "aA").mkdir()
    uri = default_uri(tmp_path, f"sqlite:///{tmp_path}/a%41/mlflow.db")
    assert sqlite_path(uri) == tmp_path / "aA" / "mlflow.db"


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / ("a" * 300) / "mlflow.db")
    with pytest.raises(StoreError, match="cannot be looked for: File name too long; set MLFLOW_TRACKING_URI"):
        store_exists(uri)
    with pytest.raises(StoreError, match="File name too long"):
        initialise(uri)
