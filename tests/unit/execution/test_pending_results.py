"""`orchestrate deliver`: results that waited come to the store by themselves, and their sweep to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import forked
import pytest
from whole_sweep import NAME, NOBODY, TRIALS, Begun, begin

from orchestrator import cli
from orchestrator.analysis.results import results
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.execution.pending_results import deliver_late
from orchestrator.planning.plan_file import PLAN
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.runs import PICTURE, REPORT, TABLES
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import NOTE, RunRecord, initialise

OWNER = "from orchestrator.storage.locks import owner; print(owner())"


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return begin(default_uri(tmp_path))


@cache
def dead_owner() -> str:
    return subprocess.run([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True).stdout.strip()


def abandon(begun: Begun) -> None:
    """As if the process that ran the sweep had ended, and could not say so."""
    begun.tracker.set_tag(begun.run.run_id, "owner", dead_owner())


def sweep(begun: Begun) -> RunRecord:
    return begun.tracker.get_run(begun.run.run_id)


def waiting(uri: str) -> int:
    return len(Outbox(outbox_folder(uri)).pending_runs())


def test_all_that_waits_is_delivered_and_the_sweep_is_finished_as_by_the_next_one(
    begun: Begun, tmp_path: Path
) -> None:
    begun.leave_waiting(tmp_path / "state")
    abandon(begun)
    assert waiting(begun.uri) == TRIALS + 1
    delivered = deliver_late(begun.uri)
    assert waiting(begun.uri) == 0
    assert delivered.runs == TRIALS + 1
    assert list(delivered.lines()) == [
        f"{NAME}: 2 trials and 1 dense trainings delivered; the sweep is finished  {begun.run.run_id}"
    ]
    row, tracker = sweep(begun), begun.tracker
    assert row.status == "FINISHED"
    assert row.metrics["sweep/done"] == TRIALS
    assert row.params["amount"] == "0.0, 0.5"
    assert row.params["seed"] == "0"
    assert "no retraining" in row.tags[NOTE]  # what the space says of itself
    for name in (PICTURE, TABLES, REPORT):
        assert tracker.has_artifact(row, name)
    assert list(results(NAME, uri=begun.uri)["status"]) == ["finished"] * TRIALS
    assert tracker.search("attributes.status = 'RUNNING'") == []


def test_trials_that_are_missing_are_left_to_the_next_sweep(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state", begun.points[:2])
    abandon(begun)
    delivered = deliver_late(begun.uri)
    (line,) = delivered.lines()
    assert line.startswith(
        f"{NAME}: 1 trials and 1 dense trainings delivered; "
        "1 trials are missing, which the same `orchestrate sweep` runs"
    )
    assert sweep(begun).status == "KILLED"
    assert sweep(begun).metrics["sweep/missing"] == 1


def test_a_sweep_that_lacks_its_end_alone_is_finished_too(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state")
    deliver_with_the_sweep_at_work = deliver_late(begun.uri)
    assert [item.state for item in deliver_with_the_sweep_at_work.sweeps] == ["finished"]
    begun.tracker.client.update_run(begun.run.run_id, "RUNNING")
    abandon(begun)
    (line,) = deliver_late(begun.uri).lines()
    assert line.startswith(f"{NAME}: 0 trials and 0 dense trainings delivered; the sweep is finished")
    assert sweep(begun).status == "FINISHED"
    assert deliver_late(begun.uri).sweeps == ()


def test_a_sweep_that_is_at_work_finishes_itself(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state")
    code = f"{OWNER}; import sys; sys.stdout.flush(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout is not None
        begun.tracker.set_tag(begun.run.run_id, "owner", other.stdout.readline().strip())
        (line,) = deliver_late(begun.uri).lines()
        other.communicate("\n")
    assert "the sweep is running, and finishes its run itself" in line
    assert sweep(begun).status == "RUNNING"
    assert waiting(begun.uri) == 0


def test_a_sweep_whose_run_was_deleted_gets_no_new_one(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state")
    begun.tracker.client.delete_run(begun.run.run_id)
    (line,) = deliver_late(begun.uri).lines()
    assert "the run of the sweep is not in the store" in line
    assert begun.tracker.search("tags.kind = 'sweep'") == []
    assert len(begun.tracker.find_all_finished()) == TRIALS + 1


def test_without_its_space_a_sweep_still_gets_its_tables(begun: Begun, tmp_path: Path) -> None:
    begun.tracker.replace_text(sweep(begun), "space.yaml", "version: 9\n")
    begun.leave_waiting(tmp_path / "state")
    abandon(begun)
    deliver_late(begun.uri)
    assert sweep(begun).status == "FINISHED"
    assert begun.tracker.has_artifact(sweep(begun), TABLES)


def test_nothing_waiting_is_said_and_no_store_is_made_for_it(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    assert list(deliver_late(uri).lines()) == [f"nothing waits for the store {uri}"]
    assert list(deliver_late(NOBODY).lines()) == [f"nothing waits for the store {NOBODY}"]
    assert not (tmp_path / "mlruns").exists()


def test_a_store_that_is_away_loses_nothing(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun.leave_waiting(tmp_path / "state")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("ORCHESTRATE_STATE_DIR", str(tmp_path / "state"))
    there = outbox_folder(NOBODY)
    there.parent.mkdir(parents=True, exist_ok=True)
    outbox_folder(begun.uri).rename(there)
    with pytest.raises(StoreError, match=rf"cannot be used: .*; 3 results wait in {there}$"):
        deliver_late(NOBODY)
    assert waiting(NOBODY) == TRIALS + 1


def test_what_another_process_is_delivering_is_waited_for(
    begun: Begun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.leave_waiting(tmp_path / "state")
    abandon(begun)
    outbox = Outbox(outbox_folder(begun.uri))
    first, *_ = outbox.pending_runs()
    done: list[int] = []
    with outbox.locked(first):
        thread = threading.Thread(target=lambda: done.append(deliver_late(begun.uri).runs))
        thread.start()
        time.sleep(4)
        assert done == []
    thread.join(60)
    assert done == [TRIALS + 1]
    assert capsys.readouterr().err == "another process is delivering 1 results; waiting for it\n"


def test_one_that_never_ends_is_told(begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.execution.pending_results.HELD_SECONDS", 0.5)
    begun.leave_waiting(tmp_path / "state")
    outbox = Outbox(outbox_folder(begun.uri))
    with (
        outbox.locked(outbox.pending_runs()[0]),
        pytest.raises(StoreUnavailableError, match="another process has been deliv"),
    ):
        deliver_late(begun.uri)
    assert waiting(begun.uri) == 1


def test_what_the_store_refuses_still_waits_and_ends_with_exit_code_4(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.leave_waiting(tmp_path / "state")
    abandon(begun)
    (trial, *_) = [p for p in Outbox(outbox_folder(begun.uri)).pending_runs() if p.start.kind == "trial"]
    file = trial.folder / "run.json"
    content = json.loads(file.read_text())
    content["closing"]["metrics"][0]["name"] = "no@name%of a metric"
    file.write_text(json.dumps(content))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", begun.uri)
    monkeypatch.setattr(sys, "argv", ["orchestrate", "deliver", "--json"])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 4
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["store"] == begun.uri
    assert told["delivered"] == 2
    assert [*told["refused"]] == [trial.start.name]
    assert [(item["state"], item["missing"]) for item in told["sweeps"]] == [("interrupted", 1)]
    assert f"error: 1 result waits in {outbox_folder(begun.uri)} still; {trial.start.name}: " in err
    assert waiting(begun.uri) == 1


def test_two_at_once_deliver_everything_once(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state")
    abandon(begun)
    command = ("deliver", "--json")
    with ThreadPoolExecutor() as pool:
        both = [
            pool.submit(forked.orchestrate, *command, cwd=tmp_path, MLFLOW_TRACKING_URI=begun.uri)
            for _ in range(2)
        ]
    told = [future.result() for future in both]
    assert [done.returncode for done in told] == [0, 0], told
    assert sum(json.loads(done.stdout)["delivered"] for done in told) == TRIALS + 1
    assert sweep(begun).status == "FINISHED"
    rows = begun.tracker.search("tags.point LIKE '_%'")
    assert len(rows) == TRIALS + 1
    assert all("duplicate_of" not in row.tags for row in rows)


def test_the_folder_of_what_waits_is_its_owners_alone(begun: Begun, tmp_path: Path) -> None:
    begun.leave_waiting(tmp_path / "state")
    assert outbox_folder(begun.uri).stat().st_mode & 0o777 == 0o700
    outbox_folder(begun.uri).chmod(0o755)  # as older versions left it
    outbox = Outbox(outbox_folder(begun.uri))
    parcel = outbox.pending_runs()[0]
    with outbox.write("x-1", parcel.start, lambda folder: parcel.end, params_logged=False):
        assert outbox.folder.stat().st_mode & 0o777 == 0o700


def test_a_store_that_was_never_made_is_made_for_what_waits(begun: Begun, tmp_path: Path) -> None:
    """Its file was deleted, and the results beside it were not."""
    begun.leave_waiting(tmp_path / "state")
    other = default_uri(tmp_path / "other")
    outbox_folder(other).parent.mkdir(parents=True)
    outbox_folder(begun.uri).rename(outbox_folder(other))
    delivered = deliver_late(other)
    assert delivered.runs == TRIALS + 1
    assert [item.state for item in delivered.sweeps] == ["gone"]
    initialise(other)
    assert begun.tracker.read_text(sweep(begun), PLAN)
