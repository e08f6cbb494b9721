"""The file of a SQLite store: made aside and renamed, begun anew where it is half, else left alone."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import forked
import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base as Initial
from sqlalchemy import create_engine

from orchestrator import cli
from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.tracking import Tracker, has_store, initialise, open_store
from orchestrator.tracking.sqlite_store import create_if_missing

OLDER = "451aebb31d03"  # the first schema of MLflow, of 2019
UNKNOWN = "ffffffffffff"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


def address(file: Path) -> str:
    return f"sqlite:///{file}"


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def record(uri: str) -> None:
    """A run, as a sweep records one."""
    with Tracker(uri, "x").start("trial", "a name", tags={"key": "k"}):
        pass


def zero_bytes(file: Path) -> None:
    file.write_bytes(b"")


def no_tables(file: Path) -> None:
    change(file, "CREATE TABLE t (a)", "DROP TABLE t")


def first_tables(file: Path) -> None:
    engine = create_engine(address(file))
    Initial.metadata.create_all(engine)
    engine.dispose()


def no_revision(file: Path) -> None:
    first_tables(file)
    change(file, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")


def older_revision(file: Path) -> None:
    """What a process leaves that was killed after a migration made a table, and before it said so."""
    create_if_missing(address(file))
    change(file, f"UPDATE alembic_version SET version_num = '{OLDER}'", "DROP TABLE webhooks")


def no_table(file: Path) -> None:
    create_if_missing(address(file))
    change(file, "DROP TABLE trace_metrics")


HALVES = [zero_bytes, no_tables, first_tables, no_revision, older_revision, no_table]


# ---- one that is made


def test_a_new_store_is_whole_at_once_and_nothing_lies_beside_it(file: Path) -> None:
    uri = address(file)
    assert not has_store(uri)
    initialise(uri)
    assert has_store(uri)
    assert names(file.parent) == {"mlflow.db", ".mlflow.lock"}
    record(uri)
    assert open_store(uri).find_all_finished().keys() == {"k"}


def test_one_that_is_there_is_left_as_it_is(file: Path) -> None:
    initialise(address(file))
    record(address(file))
    before = digest(file)
    initialise(address(file))
    assert digest(file) == before


@pytest.mark.parametrize("leave", HALVES)
def test_a_half_made_one_without_runs_is_no_store_and_is_begun_anew(
    file: Path, leave: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    leave(file)
    os.utime(file, (1e9, 1e9))  # nobody is at work on it
    uri, before = address(file), digest(file)
    assert not has_store(uri)
    with pytest.raises(StoreError, match=r"there is no store at .*; `orchestrate sweep` makes one"):
        open_store(uri)
    assert digest(file) == before
    initialise(uri)
    record(uri)
    assert open_store(uri).find_all_finished().keys() == {"k"}
    if leave is zero_bytes:
        return
    assert digest(file.with_name("mlflow.db.unfinished")) == before
    assert capsys.readouterr().err == (
        f"the store {uri} was never completed, and holds no runs: a new one is created, "
        "and the old file is mlflow.db.unfinished\n"
    )


@pytest.mark.parametrize("leave", HALVES)
def test_who_only_looks_takes_a_half_made_one_for_none(
    tmp_path: Path,
    leave: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mlruns" / "mlflow.db"
    file.parent.mkdir()
    leave(file)
    before, there = digest(file), names(file.parent)
    monkeypatch.chdir(tmp_path)
    for words, code in ((["plan", "--space", "quickstart"], 0), (["status"], 4), (["doctor"], 0)):
        monkeypatch.setattr(sys, "argv", ["orchestrate", *words])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert raised.value.code == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert " to run, 0 in the store" in out
    assert f"sqlite:///{file}: there is none yet, the first sweep makes it" in out
    assert err == f"error: there is no store at sqlite:///{file}; `orchestrate sweep` makes one\n"
    assert (digest(file), names(file.parent)) == (before, there)


def with_run(file: Path, *statements: str) -> None:
    initialise(address(file))
    record(address(file))
    change(file, *statements)


def older_with_run(file: Path) -> None:
    with_run(file, f"UPDATE alembic_version SET version_num = '{OLDER}'")


def older_with_run_and_fewer_tables(file: Path) -> None:
    """MLflow by itself would migrate it, unasked."""
    with_run(file, f"UPDATE alembic_version SET version_num = '{OLDER}'", "DROP TABLE webhooks")


def table_lost(file: Path) -> None:
    with_run(file, "DROP TABLE trace_metrics")


def unknown_with_run(file: Path) -> None:
    with_run(file, f"UPDATE alembic_version SET version_num = '{UNKNOWN}'")


def unknown_without_run(file: Path) -> None:
    initialise(address(file))
    change(file, f"UPDATE alembic_version SET version_num = '{UNKNOWN}'")


def first_tables_with_run(file: Path) -> None:
    first_tables(file)
    change(file, "INSERT INTO runs (run_uuid, name) VALUES ('a', 'b')")


def of_something_else(file: Path) -> None:
    change(file, "CREATE TABLE customers (name)")


def of_something_with_migrations(file: Path) -> None:
    change(
        file,
        "CREATE TABLE studies (name)",
        "CREATE TABLE alembic_version (version_num)",
        "INSERT INTO alembic_version VALUES ('v3.0.0.d')",
    )


def text(file: Path) -> None:
    file.write_text("no database " * 1000)


OTHERS: dict[Callable[[Path], None], str] = {
    older_with_run: f"is of the schema {OLDER}, and MLflow .* wants \\w+; make a copy, then `mlflow db up",
    older_with_run_and_fewer_tables: f"is of the schema {OLDER}, and MLflow",
    table_lost: "lacks the table trace_metrics; restore the file from a copy",
    unknown_with_run: f"is of the schema {UNKNOWN}, which MLflow [\\d.]+ does not know; use the MLflow that",
    unknown_without_run: f"is of the schema {UNKNOWN}, which MLflow",
    first_tables_with_run: "is of the schema without a name, which MLflow",
    of_something_else: "is a database of something else; set MLFLOW_TRACKING_URI",
    of_something_with_migrations: "is a database of something else",
    text: "file is not a database; set MLFLOW_TRACKING_URI",
}


@pytest.mark.parametrize("leave", OTHERS)
def test_what_holds_anything_is_refused_in_one_line_and_not_touched(
    file: Path, leave: Callable[[Path], None]
) -> None:
    leave(file)
    os.utime(file, (1e9, 1e9))
    before, there = digest(file), names(file.parent) | {".mlflow.lock"}
    for use in (initialise, open_store):
        with pytest.raises(StoreError, match=OTHERS[leave]) as caught:
            use(address(file))
        assert "\n" not in str(caught.value)
    assert digest(file) == before
    assert names(file.parent) | {".mlflow.lock"} == there


def test_what_is_no_file_is_refused_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        for use in (initialise, open_store):
            with pytest.raises(StoreError, match="is no regular file"):
                use(address(tmp_path / name))


def test_a_journal_whose_file_is_gone_does_not_reach_the_new_one(file: Path) -> None:
    """SQLite would play it back into whatever bears that name."""
    for end in ("-journal", "-wal", "-shm"):
        file.with_name(f"mlflow.db{end}").write_bytes(b"of another file")
    initialise(address(file))
    record(address(file))
    assert file.with_name("mlflow.db.unfinished-journal").read_bytes() == b"of another file"
    assert open_store(address(file)).find_all_finished().keys() == {"k"}


def test_a_link_to_a_file_that_is_not_there_yet_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "mlflow.db"
    link.symlink_to(tmp_path / "disk" / "real.db")
    initialise(address(link))
    record(address(link))
    assert link.is_symlink()
    assert open_store(address(tmp_path / "disk" / "real.db")).find_all_finished().keys() == {"k"}
    assert names(tmp_path / "disk") == {"real.db", ".mlflow.lock"}


def test_what_killed_processes_left_aside_goes_with_the_next_start(file: Path) -> None:
    initialise(address(file))
    for name in (".mlflow.db.0123abcd.new", ".mlflow.db.0123abcd.new-journal"):
        (file.parent / name).write_bytes(b"half")
    (file.parent / ".other.db.0123abcd.new").write_bytes(b"another store's")
    initialise(address(file))
    assert names(file.parent) == {"mlflow.db", ".mlflow.lock", ".other.db.0123abcd.new"}


def test_one_that_another_program_is_making_right_now_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.sqlite_store.QUIET_SECONDS", 0.5)
    first_tables(file)
    began = time.time()
    initialise(address(file))
    assert time.time() - began >= 0.4


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(DiskFullError, match="no room is left for the store"):
            initialise(address(disk / "mlflow.db"))
        assert names(disk) <= {".mlflow.lock"}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# ---- a database that is no SQLite file: by this form of an address, one stands for it


def test_a_database_without_tables_is_made_by_a_sweep_alone(file: Path) -> None:
    uri = f"sqlite+pysqlite:///{file}"
    file.touch()
    with pytest.raises(StoreError, match="there is no store at"):
        open_store(uri)
    assert digest(file) == hashlib.sha256(b"").hexdigest()
    initialise(uri)
    record(uri)
    assert open_store(uri).find_all_finished().keys() == {"k"}


@pytest.mark.parametrize("leave", [older_with_run_and_fewer_tables, unknown_with_run, of_something_else])
def test_a_database_is_never_migrated_either(file: Path, leave: Callable[[Path], None]) -> None:
    leave(file)
    before = digest(file)
    for use in (initialise, open_store):
        with pytest.raises(StoreError, match=OTHERS[leave]):
            use(f"sqlite+pysqlite:///{file}")
    assert digest(file) == before


def test_a_file_that_is_locked_as_it_is_opened_is_away(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a worker goes on, and its result waits; what is refused would fail it."""
    monkeypatch.setattr("orchestrator.tracking.sqlite_store.BUSY_SECONDS", 0.1)
    initialise(address(file))
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError, match="database is locked"):
            open_store(address(file))
        holder.rollback()
    file.rename(file.with_name("elsewhere"))  # as if its disk were not mounted
    with pytest.raises(StoreUnavailableError, match="there is no store"):
        open_store(address(file))


