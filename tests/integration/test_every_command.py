"""Every command at a store that is away, of another schema, or read-only: one line, exit 4, and no secret."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import forked
import pytest
import typer
from whole_sweep import NAME, SETS, record_sweep

import orchestrator
from orchestrator import cli
from orchestrator.cli import completion
from orchestrator.errors import StoreError
from orchestrator.storage.outbox import DataInput, Outbox, RunEnd, RunStart, new_pending_id
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import breaker_for

RUN = "0123456789abcdef" * 2
SPACE = ["--space", NAME, *(word for item in SETS for word in ("--set", item))]
SMALL = [*SPACE[:-1], "model=mlp(widths=[8])"]
COMMANDS = {
    "plan": ["plan", *SPACE],
    "plan --from": ["plan", *SPACE, "--from", RUN],
    "sweep": ["sweep", *SMALL],
    "sweep --latency": ["sweep", *SMALL, "--latency"],
    "sweep --from": ["sweep", *SPACE, "--from", "models:/a@b"],
    "status": ["status"],
    "status SWEEP": ["status", NAME, "--json"],
    "deliver": ["deliver"],
    "deliver --json": ["deliver", "--json"],
    "rerun": ["rerun", RUN, "--check"],
    "compare": ["compare", NAME, RUN],
    "compare --json": ["compare", NAME, "--json"],
    "report": ["report", NAME],
    "figure": ["figure", NAME, "--out", "figure.svg"],
    "sensitivity": ["sensitivity", NAME, "--out", "picture.svg"],
    "cite": ["cite", NAME],
    "bundle": ["bundle", NAME],
    "watch": ["watch", NAME],
    "latency": ["latency", NAME],
    "bench": ["bench", RUN],
    "ui": ["ui"],
    "compress": ["compress", "--model", "slp", "--data", "digits", "--budget", "macs<=50%"],
    "export": ["export", RUN, "--format", "pt2"],
    "export models:": ["export", "models:/a/1", "--format", "onnx"],
    "register": ["register", RUN, "--name", "x"],
}
WITHOUT_STORE = {"init", "list", "show", "data"}
SECRET = "hunter2x"
DEAD = {
    "http://bob:hunter2x@127.0.0.1:1": "http://***@127.0.0.1:1",
    "http://bob:hunter%32x@127.0.0.1:1": "http://***@127.0.0.1:1",
    "http://127.0.0.1:1?token=hunter2x": "http://127.0.0.1:1?token=***",
    "http://127.0.0.1:1/?a=1&api%5Fkey=hunter2x": "http://127.0.0.1:1/?a=1&api%5Fkey=***",
    "postgresql://bob:hunter2x@127.0.0.1:1/db": "postgresql://***@127.0.0.1:1/db",
}
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A command's exit code, stdout and stderr."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("ORCHESTRATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("ORCHESTRATE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrate", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as raised:
            cli.main()
        return raised.value.code, *capfd.readouterr()

    yield call
    os.environ.pop("ORCHESTRATE_DEBUG", None)
    for uri in DEAD:
        breaker_for(uri).reset()


def leave_waiting(uri: str) -> None:
    """A result for the store, of which `deliver` has to know."""
    data = DataInput("digits", "d" * 64, {"train": 1257})
    opening = RunStart("x", "trial", "a run", RUN, "k", {"point": "k"}, {}, data, 1_000_000)
    with Outbox(outbox_folder(uri)).write(
        new_pending_id("k"),
        opening,
        lambda folder: RunEnd("FINISHED", 2_000_000, {}, (), "k"),
        params_logged=False,
    ):
        pass


def test_no_command_is_forgotten_here() -> None:
    command = typer.main.get_command(cli.app)
    names = {words[0] for words in COMMANDS.values()} | WITHOUT_STORE | {"doctor"}
    assert set(command.commands) == names  # type: ignore[attr-defined]  # a group's


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("uri", DEAD)
def test_a_store_that_is_away_is_one_line_without_its_secrets(
    run: Run, monkeypatch: pytest.MonkeyPatch, uri: str, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    leave_waiting(uri)
    code, out, err = run(*COMMANDS[name])
    assert code == 4, err
    assert out == ""
    assert err.startswith(f"error: the store {DEAD[uri]} cannot be "), err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert "bob" not in err
    if name.startswith("deliver"):
        assert f"1 result waits in {outbox_folder(uri)}" in err
        assert len(Outbox(outbox_folder(uri)).pending_runs()) == 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("uri", [*DEAD][::2])
def test_its_traceback_under_debug_has_no_secret_either(
    run: Run, monkeypatch: pytest.MonkeyPatch, uri: str, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    leave_waiting(uri)
    code, out, err = run("--debug", *COMMANDS[name])
    assert code == 4
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith(f"error: the store {DEAD[uri]} cannot be "), err
    assert SECRET not in out + err
    assert "bob" not in out + err


def test_a_bug_has_a_traceback_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:hunter2x@127.0.0.1:1")

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("no such header: 'Authorization': 'Basic Ym9iOmh1bnRlcjJ4', of bob:hunter2x")

    monkeypatch.setattr("orchestrator.execution.status.status", broken)
    code, out, err = run("status")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert "RuntimeError: no such header: 'Authorization': ***" in err
    assert SECRET not in err
    assert "Ym9iOmh1bnRlcjJ4" not in err


@pytest.mark.parametrize("uri", DEAD)
def test_the_doctor_and_python_tell_none(run: Run, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, out, err = run("doctor", "--json")
    assert code == 4
    (store,) = (item for item in json.loads(out)["findings"] if item["name"] == "store")
    assert store["state"] == "broken"
    assert store["found"].startswith(f"{DEAD[uri]}: ")
    assert SECRET not in out + err
    assert "bob" not in out + err
    for call in (
        lambda: orchestrator.results(NAME),
        lambda: orchestrator.rounds(NAME, uri=uri),
        lambda: orchestrator.load(RUN),
    ):
        with pytest.raises(StoreError, match="cannot be") as caught:
            call()
        assert SECRET not in str(caught.value)
    assert completion.sweeps("") == []


# ---- a store of another schema


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a finished sweep, and the id of a trial's run."""
    folder = tmp_path_factory.mktemp("recorded")
    return folder, record_sweep(default_uri(folder), folder / "state")


