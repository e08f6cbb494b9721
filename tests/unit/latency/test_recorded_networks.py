"""Recorded networks timed afterwards: which are measured, what their runs hold then, and who shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import in_process
import pytest
import torch
from whole_sweep import record_sweep

from orchestrator.analysis.results import find_sweep
from orchestrator.cli.options import parse_batch_sizes
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import DeviceError, StoreError, UsageError
from orchestrator.execution.worker import run_task
from orchestrator.latency import recorded_networks
from orchestrator.latency.measure import Latency, NetworkVariants, is_supported
from orchestrator.latency.recorded_networks import (
    LatencyOptions,
    find_runs,
    measure_named,
    measure_runs,
    measure_sweep,
    plan_jobs,
)
from orchestrator.latency.records import conditions, latency_records, latency_table
from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.space.space import load_space
from orchestrator.space.techniques import resolve
from orchestrator.storage.uri import default_uri
from orchestrator.system import provenance
from orchestrator.system.machine import MachineLoad
from orchestrator.system.timing import Spread, Timing
from orchestrator.tracking import RunRecord, Tracker, initialise
from orchestrator.trial.task import Task, WorkerSettings

DENSE = DenseConfig("mlp(widths=[24, 16])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
POINTS = [("weight", 0.0), ("weight", 0.25), ("weight", 0.4), ("weight", 0.9), ("neuron", 0.5)]
QUICK = LatencyOptions(seconds=0.01)
needs_csr = pytest.mark.skipif(not is_supported(), reason="this torch has no MKL: CSR is not used")
silent: Callable[[str], None] = lambda line: None  # noqa: E731  typed


def trial(technique: str, amount: float, seed: int) -> TrialConfig:
    known = resolve(technique, {})
    prune = Prune(known.criterion, known.granularity, known.scope, "one_shot", amount)
    return TrialConfig(replace(DENSE, seed=seed), prune, "none", technique)


class Place:
    """A store with one sweep of ten trials, two seeds each."""

    def __init__(self, folder: Path) -> None:
        self.uri = default_uri(folder)
        initialise(self.uri)
        self.tracker = Tracker(self.uri, "digits")
        self.trials = [trial(*point, seed) for point in POINTS for seed in (0, 1)]
        run = self.tracker.start("sweep", "digits", tags={})
        for config in (DENSE, replace(DENSE, seed=1), *self.trials):
            parent = config.dense.key() if isinstance(config, TrialConfig) else None
            name = (
                f"{config.technique} {config.prune.amount:g}" if isinstance(config, TrialConfig) else "dense"
            )
            point = Task(config.key(), name, config, parent=parent)
            run_task(point, WorkerSettings(self.uri, "digits", run.run_id, None, provenance.install_path()))
        rows = [{"key": config.key(), "dense_key": config.dense.key()} for config in self.trials]
        self.tracker.upload(run.run_id, {PLAN: dump_plan(rows)})
        self.sweep = self.tracker.get_run(run.run_id)

    def rows(self) -> list[RunRecord]:
        return recorded_networks.trials_of(self.tracker, self.tracker.get_run(self.sweep.run_id))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("store"))


def timed(forms: NetworkVariants, *, batch: int, seconds: float, device: str = "cpu") -> Latency:
    """A measurement without a clock, of the forms that there are."""
    names = ["dense", *(["masked"] if forms.masked else []), *(["cut"] if forms.cut else [])]
    timing = Timing(
        {name: Spread(batch / (number + 1), 0.1) for number, name in enumerate(names)},
        {name: number + 1.0 for number, name in enumerate(names)},
        1.0,
        MachineLoad(0.1, 0.0, 2),
    )
    return Latency(batch, timing, names[-1])


@needs_csr
def test_networks_that_must_take_equally_long_are_timed_once(place: Place) -> None:
    tasks = plan_jobs(place.tracker, place.rows(), LatencyOptions(remeasure=True))
    shared = sorted([row.name for row in task.rows] for task in tasks)
    assert shared == [
        ["neuron 0.5"] * 2,  # the same widths are left
        ["weight 0"] * 2,  # nothing is dead
        ["weight 0.25", "weight 0.25", "weight 0.4", "weight 0.4"],  # dense kernels, CSR is not tried
        ["weight 0.9"],  # every mask of its own
        ["weight 0.9"],
    ]
    assert {task.batches for task in tasks} == {(1, 256)}


def test_what_is_measured_is_recorded_once(place: Place) -> None:
    lines: list[str] = []
    count = measure_sweep(place.tracker, place.sweep, QUICK, on_progress=lines.append)
    assert count == len(lines) == len(plan_jobs(place.tracker, place.rows(), replace(QUICK, remeasure=True)))
    for row in place.rows():
        assert row.status == "FINISHED"
        for end in ("", "_batch256"):
            dense = row.metrics[f"latency/dense_ms_p50{end}"]
            assert row.metrics[f"ipa/latency_ms_p50{end}"] == dense > 0
            assert row.metrics[f"latency/dense_ms_iqr{end}"] >= 0
            assert row.metrics.keys() >= {f"latency/aa{end}", f"latency/speedup{end}"}
        told = conditions(row, 256)
        final = row.metrics["final/latency_ms_p50_batch256"]
        assert final == row.metrics[f"latency/{told['form']}_ms_p50_batch256"]
        assert told["reliable"] == (not told["doubts"])
        assert told.keys() >= {
            "threads",
            "machine",
            "cores",
            "load_average",
            "torch",
            "python",
            "measured_on",
        }
    by_name = {row.name: conditions(row, 1) for row in place.rows()}
    assert by_name["weight 0"]["forms"] == ["dense"]
    assert by_name["neuron 0.5"]["forms"] == ["dense", "masked", "cut"]
    assert by_name["neuron 0.5"]["form"] == "cut"
    assert by_name["weight 0.9"]["forms"] in (["dense", "masked"], ["dense", "masked", "csr"])
    assert measure_sweep(place.tracker, place.sweep, QUICK, on_progress=silent) == 0


def test_seeds_that_share_a_measurement_say_of_which_run_it_is(place: Place) -> None:
    measure_sweep(place.tracker, place.sweep, QUICK, on_progress=silent)
    first, second = (row for row in place.rows() if row.name == "neuron 0.5")
    assert conditions(first, 1) == conditions(second, 1)
    assert conditions(second, 1)["measured_on"] == first.run_id
    names = {name for name in first.metrics if "latency" in name}
    assert {name: first.metrics[name] for name in names} == {name: second.metrics[name] for name in names}


def test_a_further_batch_size_is_added(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_sweep(place.tracker, place.sweep, QUICK, on_progress=silent)
    asked: list[int] = []

    def counted(forms: NetworkVariants, *, batch: int, seconds: float, device: str = "cpu") -> Latency:
        asked.append(batch)
        return timed(forms, batch=batch, seconds=seconds)

    monkeypatch.setattr(recorded_networks, "measure", counted)
    rows = [row for row in place.rows() if row.name == "neuron 0.5"]
    assert measure_runs(place.tracker, rows, LatencyOptions(batches=(1, 7)), on_progress=silent) == 1
    assert asked == [7]
    row = next(row for row in place.rows() if row.name == "neuron 0.5")
    assert row.metrics["final/latency_ms_p50_batch7"] == pytest.approx(7 / 3)
    assert conditions(row, 1)["measured_on"] == conditions(row, 7)["measured_on"]
    assert (
        measure_runs(place.tracker, [row], LatencyOptions(batches=(1, 7), remeasure=True), on_progress=silent)
        == 1
    )
    assert asked == [7, 1, 7]
    assert place.tracker.get_run(row.run_id).metrics["final/latency_ms_p50"] == pytest.approx(1 / 3)


def test_an_interruption_leaves_what_is_measured(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options, seen = LatencyOptions(batches=(8, 9)), []

    def interrupted(forms: NetworkVariants, *, batch: int, seconds: float, device: str = "cpu") -> Latency:
        seen.append(batch)
        if len(seen) == 4:  # in the second network, between its two batch sizes
            raise KeyboardInterrupt
        return timed(forms, batch=batch, seconds=seconds)

    monkeypatch.setattr(recorded_networks, "measure", interrupted)
    total = len(plan_jobs(place.tracker, place.rows(), options))
    with pytest.raises(KeyboardInterrupt):
        measure_sweep(place.tracker, place.sweep, options, on_progress=silent)
    done = {row.name for row in place.rows() if any(name.endswith("_batch8") for name in row.metrics)}
    assert done == {"weight 0"}
    assert measure_sweep(place.tracker, place.sweep, options, on_progress=silent) == total - 1


def test_the_table_has_every_form_and_a_line_per_measurement(place: Place) -> None:
    rows = measure_named([place.sweep.run_id], QUICK, uri=place.uri, on_progress=silent)
    found = latency_records(rows, (1, 256))
    assert len(found) == 2 * len(rows)
    drawn = latency_table(found)
    assert [form in drawn.header for form in ("dense", "masked", "cut", "csr")] == [True] * 4
    assert sum(int(line[drawn.header.index("runs")]) for line in drawn.rows) == len(found)
    cut = next(record for record in found if record["name"] == "neuron 0.5")
    metrics = place.tracker.get_run(cut["run_id"]).metrics
    assert cut["speedup_theoretical"] == metrics["final/macs_dense"] / metrics["final/macs_physical"]
    assert json.loads(json.dumps(found)) == found


def test_an_unreliable_measurement_is_marked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(forms: NetworkVariants, *, batch: int, seconds: float, device: str = "cpu") -> Latency:
        found = timed(forms, batch=batch, seconds=seconds)
        return replace(found, timing=replace(found.timing, self_ratio=1.3))

    monkeypatch.setattr(recorded_networks, "measure", noisy)
    lines: list[str] = []
    rows = [row for row in place.rows() if row.name == "weight 0"]
    measure_runs(place.tracker, rows, LatencyOptions(remeasure=True), on_progress=lines.append)
    again = [place.tracker.get_run(row.run_id) for row in rows]
    assert [conditions(row, 1)["reliable"] for row in again] == [False, False]
    assert "unreliable: A/A is 1.30" in lines[0]
    assert all("no: A/A is 1.30" in line[-1] for line in latency_table(latency_records(again, (1, 256))).rows)


def test_times_of_a_gpu_have_names_of_their_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LatencyOptions(batches=(1,), device="cuda")
    rows = [row for row in place.rows() if row.name == "neuron 0.5"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu"):
        measure_runs(place.tracker, rows, options, on_progress=silent)
    timing = Timing(
        {"dense": Spread(2.0, 0.1), "cut": Spread(1.0, 0.1)},
        {"dense": 1.0, "cut": 2.0},
        1.0,
        MachineLoad(0.1, 0.0, 2),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(
        recorded_networks,
        "measure",
        lambda variants, batch, seconds, device: Latency(batch, timing, "cut", device=device),
    )
    before = rows[0].metrics.get("final/latency_ms_p50")
    assert measure_runs(place.tracker, rows, options, on_progress=silent) == 1
    row = place.tracker.get_run(rows[0].run_id)
    assert (row.metrics["final/latency_ms_p50_gpu"], row.metrics.get("final/latency_ms_p50")) == (1.0, before)
    assert conditions(row, 1, "cuda")["machine"] == "NVIDIA H100"
    (record,) = latency_records([row], (1, 256), device="cuda")
    assert (record["dense_ms_p50"], record["speedup"]) == (2.0, 2.0)
    assert latency_table([record], device="cuda").title.startswith("one forward pass on a GPU")
    assert measure_runs(place.tracker, [row], options, on_progress=silent) == 0


def test_runs_are_found_by_sweep_and_by_id(place: Place) -> None:
    ids = [row.run_id for row in place.rows()]
    dense = place.tracker.find_finished(DENSE.key())
    assert dense is not None
    assert [row.run_id for row in find_runs(place.tracker, [place.sweep.run_id])] == ids
    assert [row.run_id for row in find_runs(place.tracker, ["digits"])] == ids
    assert [row.run_id for row in find_runs(place.tracker, [ids[3], dense.run_id, ids[3]])] == [
        ids[3],
        dense.run_id,
    ]


@pytest.mark.parametrize("name", ["digit", "0" * 32])
def test_what_is_not_there_is_named(place: Place, name: str) -> None:
    with pytest.raises(StoreError, match=name):
        measure_named([name], QUICK, uri=place.uri, on_progress=silent)


def test_a_run_without_a_result_is_refused(place: Place) -> None:
    unfinished = place.tracker.start("trial", "x", tags={}).run_id
    with pytest.raises(StoreError, match="RUNNING and holds no whole result"):
        find_runs(place.tracker, [unfinished])


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        measure_named(["digits"], QUICK, uri=default_uri(tmp_path), on_progress=silent)
    assert not list(tmp_path.iterdir())


def test_batch_sizes_are_read() -> None:
    assert parse_batch_sizes("1,256") == (1, 256)
    assert parse_batch_sizes("8, 8,1") == (8, 1)


@pytest.mark.parametrize("text", ["", "0", "1,", "-1", "1.5", "many"])
def test_other_batch_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="whole numbers from 1 up"):
        parse_batch_sizes(text)


@pytest.mark.slow
def test_the_command_prints_json_and_progress_apart(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    row = next(row for row in place.rows() if row.name == "weight 0.25")
    words = ["latency", row.run_id, "--batch", "3", "--seconds-each", "0.01", "--json"]
    done = in_process.orchestrate(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert (record["run_id"], record["batch"]) == (row.run_id, 3)
    assert done.stderr.startswith("1/1 weight 0.25: batch 3: ")


@pytest.mark.slow
def test_a_sweep_measures_when_it_is_over(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "version: 1\nabout: Two trials.\naxes:\n  model: ['mlp(widths=[16])']\n  dataset: [digits]\n"
        "  technique: [weight, structured]\n  amount: [75%]\ntrain: {epochs: 1}\n"
    )
    record_sweep(default_uri(tmp_path), tmp_path / "state", load_space(str(tmp_path / "tiny.yaml")))
    words = ["sweep", "--space", "tiny.yaml", "--device", "cpu", "--latency"]
    done = in_process.orchestrate(*words, cwd=tmp_path)  # nothing is to be run: no Ray is started
    assert done.returncode == 0, done.stderr
    assert "nothing to do: all 2 trials are in the store" in done.stdout
    tracker = Tracker(default_uri(tmp_path), "tiny")
    rows = recorded_networks.trials_of(tracker, find_sweep(tracker, "tiny"))
    assert len(rows) == 2
    assert all(row.metrics["final/latency_ms_p50"] > 0 for row in rows)
    assert {conditions(row, 1)["form"] for row in rows} >= {"cut"}
    assert "2/2 structured" in done.stderr
    again = in_process.orchestrate(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "batch 1:" not in again.stderr  # nothing is left to time
