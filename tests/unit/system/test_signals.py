"""Ctrl-C and SIGTERM, pressed at a process that holds or heeds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.system import signals
from orchestrator.system.signals import (
    allow_interrupt,
    defer_signals,
    handle_signals,
    received_signal,
    reinstall_handlers,
)

ROOT = Path(__file__).parents[3]


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_is_raised_where_one_listens() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with pytest.raises(KeyboardInterrupt, match="interrupted"), handle_signals("bye"):
        press(signal.SIGTERM)
    assert received_signal() == signal.SIGTERM
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_held_signal_is_noted_and_the_next_command_knows_nothing_of_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with handle_signals("bye"), defer_signals():
        assert received_signal() == 0
        press()
        press()  # one stop that came as two signals
        assert received_signal() == signal.SIGINT
    assert capfd.readouterr().err == "stopping; once more to stop at once\n"
    with defer_signals():
        assert received_signal() == 0


def test_what_may_be_cut_off_is_cut_off_within_what_is_held() -> None:
    with handle_signals("bye"), defer_signals():
        with pytest.raises(KeyboardInterrupt), allow_interrupt():
            press()
        assert received_signal() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt), allow_interrupt():
            pytest.fail("it has come already")


def test_what_came_in_a_block_that_is_over_cuts_off_nothing() -> None:
    with defer_signals():
        press()
    assert received_signal() == signal.SIGINT
    with allow_interrupt():
        pass


def test_handlers_that_others_put_in_place_are_replaced() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reinstall_handlers()  # outside nothing is ours
    assert signal.getsignal(signal.SIGTERM) is before
    with defer_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reinstall_handlers()
        press(signal.SIGTERM)
        assert received_signal() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


STUCK = """
import subprocess, sys, time
from orchestrator.system.signals import defer_signals, handle_signals
with handle_signals("the last words"), defer_signals():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    while True:
        time.sleep(0.1)
"""


@contextmanager
def stuck() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that heeds no first signal, and its child."""
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_and_all_below_it(number: int, code: int) -> None:
    with stuck() as (process, child):
        below = psutil.Process(child)
        process.send_signal(number)
        time.sleep(2 * signals.SECONDS_OF_ONE)
        assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == "stopping; once more to stop at once\nthe last words\n"
    below.wait(timeout=60)