@pytest.mark.parametrize("revision", ["451aebb31d03", "ffffffffffff"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_store_of_another_schema_is_one_line_and_not_migrated(
    run: Run, tmp_path: Path, recorded: tuple[Path, str], name: str, revision: str
) -> None:
    file = tmp_path / "mlruns" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(recorded[0] / "mlruns" / "mlflow.db", file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
        connection.execute("DROP TABLE webhooks")  # which older ones have not: MLflow would migrate
        connection.commit()
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    leave_waiting(default_uri(tmp_path))
    code, out, err = run(*COMMANDS[name])
    assert (code, out) == (4, ""), err
    assert err.startswith(f"error: the store sqlite:///{file} is of the schema {revision}, ")
    assert err.count("\n") == 1
    assert ("mlflow db upgrade" in err) == (revision == "451aebb31d03")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert len(Outbox(outbox_folder(default_uri(tmp_path))).pending_runs()) == 1


# ---- a store that cannot be written

READERS = """
import ctypes, struct, sys, os
nothing = struct.pack("6I", 0, 0, 0, 0, 0, 0)  # of what root may do beside what permissions of files say
assert ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), nothing) == 0
from orchestrator import cli
import orchestrator
for folder, run, commands in {stores!r}:
    os.chdir(folder)
    print("STORE", folder, flush=True)
    print("STORE", folder, file=sys.stderr, flush=True)
    for words in commands:
        sys.argv = ["orchestrate", *words]
        try:
            cli.main()
        except SystemExit as leaving:
            print("EXIT", leaving.code or 0, *words, flush=True)
    print("PYTHON", orchestrator.load(run)[1].run_id, len(orchestrator.results({name!r})), flush=True)
"""
READ_ONLY = ("plain", "of? %41 #")


@dataclass(frozen=True)
class ReadOnly:
    """A store in a folder that nobody may write, and what the commands print there."""

    folder: Path
    reports: Path
    trial: str
    before: list[Path]
    out: str
    err: str


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReadOnly]:
    """One process asks all of them: its imports take longer than its commands."""
    scratch = tmp_path_factory.mktemp("read-only")
    stores, asked = {}, []
    for name in READ_ONLY:
        folder, out = scratch / name, scratch / "out" / name
        folder.mkdir()
        out.mkdir(parents=True)
        trial = record_sweep(default_uri(folder), scratch / "state")
        for path in (*folder.rglob(".*lock"), *folder.rglob(".outbox")):
            path.unlink() if path.is_file() else shutil.rmtree(path)
        before = sorted(folder.rglob("*"))
        for path in (folder, *before):
            path.chmod(0o555 if path.is_dir() else 0o444)
        stores[name] = ReadOnly(folder, out, trial, before, "", "")
        asked.append((str(folder), trial, read_only_commands(trial, out)))
    code = READERS.format(stores=asked, name=NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = forked.python(code, cwd=scratch, ORCHESTRATE_STATE_DIR=str(scratch / "state"))
    assert done.returncode == 0, done.stdout + done.stderr
    texts = ([part for part in text.split("STORE ") if part] for text in (done.stdout, done.stderr))
    return {
        name: replace(stores[name], out=out, err=err)
        for name, out, err in zip(READ_ONLY, *texts, strict=True)
    }


def read_only_commands(trial: str, out: Path) -> list[list[str]]:
    return [
        ["status"],
        ["compare", NAME],
        ["compare", trial, "--csv"],
        ["report", NAME, "--out", str(out / "report.html")],
        ["cite", NAME],
        ["bundle", NAME, "--out", str(out / "sweep.zip")],
        ["plan", *SPACE],
        ["export", trial, "--format", "safetensors", "--out", str(out)],
        ["deliver"],
        ["sweep", *SMALL],
        ["latency", NAME, "--seconds-each", "0.01"],
        ["register", trial, "--name", "x"],
    ]


@pytest.mark.parametrize("folder", READ_ONLY)
def test_a_read_only_store_is_read_without_a_lock_and_a_sweep_says_that_it_cannot_be_written(
    read_only: dict[str, ReadOnly], folder: str
) -> None:
    store = read_only[folder]
    exits = {line.split()[2]: int(line.split()[1]) for line in store.out.splitlines() if line[:5] == "EXIT "}
    readers = dict.fromkeys(("status", "compare", "report", "cite", "bundle", "plan", "export", "deliver"), 0)
    assert exits == {**readers, "sweep": 4, "latency": 4, "register": 4}, store.out + store.err
    assert f"PYTHON {store.trial} 2" in store.out
    errors = [line for line in store.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert all(" cannot be written: " in line and "read-only here; ask its owner" in line for line in errors)
    assert "Traceback" not in store.err
    assert (store.reports / "report.html").exists()
    assert (store.reports / "sweep.zip").exists()
    assert sorted(store.folder.rglob("*")) == store.before
