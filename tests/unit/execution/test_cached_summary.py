"""A sweep of which nothing is left to do is answered from the store alone, and only where that is sure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import forked
import pytest
from recorded import Store

from orchestrator.execution import cached_summary as module
from orchestrator.execution.cached_summary import (
    REQUEST_SHA256,
    SweepRequest,
    cached_summary,
    read_request,
    request_of,
)
from orchestrator.execution.options import SweepOptions
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.space.space import load_space
from orchestrator.storage.runs import LAST_ASKED, newest_first
from orchestrator.storage.uri import outbox_folder
from orchestrator.tracking import Tracker

ROOT = Path(__file__).parents[3]
REQUEST = SweepRequest("tiny", "version: 1", (), "cpu", "fp32", None)
SWEEP = """\
version: 1
axes: {model: [slp], dataset: [digits], technique: [weight], amount: [0.3, 0.6]}
train: {epochs: 1}
"""
HEAVY = ("torch", "ray", "mlflow", "fvcore", "optuna", "matplotlib", "sklearn", "scipy.stats")
AS_TYPED = f"""\
import sys
from orchestrator.cli import main
sys.argv = ["orchestrate", *sys.argv[1:]]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def test_what_is_read_is_what_a_sweep_asks_for(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_bytes(b"\xef\xbb\xbf" + SWEEP.encode())
    for space, sets in (("quickstart", ()), (str(tmp_path / "tiny.yaml"), ("seed=1,2",))):
        read = read_request(space, sets, SweepOptions("cpu", "bf16", stop="median"))
        found = load_space(space, sets)
        assert read == request_of(found, SweepOptions("cpu", "bf16", stop="median", retries=7))
    assert read_request(str(tmp_path / "none.yaml"), (), SweepOptions()) is None
    assert read_request(str(tmp_path), (), SweepOptions()) is None


def test_a_search_is_planned_anew(tmp_path: Path) -> None:
    (tmp_path / "drawn.yaml").write_text(SWEEP + "search: {method: random, trials: 2}\n")
    assert request_of(load_space(str(tmp_path / "drawn.yaml")), SweepOptions()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x"},
        {"text": "version: 1\n"},
        {"sets": ("seed=1",)},
        {"device": "cuda"},
        {"precision": "bf16"},
        {"stop": "none"},
        {"gpu_bytes": 1 << 30},
        {"fast": True},
        {"compile": True},
    ],
)
def test_every_word_and_the_code_have_a_say(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = REQUEST.sha256()
    assert before is not None
    assert replace(REQUEST, **change).sha256() not in (before, None)
    monkeypatch.setattr(module.provenance, "source_digest", lambda: "other code")
    assert REQUEST.sha256() not in (before, None)


def test_the_files_of_the_data_and_torchvision_have_a_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path))
    seen = [REQUEST.sha256()]
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.parent.mkdir(parents=True)
    for content in (b"a", b"bc"):
        file.write_bytes(content)
        seen.append(REQUEST.sha256())
    os.utime(file, ns=(1, 1))  # the same bytes, written at another time: a plan looks at them
    seen.append(REQUEST.sha256())
    monkeypatch.setattr(module, "version", lambda package: "0.0.1")
    seen.append(REQUEST.sha256())
    assert len(set(seen)) == 5
    assert REQUEST.sha256() == seen[-1]


def test_where_other_packages_add_methods_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("x", "y:z", group) for group in ("console_scripts", "pruning.criterion")]
    monkeypatch.setattr(module, "all_entry_points", lambda: found)
    assert REQUEST.sha256() is None
    assert cached_summary(REQUEST, uri="sqlite:////nowhere.db") is None


@pytest.fixture
def swept(tmp_path: Path) -> Store:
    """A finished sweep of one recorded trial."""
    store = Store(tmp_path)
    run = store.row(store.trial("slp", "weight", "none"))
    parent = store.row(store.dense("slp"))
    rows = [{"key": run.tags["key"], "dense_key": parent.tags["key"], **AXES}]
    asked = REQUEST.sha256()
    assert asked is not None
    with store.tracker.start("sweep", "tiny", tags={REQUEST_SHA256: asked}) as sweep:
        store.tracker.upload(sweep.run_id, {PLAN: dump_plan(rows, space="tiny", excluded=[])})
    return store


