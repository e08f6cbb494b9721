"""The check of a GPU runs through on a CPU, without Ray and MLflow, and its file calibrates a plan."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import BrokenBarrierError
from time import perf_counter, sleep

import pytest
import torch

from benchmarks import gpu, gpu_check, gpu_equality
from benchmarks.gpu_check import END, NOT_MEASURED, PAGE, RESULTS, START, table, write_page
from benchmarks.gpu_steps import STACKS, make_settings
from orchestrator.planning.step_times import load_calibration
from tests.cuda_double import cuda_double

WITHOUT_THEM = """\
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None
from benchmarks.gpu_check import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_it_runs_through_on_a_cpu_without_ray_and_mlflow(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-c", WITHOUT_THEM, "--device", "cpu", "--small", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    result = json.loads(out.read_text())
    assert result["device"] == "CPU"
    assert all(row["reached"] for row in result["checks"])
    assert {row["variant"] for row in result["steps"] if row["step_ms"]} == {
        "plain",
        *STACKS,
        "bf16",
        "channels-last",
    }
    assert all(row["reason"] for row in result["steps"] if row["step_ms"] is None)
    assert all(row["cut_ms"] > 0 for row in result["latency"])
    assert all(row["seconds"] > 0 for row in result["scoring"])
    assert f"| {NOT_MEASURED} |" in ended.stdout  # a CPU has no graphs
    calibration = load_calibration(out)
    assert calibration.device == "CPU"
    assert len(calibration.times) == 4  # two networks, in two precisions


def test_without_a_gpu_it_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 4
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == (
        "gpu-check: torch sees no CUDA device here; --device cpu --small runs it without one\n"
    )


def test_what_the_time_does_not_suffice_for_is_named() -> None:
    clock = gpu_check.Clock(0.0, perf_counter() - 1.0)
    settings = make_settings(small=True)
    rows = list(gpu_check.measure_steps(settings, device="cpu", seconds=0.01, is_over=clock.is_over))
    assert [row["reason"] for row in rows] == ["the time was over"] * len(settings)
    latency = list(gpu_check.measure_latency("cpu", small=True, clock=clock))
    assert [row["cut_ms"] for row in latency] == [None, None]


class Event:
    """A CUDA event by the clock of the host."""

    def __init__(self, *, enable_timing: bool) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


def test_every_part_but_graphs_runs_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = gpu_check.Clock(100.0, perf_counter())
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    settings = [s for s in make_settings(small=True) if s.variant != "graph" and s.batch == 8]
    with cuda_double():
        steps = gpu_check.measure_steps(settings, device="cuda", seconds=0.0, is_over=lambda: False)
        assert all(row["step_ms"] > 0 and row["peak_bytes"] == 5 for row in steps)
        scoring = gpu_check.measure_scoring("cuda", small=True, clock=clock)
        assert all(row["seconds"] > 0 for row in scoring)
        latency = gpu_check.measure_latency("cuda", small=True, clock=clock)
        assert all(row["cut_ms"] > 0 for row in latency)
        monkeypatch.setattr(gpu_equality, "PRUNINGS", gpu_equality.PRUNINGS[1:2])
        rows = list(gpu_equality.check_equality("cuda", small=True))
    assert [(row["value"], row["reached"]) for row in rows] == [(0.0, True)] * 4


def test_the_page_has_the_table_of_the_results(tmp_path: Path) -> None:
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(START)[2].partition(END)[0].strip() == table(result)
    copy = tmp_path / "page.md"
    copy.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    write_page(None, copy)
    assert copy.read_text().startswith(f"before\n{START}\n\nNo GPU was at hand.")
    assert copy.read_text().endswith(f"{END}\nafter\n")
    assert "old" not in copy.read_text()


def test_processes_are_ended_and_waited_for_with_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu.ParallelProcesses(partial(partial, int), count=1) as parallel:
        assert parallel.run().measures["trials"] > 0
        processes = parallel.processes
        assert all(process.is_alive() for process in processes)
    assert [process.exitcode for process in processes] == [0]
    monkeypatch.setattr(gpu, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(gpu, "ENDING_SECONDS", 0.2)
    with (
        pytest.raises(BrokenBarrierError),
        gpu.ParallelProcesses(partial(sleep, 100.0), count=1) as parallel,
    ):
        parallel.run()
    assert not parallel.processes[0].is_alive()
