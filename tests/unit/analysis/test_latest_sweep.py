"""Which sweep a space's name means, where the latest failed to start; in real stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.analysis.results import find_sweep, results
from orchestrator.execution.status import status
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker, initialise

ROWS = [{"key": "k", "dense_key": "d", "seed": 0, "schedule.p": "0.5", "amount": 0.5}]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    """A space with one good sweep."""
    uri = default_uri(tmp_path)
    initialise(uri)
    tracker = Tracker(uri, "space")
    good = tracker.start("sweep", "space", tags={"space": "space"})
    tracker.upload(good.run_id, {PLAN: dump_plan(ROWS)})
    trial = tracker.start("trial", "trial", parent=good.run_id, tags={"key": "k", "point": "k"})
    tracker.client.log_metric(trial.run_id, "final/val_accuracy", 0.9)
    tracker.client.set_terminated(trial.run_id, "FINISHED")
    tracker.client.set_terminated(good.run_id, "FINISHED")
    return tracker


def good(tracker: Tracker) -> str:
    return tracker.search("tags.kind = 'sweep'")[-1].run_id


def test_a_sweep_that_failed_before_its_plan_does_not_hide_the_last_good_one(
    tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = tracker.start("sweep", "space", tags={"space": "space"})
    tracker.close(failed.run_id, "no device", status="FAILED")
    assert find_sweep(tracker, "space").run_id == good(tracker) != failed.run_id
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert failed.run_id in said
    assert "failed to start" in said
    assert list(results("space", uri=tracker.uri)["status"]) == ["finished"]
    assert status("space", uri=tracker.uri).sweep == good(tracker)
    assert status(uri=tracker.uri).sweep == good(tracker)


def test_nor_does_one_that_planned_other_trials_and_ran_none(tracker: Tracker) -> None:
    failed = tracker.start("sweep", "space", tags={"space": "space"})
    tracker.upload(failed.run_id, {PLAN: dump_plan([{**ROWS[0], "key": "other", "dense_key": "e"}])})
    tracker.close(failed.run_id, "no Ray", status="FAILED")
    assert find_sweep(tracker, "space").run_id == good(tracker)
    # Its plan can be shown, and so `status` shows it.
    assert status("space", uri=tracker.uri).sweep == failed.run_id


def test_an_interrupted_sweep_with_results_is_the_latest(
    tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tracker.start("sweep", "space", tags={"space": "space"})
    tracker.upload(later.run_id, {PLAN: dump_plan([*ROWS, {**ROWS[0], "key": "other"}])})
    tracker.close(later.run_id, "interrupted")
    assert find_sweep(tracker, "space").run_id == later.run_id
    assert capsys.readouterr().err == ""


def test_a_run_id_means_that_run_whatever_came_of_it(tracker: Tracker) -> None:
    failed = tracker.start("sweep", "space", tags={"space": "space"})
    tracker.close(failed.run_id, "no device", status="FAILED")
    assert find_sweep(tracker, failed.run_id).run_id == failed.run_id


def test_columns_of_options_select_by_number(tracker: Tracker) -> None:
    frame = results("space", uri=tracker.uri)
    assert len(frame[frame["schedule.p"] == 0.5]) == 1
    assert (frame["amount"].dtype, frame["seed"].dtype) == ("float64", "int64")