AXES = {
    "model": "slp",
    "dataset": "digits",
    "batch_size": 64,
    "technique": "weight",
    "amount": 0.5,
    "seed": 0,
}


def sweep_of(store: Store) -> str:
    return store.tracker.search("tags.kind = 'sweep'")[0].run_id


def trial_of(store: Store) -> str:
    return store.trial("slp", "weight", "none")


def test_a_sweep_that_is_whole_is_told(swept: Store) -> None:
    found = cached_summary(REQUEST, uri=swept.uri)
    assert found is not None
    assert (found.space, found.trials, found.reused, found.failed, found.failures) == ("tiny", 1, 1, 0, {})
    assert found.line() == "tiny: nothing to do: all 1 trials are in the store"
    assert found.sweep.run_id == sweep_of(swept)
    assert [table.rows[-1][:2] for table in found.tables()] == [["weight", "50%"]]
    assert cached_summary(replace(REQUEST, stop="median"), uri=swept.uri) is None


def test_a_sweep_that_is_not_the_latest_of_its_name_is_made_the_latest(swept: Store) -> None:
    tracker, sweep = swept.tracker, sweep_of(swept)
    other = tracker.start("sweep", "tiny", tags={}).run_id
    tracker.close(other, "a test", status="FAILED")
    assert cached_summary(REQUEST, uri=swept.uri) is None
    tracker.set_tag(sweep, LAST_ASKED, str(int(1000 * time.time()) + 1000))
    assert cached_summary(REQUEST, uri=swept.uri) is not None
    assert newest_first(tracker.search("tags.kind = 'sweep'"))[0].run_id == sweep


@pytest.mark.parametrize("harm", ["running", "invalid", "cut", "deleted", "waiting", "plan"])
def test_whatever_is_not_as_it_was_is_looked_into(swept: Store, harm: str) -> None:
    tracker, trial = swept.tracker, trial_of(swept)
    if harm == "running":
        tracker.reopen(sweep_of(swept))
    elif harm == "invalid":
        tracker.set_tag(trial, "invalid", "a test")
    elif harm == "cut":
        (swept.model(trial) / "arch.json").write_text("{}")
    elif harm == "deleted":
        tracker.client.delete_run(trial)
    elif harm == "waiting":
        (outbox_folder(swept.uri) / "parcel").mkdir(parents=True)
    else:
        place = tracker.local_folder(tracker.get_run(sweep_of(swept)), PLAN)
        assert place is not None
        place.unlink()
    assert cached_summary(REQUEST, uri=swept.uri) is None


def test_a_result_that_is_set_aside_is_not_waited_for(swept: Store) -> None:
    (outbox_folder(swept.uri) / "a result.unreadable").mkdir(parents=True)
    assert cached_summary(REQUEST, uri=swept.uri) is not None


@pytest.mark.slow
def test_a_second_sweep_starts_nothing_and_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP)

    def sweep(*words: str) -> tuple[dict[str, object], str]:
        done = subprocess.run(
            [sys.executable, "-c", AS_TYPED, "sweep", "--space", "tiny.yaml", "--json", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.splitlines()[-1]

    made = forked.orchestrate("sweep", "--space", "tiny.yaml", "--json", cwd=tmp_path, seconds=500)
    assert made.returncode == 0, made.stderr
    first, (second, light) = json.loads(made.stdout), sweep()
    assert first["ran"] == 3
    assert (second["ran"], second["reused"], second["results"]) == (0, 2, first["results"])
    assert light == "[]"
    planned, also = sweep("--set", "seed=0")  # the same plan in other words: no Ray, and the answer is kept
    assert (planned["ran"], "'mlflow'" in also, "'ray'" in also) == (0, True, False)
    assert sweep("--set", "seed=0")[1] == "[]"
    assert (
        Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "tiny").search("attributes.status = 'RUNNING'")
        == []
    )
