"""The lines that a person sees while a sweep runs, on terminals of several widths and on none."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.execution import progress as module
from orchestrator.execution.progress import RateEstimate, SweepProgress, TaskCounter, eta_seconds
from orchestrator.system.signals import SignalHandler
from orchestrator.trial.task import Task, TaskResult

DENSE = DenseConfig("slp", "digits", 64, 0, Train(), Numerics())
TRIAL = TrialConfig(DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.5), "none", "weight")
NAME = "structured 0.975 densenet121 seed 12"


def dense(key: str) -> Task:
    return Task(key, f"dense {key}", DENSE)


def trial(key: str) -> Task:
    return Task(key, NAME, TRIAL, parent="d")


def halfway() -> SweepProgress:
    """Of 4 dense networks one reused and one done; of 144 trials every kind, two of them running."""
    found = SweepProgress(TaskCounter(4, reused=1), TaskCounter(144, reused=12), SignalHandler())
    for point in (dense("d"), trial("a"), trial("b"), trial("c"), trial("e"), trial("f")):
        found.on_start([point])
    found.on_result(TaskResult(dense("d"), {"final/val_accuracy": 0.99}))
    found.on_result(TaskResult(trial("a"), {"final/val_accuracy": 0.875}))
    found.on_result(TaskResult(trial("b"), None, "broke"))
    found.on_result(TaskResult(trial("c"), None, "hopeless", stopped=True))
    return found


def test_two_counts_and_every_state_in_one() -> None:
    line = halfway().summary_line()
    assert line.startswith("dense 2/4, trials 15/144, 2 running, 1 failed, 1 stopped, 1 done, 12 reused, ")
    assert line.endswith(f"left, best 0.875 ({NAME})")  # of trials, not of a dense network


def test_the_time_of_tasks_that_are_given_together_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *[0.0] * 16, *[32.0] * 16, 32.0]).__next__  # at the start, and at 16 starts and ends
    monkeypatch.setattr("orchestrator.execution.progress.monotonic", clock)
    counter = TaskCounter(100)
    clock()
    for number in range(16):
        counter.on_start(f"t{number}", together=16)
    for number in range(16):
        counter.on_result(TaskResult(trial(f"t{number}"), {"final/val_accuracy": 0.9}))
    assert eta_seconds([counter.rate()], concurrent=2) == pytest.approx(84 * 2 / 2)  # 2 s each, two at a time


def test_a_worker_that_starts_again_is_one_trial() -> None:
    found = halfway()
    found.on_start([trial("e")])
    assert len(found.trials.started) == 2
    found.on_result(TaskResult(trial("e"), None, "its worker died 3 times"))
    assert (found.trials.failed, found.trials.ended, len(found.trials.started)) == (2, 16, 1)


def test_points_that_nobody_knew_of_make_a_total_grow() -> None:
    found = SweepProgress(TaskCounter(0), TaskCounter(2), SignalHandler())
    for number in range(3):
        found.on_start([dense(f"d{number}")])
    assert (found.dense.total, found.dense.ended) == (3, 0)
    for number in range(3):
        found.on_result(TaskResult(trial(str(number)), None, "its dense network failed"))  # never started
    assert (found.trials.total, found.trials.ended) == (3, 3)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_three_lines_that_fit(width: int) -> None:
    found = halfway()
    found.status_message = "starting Ray"
    text = io.StringIO()
    found._console = Console(file=text, width=width, force_terminal=True, color_system=None)
    found._console.print(found._render())
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert re.match(r"dense  +\S+ +2/4 1 done, 1 reused$", lines[0])
    assert re.match(r"trials +\S+ +15/144 2 running, 1 failed", lines[1])
    assert lines[2].startswith("starting Ray, 0 s so far")


def test_without_a_terminal_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with halfway() as found:
        found.tick()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
        found.tick()
        assert capsys.readouterr().err == f"{found.summary_line()}\n"
        found.print_line("weight 0.9: " + "its worker died " * 10)
    said = capsys.readouterr().err
    assert said.count("\n") == 1  # never broken, however long
    assert "\x1b" not in said


DRAWS = """
import sys, time
sys.path.insert(0, {tests!r})
from test_progress import halfway
with halfway() as found:
    time.sleep(0.6)
    found.print_line("weight 0.9 mlp seed 0: its worker died; it is tried again (1 of 2)")
    time.sleep(0.6)
"""


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_it_is_drawn_in_place(colour: bool) -> None:
    """Each drawing goes up over the one before: what scrolls away is only what was said."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    environment |= {} if colour else {"NO_COLOR": "1"}
    code = DRAWS.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait(timeout=60) == 0
    os.close(ours)
    text = written.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
    drawings = text.count("trials ")
    assert drawings >= 3
    assert text.count("\x1b[1A") == 2 * (drawings - 1)  # three lines, drawn over each time
    assert text.count("its worker died") == 1
    assert bool(re.search(r"\x1b\[[0-9;]*m", text)) == colour


def test_each_kind_goes_by_its_own_runs() -> None:
    dense = RateEstimate(todo=2, durations=[100.0, 140.0])  # 120 each
    trials = RateEstimate(todo=30, durations=[2.0] * 4)
    assert eta_seconds([dense, trials], concurrent=2) == pytest.approx((2 * 120 + 30 * 2) / 2)
    assert eta_seconds([RateEstimate(0, [120.0]), trials], concurrent=4) == pytest.approx(15.0)


def test_what_runs_has_a_part_of_it_behind_it() -> None:
    trials = RateEstimate(todo=3, durations=[10.0], running=[4.0, 25.0])  # 6 and 0 to go, and one that waits
    assert eta_seconds([trials], concurrent=2) == pytest.approx(10.0)  # that one cannot be halved
    assert eta_seconds([trials], concurrent=1) == pytest.approx(16.0)


def test_nobody_knows_before_one_has_ended() -> None:
    assert eta_seconds([RateEstimate(2, [1.0]), RateEstimate(5)], concurrent=2) is None
    assert eta_seconds([RateEstimate(0), RateEstimate(0)], concurrent=2) == 0
    assert eta_seconds([RateEstimate(1, [5.0])], concurrent=0.2) == pytest.approx(5.0)
