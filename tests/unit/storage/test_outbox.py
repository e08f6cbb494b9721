"""Parcels: whole or not there, held by one process at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import DiskFullError
from orchestrator.storage import outbox as outbox_module
from orchestrator.storage.locks import owner
from orchestrator.storage.outbox import (
    LOCK,
    PARTIAL,
    RUN,
    DataInput,
    Outbox,
    PendingRun,
    RunEnd,
    RunStart,
    new_pending_id,
)
from orchestrator.storage.uri import outbox_folder
from orchestrator.system import files
from orchestrator.tracking import MetricPoint

KEY = "0123456789abcdef" * 4
RUN_START = RunStart(
    "an experiment",
    "trial",
    "weight 0.5",
    "a sweep",
    KEY,
    {"point": KEY},
    {"amount": 0.5, "recover": "none", "n": None, "big": 2**60, "on": True},
    DataInput("digits", "d" * 64, {"train": 1257}),
    1_700_000_000_000,
)
RUN_END = RunEnd(
    "FINISHED",
    1_700_000_001_000,
    {"manifest_sha256": "m"},
    (MetricPoint("final/accuracy", 0.1 + 0.2), MetricPoint("train/loss", 1e-300, 3)),
    KEY,
    ("a run",),
)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "out")


def fill(folder: Path) -> RunEnd:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"\x00\x01")
    (folder / "layers.json").write_text("{}")
    return RUN_END


def pack(outbox: Outbox, run_start: RunStart = RUN_START, *, begun: bool = False) -> PendingRun:
    with outbox.write(new_pending_id(run_start.point), run_start, fill, params_logged=begun) as pending_run:
        return pending_run


def dead_owner() -> str:
    code = "from orchestrator.storage.locks import owner; print(owner())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_parcel_comes_back_as_it_was(outbox: Outbox) -> None:
    pending_run = pack(outbox, begun=True)
    assert outbox.pending_runs() == [pending_run]
    assert (pending_run.start, pending_run.end, pending_run.params_logged) == (RUN_START, RUN_END, True)
    assert pending_run.final_metrics == {"final/accuracy": 0.1 + 0.2}
    assert (pending_run.files / "model" / "weights").read_bytes() == b"\x00\x01"
    outbox.remove(pending_run)
    assert outbox.pending_runs() == []
    assert list(outbox.folder.iterdir()) == []


def test_dense_networks_come_first(outbox: Outbox) -> None:
    kinds = ["trial", "dense", "trial", "dense"]
    for number, kind in enumerate(kinds):
        pack(outbox, replace(RUN_START, kind=kind, point=f"{number}" * 64))
    assert [pending_run.start.kind for pending_run in outbox.pending_runs()] == sorted(kinds)


def test_a_point_is_found_by_its_key_and_not_by_the_start_of_it(outbox: Outbox) -> None:
    other = KEY[:16] + "f" * 48  # the same first letters
    pack(outbox, replace(RUN_START, point=other))
    pending_run = outbox.find_task_result(KEY)
    assert pending_run is not None
    assert pending_run.end.key == KEY
    assert outbox.find_task_result(other) is None


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


HARM = {
    "change": "model/weights is not as it was written",
    "remove": "model/weights is missing",
    "cut": "Unterminated string",
    "empty": "Expecting value",
    "new field": "unexpected keyword argument 'host'",
    "renamed field": "KeyError: 'closing'",
    "other form": "AttributeError",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_run_that_cannot_be_read_is_kept_and_is_not_pending(
    outbox: Outbox, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a machine that was switched off can leave, or a newer version writes."""
    whole, harmed = pack(outbox), pack(outbox, replace(RUN_START, point="e" * 64))
    weights, run = harmed.files / "model" / "weights", harmed.folder / RUN
    if harm == "change":
        weights.write_bytes(b"\x00\x02")
    elif harm == "remove":
        weights.unlink()
    elif harm == "cut":
        run.write_text(run.read_text()[:-20])
    elif harm == "empty":
        run.write_text("")
    else:
        content = json.loads(run.read_text())
        if harm == "new field":
            content["closing"]["host"] = "a"
        elif harm == "renamed field":
            content["end"] = content.pop("closing")
        else:
            content["files"] = list(content["files"])
        run.write_text(json.dumps(content))
    written = contents(harmed.folder)
    assert outbox.pending_runs() == [whole]
    (line,) = capsys.readouterr().err.splitlines()
    aside = harmed.folder.with_name(f"{harmed.folder.name}.unreadable")
    assert HARM[harm] in line
    assert f"is kept in {aside};" in line
    assert "`orchestrate deliver`" in line
    assert contents(aside) == written
    # It is not looked at again, by whatever way.
    assert not harmed.folder.exists()
    assert (outbox.pending_runs(), outbox.count()) == ([whole], 1)
    assert outbox.find_task_result("e" * 64) is None
    assert outbox.unreadable_runs() == [aside]
    assert capsys.readouterr().err == ""


