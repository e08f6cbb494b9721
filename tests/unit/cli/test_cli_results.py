"""compare and report on the command line, over a recorded sweep; the report attached to its run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import orchestrate
from mlflow import MlflowClient
from whole_sweep import record_sweep

from benchmarks.synthetic import NAME, write_store
from orchestrator.analysis.results import combine_sweeps, find_sweep
from orchestrator.report import html_report
from orchestrator.space.space import load_space
from orchestrator.storage import sqlite_runs
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker

SPACE = """
version: 1
about: Small <b>enough</b>.
axes:
  model: ["mlp(widths=[8])"]
  dataset: [digits]
  batch_size: [256]
  technique: [weight, unstructured]
  amount: [50%, 90%]
  seed: [0, 1]
train: {epochs: 1, optimizer: adam, lr: 1e-2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small space was swept."""
    place = tmp_path_factory.mktemp("swept")
    (place / "small.yaml").write_text(SPACE)
    space = load_space(str(place / "small.yaml"), ("train.lr=0.02",))
    record_sweep(default_uri(place), place / "state", space)
    return place


def rows(folder: Path, query: str) -> list[RunRecord]:
    return Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "small").search(query)


@pytest.mark.slow
def test_a_sweep_ends_with_its_report_and_the_command_that_repeats_it(folder: Path) -> None:
    (sweep,) = rows(folder, "tags.kind = 'sweep'")
    text = (folder / f"mlruns/artifacts/small/{sweep.run_id}/artifacts/report.html").read_text()
    command = "orchestrate sweep --space small.yaml --set train.lr=0.02 --device cpu"
    assert sweep.tags["command"] == command
    assert f"<pre>{command}</pre>" in text
    assert "Small &lt;b&gt;enough&lt;/b&gt;." in text
    assert "report.html" in sweep.tags["mlflow.note.content"]
    assert "accuracy-against-sparsity.png" in sweep.tags["mlflow.note.content"]


@pytest.mark.slow
def test_report_writes_a_file(folder: Path) -> None:
    done = orchestrate("report", "small", "--out", "x.html", "--tolerance", "5", cwd=folder)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder / "x.html"))
    assert "Highest sparsity within 5 points of dense" in (folder / "x.html").read_text()
    assert orchestrate("report", "small", cwd=folder).stdout.strip() == str(folder / "small.html")
    nowhere = orchestrate("report", "small", "--out", "no/such/x.html", cwd=folder)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    unknown = orchestrate("report", "smal", cwd=folder)
    assert (unknown.returncode, "did you mean small?" in unknown.stderr) == (4, True)


@pytest.mark.slow
def test_compare_tells_what_is_asked(folder: Path) -> None:
    asked = ("--baseline", "weight", "--pareto", "macs", "--tolerance", "100")
    text = orchestrate("compare", "small", *asked, cwd=folder)
    assert text.returncode == 0, text.stderr
    for title in (
        "highest sparsity within 100 points of dense",
        "difference to technique=weight, paired by seed",
        "Pareto front of accuracy against macs",
    ):
        assert title in text.stdout
    words = ("compare", "small", *asked)
    as_json, as_csv = (orchestrate(*words, form, cwd=folder) for form in ("--json", "--csv"))
    found: list[dict[str, Any]] = json.loads(as_json.stdout)
    assert len(found) == 4
    assert all(record["sparsity_within"] == pytest.approx(0.9, abs=0.01) for record in found)
    assert [r["pairs"] for r in found if r["technique"] == "unstructured"] == [2] * 2
    lines = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert [set(line) for line in lines] == [set(found[0])] * 4
    latex = orchestrate("compare", "small", "--latex", "--pm", "std", cwd=folder)
    assert latex.returncode == 0, latex.stderr
    assert r"\toprule" in latex.stdout
    assert "sample standard deviation" in latex.stdout
    paper = orchestrate("compare", "small", "--markdown", "--pareto", "macs", cwd=folder)
    assert paper.stdout.startswith("**Pareto front of validation accuracy against macs")
    for refused, said in (
        (("--latex", "--csv"), "--csv and --latex are several formats; give one"),
        (("--pm", "std"), "--pm std is for --latex and --markdown"),
        (("--pareto", "latency"), "no finished trial has it"),
    ):
        done = orchestrate("compare", "small", *refused, cwd=folder)
        assert (done.returncode, said in done.stderr) == (2, True)
    few = orchestrate("compare", "small", "--interval", "bootstrap", cwd=folder)
    assert (few.returncode, "needs at least 6 seeds" in few.stderr) == (2, True)
    wrong = orchestrate("compare", "small", "--baseline", "wieght", cwd=folder)
    assert (wrong.returncode, "did you mean weight?" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_single_runs_stand_beside_sweeps(folder: Path) -> None:
    uri = f"sqlite:///{folder}/mlruns/mlflow.db"
    trial = rows(folder, "tags.kind = 'trial' and params.technique = 'weight' and params.seed = '0'")[0]
    (dense, *_) = rows(folder, "tags.kind = 'dense'")
    whole = combine_sweeps(["small"], uri=uri)
    found = combine_sweeps([trial.run_id, dense.run_id], uri=uri)
    assert list(found["technique"]) == ["weight", "dense"]
    planned = whole[whole["key"] == trial.tags["key"]].iloc[0]
    alone = found.iloc[0]
    assert {name: planned[name] for name in whole.columns if planned[name] == planned[name]} == {
        name: alone[name] for name in whole.columns if planned[name] == planned[name]
    }
    assert len(combine_sweeps(["small", trial.run_id, dense.run_id], uri=uri)) == len(whole) + 1
    text = orchestrate("compare", dense.run_id, trial.run_id, cwd=folder)
    assert text.returncode == 0, text.stderr
    assert "dense" in text.stdout


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Number of trials -> the address of a store that holds so many."""
    addresses = {trials: default_uri(tmp_path_factory.mktemp("stores")) for trials in (4, 144)}
    for trials, uri in addresses.items():
        write_store(uri, trials)  # the last 44 of 144 are copies
    return addresses


@pytest.mark.slow
@pytest.mark.parametrize("schemas", [sqlite_runs.SCHEMAS, ()], ids=["its tables", "MLflow"])
def test_a_store_is_asked_once_however_many_runs_it_holds(
    schemas: tuple[str, ...], stores: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    search, single, read = MlflowClient.search_runs, MlflowClient.get_run, sqlite_runs._read_rows
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *a, **k: asked.append(a[2]) or search(*a, **k))
    monkeypatch.setattr(MlflowClient, "get_run", lambda *a, **k: asked.append("one") or single(*a, **k))
    monkeypatch.setattr(sqlite_runs, "_read_rows", lambda *a: asked.append("tables") or read(*a))
    monkeypatch.setattr(sqlite_runs, "SCHEMAS", schemas)
    counts = []
    for trials, uri in stores.items():
        asked.clear()
        tracker = Tracker(uri, NAME)
        text = html_report(tracker, find_sweep(tracker, NAME))
        assert f"All {trials} trials of the plan have finished" in text
        counts.append(len(asked))
        assert set(asked) == {"tables"} if schemas else "tables" not in asked
    # The sweep, and what is finished; nothing is left that may have failed.
    assert counts == [2, 2]
