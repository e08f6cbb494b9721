"""The check of a GPU runs through on a CPU, without Ray and MLflow, and its file calibrates a plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import BrokenBarrierError
from time import perf_counter, sleep
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_check, gpu_equality, gpu_steps
from benchmarks.gpu_check import END, NOT_MEASURED, PAGE, RESULTS, START, table, write_page
from benchmarks.gpu_steps import STACKS, describe_failure, make_settings
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
    assert (result["device"], result["is_complete"]) == ("CPU", True)
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


def in_small(out: Path) -> int:
    return gpu_check.main(["--device", "cpu", "--small", "--out", str(out)])


@pytest.fixture
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One network and batch size, one augmentation, one pruning, and no times worth the name."""
    settings = [s for s in make_settings(small=True) if s.model == "slp" and s.batch == 8]
    monkeypatch.setattr(gpu_check, "make_settings", lambda *, small: settings)
    monkeypatch.setattr(gpu_equality, "PRUNINGS", gpu_equality.PRUNINGS[:1])


def fail(*arguments: object, **options: object) -> Any:
    raise ValueError("an error\nof two lines")


ERROR = "ValueError: an error of two lines"


@pytest.mark.usefixtures("few_settings")
def test_an_error_is_the_reason_of_its_row_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_equality, "count_waits", fail)
    monkeypatch.setattr(gpu_equality, "_has_same_bits", fail)
    monkeypatch.setattr(gpu_steps, "_stack_seconds", fail)
    monkeypatch.setattr(gpu_check, "measure", fail)
    score_on = gpu_check.score_on

    def score_twice(device: torch.device, net: torch.nn.Module, **options: Any) -> Any:
        calls.append(1)
        return score_on(device, net, **options) if len(calls) != 2 else fail()

    calls: list[int] = []
    monkeypatch.setattr(gpu_check, "score_on", score_twice)
    assert in_small(tmp_path / "out.json") == 5
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["is_complete"]
    failed = [row for row in result["checks"] if not row["reached"]]
    assert [row["note"] for row in failed] == [ERROR] * 3
    assert failed[-1]["what"] == "mlp, magnitude weight"  # whose other rows are there
    assert [row["limit"] for row in result["checks"] if row["reached"]] == [0.01, 0.03]
    reasons = {row["variant"]: row["reason"] for row in result["steps"]}
    assert {name: text for name, text in reasons.items() if text} == {
        "graph": "a CPU has no graphs",
        **dict.fromkeys(STACKS, ERROR),
    }
    assert [row["reason"] for row in result["latency"]] == [ERROR] * 2
    snip, grasp = result["scoring"]
    assert (snip["seconds"], snip["reason"]) == (None, ERROR)
    assert grasp["seconds"] > 0
    assert capsys.readouterr().err.count("Traceback") == 3 + len(STACKS) + 2 + 1


@pytest.mark.usefixtures("few_settings")
def test_what_was_measured_before_the_process_ends_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for name in ("check_waits", "check_equality"):
        monkeypatch.setattr(gpu_check, name, lambda device, *, small: iter(()))
    monkeypatch.setattr(gpu_check, "measure", end)
    with pytest.raises(KeyboardInterrupt):
        in_small(tmp_path / "new" / "out.json")
    (path,) = (tmp_path / "new").iterdir()
    result = json.loads(path.read_text())
    assert not result["is_complete"]
    assert len(load_calibration(path).times) == 2
    assert result["latency"] == []


@contextmanager
def without_memory() -> Iterator[None]:
    """As a graph's capture, whose end raises an error of its own."""
    try:
        yield
    finally:
        fail()


def test_memory_that_runs_out_while_a_graph_is_captured_is_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="an error") as caught, without_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert describe_failure(caught.value) == {"reason": "memory ran out"}
    assert capsys.readouterr().err == ""


class Stream:
    device = torch.device("cuda", 0)

    def wait_stream(self, stream: Stream) -> None:
        pass


class InvalidGraph:
    """A CUDA graph that an error has made invalid: the end of its capture raises another one."""

    def capture_begin(self, **options: object) -> None:
        pass

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [default := Stream()]
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", InvalidGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters())
    calls: list[int] = []

    def make_step(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > gpu_steps.WARM_STEPS:
            assert current[-1] is not default
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_steps, "make_step", make_step)
    with cuda_double(), pytest.raises(RuntimeError, match="a previous error") as caught:
        gpu_steps.graph_of(net, optimizer, torch.zeros(1, 2), torch.zeros(1))
    assert current[-1] is default
    assert describe_failure(caught.value) == {"reason": "memory ran out"}


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