# ---- kill -9


def tables(file: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=0)) as connection:
            return len(connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchall())
    except sqlite3.Error:
        return 0


def killed(function: Callable[[str], object], uri: str, until: Callable[[], bool]) -> None:
    process = forked.start(function, uri)
    while process.is_alive() and not until():
        time.sleep(0.002)
    process.kill()
    process.join()


# Numbers of tables, of the 65 that there are at last; three of them drawn.
MOMENTS = (1, 4, 11, 17, 30, 44, 63, *random.Random(12).sample(range(2, 64), 3))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_that_is_killed_while_it_makes_a_store_leaves_none(file: Path, moment: int) -> None:
    uri = address(file)
    killed(
        initialise,
        uri,
        lambda: any(tables(aside) >= moment for aside in file.parent.glob(".mlflow.db.*.new")),
    )
    assert not file.exists()
    with pytest.raises(StoreError, match="there is no store"):
        open_store(uri)
    initialise(uri)
    record(uri)
    assert names(file.parent) >= {"mlflow.db"}
    assert not list(file.parent.glob(".mlflow.db*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_older_versions_left_when_they_were_killed_is_begun_anew(file: Path, moment: int) -> None:
    uri = address(file)
    killed(MlflowClient, uri, lambda: tables(file) >= moment)  # as it was made before: in place
    assert file.exists()
    initialise(uri)
    record(uri)
    assert open_store(uri).find_all_finished().keys() == {"k"}


@pytest.mark.slow
def test_four_processes_that_begin_at_once_share_one_store(file: Path) -> None:
    file.write_bytes(b"")
    all_of_them = [forked.start(initialise, address(file)) for _ in range(4)]
    for process in all_of_them:
        process.join(240)
    assert [process.exitcode for process in all_of_them] == [0] * 4
    assert names(file.parent) == {"mlflow.db", ".mlflow.lock"}
    record(address(file))