def test_a_run_that_cannot_be_read_is_kept_when_it_is_searched_for(outbox: Outbox) -> None:
    harmed = pack(outbox)
    (harmed.folder / RUN).write_text("{}")
    assert outbox.find_task_result(KEY) is None
    (aside,) = outbox.unreadable_runs()
    shutil.copytree(aside, harmed.folder)  # by somebody who tries it again
    assert outbox.find_task_result(KEY) is None
    assert len(outbox.unreadable_runs()) == 2
    assert outbox.count() == 0


def test_a_run_that_another_version_is_delivering_is_left_to_it(outbox: Outbox) -> None:
    with outbox.write(new_pending_id(KEY), RUN_START, fill, params_logged=False) as pending_run:
        (pending_run.folder / RUN).write_text("{}")
        assert outbox.pending_runs() == []
        assert pending_run.folder.exists()
    assert outbox.unreadable_runs() == []


def test_a_run_without_a_run_file_is_removed(outbox: Outbox) -> None:
    harmed = pack(outbox)
    (harmed.folder / RUN).unlink()
    assert outbox.pending_runs() == []
    assert list(outbox.folder.iterdir()) == []


def test_what_a_dead_process_left_half_done_goes_and_a_living_one_s_stays(outbox: Outbox) -> None:
    for name in (f"{PARTIAL}{dead_owner()} 1", f"{PARTIAL}{owner()} 2", f"{PARTIAL}another-host 1 2.0 3"):
        (outbox.folder / name / "artifacts").mkdir(parents=True)
    assert outbox.pending_runs() == []
    left = sorted(path.name for path in outbox.folder.iterdir())
    assert left == sorted([f"{PARTIAL}{owner()} 2", f"{PARTIAL}another-host 1 2.0 3"])


HOLD = """
import sys
from pathlib import Path
from orchestrator.storage.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
(pending_run,) = outbox.pending_runs()
with outbox.locked(pending_run) as is_locked:
    print(is_locked, flush=True)
    sys.stdin.readline()
"""


def test_one_process_holds_a_parcel(outbox: Outbox) -> None:
    pending_run = pack(outbox)
    command = [sys.executable, "-c", HOLD, str(outbox.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with outbox.locked(pending_run) as is_locked:
            assert not is_locked
        other.kill()
    with outbox.locked(pending_run) as is_locked:  # a dead process holds nothing
        assert is_locked
    outbox.remove(pending_run)
    with outbox.locked(pending_run) as is_locked:
        assert not is_locked


def test_who_packs_holds_from_the_start(outbox: Outbox) -> None:
    with outbox.write(new_pending_id(KEY), RUN_START, fill, params_logged=False) as pending_run:
        code = HOLD.replace("sys.stdin.readline()", "pass")
        completed = subprocess.run(
            [sys.executable, "-c", code, str(outbox.folder)], capture_output=True, text=True, check=True
        )
        assert completed.stdout == "False\n"
    with outbox.locked(pending_run) as is_locked:
        assert is_locked


def test_a_full_disk_leaves_nothing(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="no room is left in"):
        pack(outbox)
    assert list(outbox.folder.iterdir()) == []


@pytest.mark.parametrize("number", [28, 122])  # ENOSPC, EDQUOT
def test_a_full_disk_or_quota_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(number, "no more")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match=f"no room is left in {tmp_path}: no more"):
        files.write_file(tmp_path / "a", "text")


def test_another_error_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_file(tmp_path / "nowhere" / "a", "text")


def test_where_results_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outbox_folder("sqlite:////srv/a.db") == Path("/srv/.outbox/a.db")
    assert outbox_folder("sqlite:////srv/b.db") == Path("/srv/.outbox/b.db")
    monkeypatch.setenv("ORCHESTRATE_STATE_DIR", str(tmp_path))
    folder = outbox_folder("http://me:secret@host:5000")
    assert folder.parent == tmp_path / "outbox"
    assert "secret" not in str(folder)
    assert folder == outbox_folder("http://me:another@host:5000")  # who changes a password finds it again
    assert folder != outbox_folder("http://me:secret@host:5001")
    assert outbox_folder("http://host", "/chosen").parent == Path("/chosen/outbox")
    monkeypatch.delenv("ORCHESTRATE_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert outbox_folder("http://host").parent == tmp_path / "state" / "orchestrate" / "outbox"


def test_a_run_file_holds_no_secret(outbox: Outbox) -> None:
    content = json.loads((pack(outbox).folder / RUN).read_text())
    assert content.keys() == {"opening", "closing", "begun", "files"}


def test_loading_another_folder_is_none(tmp_path: Path) -> None:
    assert outbox_module.load_pending_run(tmp_path) is None
