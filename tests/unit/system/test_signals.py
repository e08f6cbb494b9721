"""Ctrl-C and SIGTERM, pressed at a process that holds or heeds them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.system import signals
from orchestrator.system.signals import SignalHandler

ROOT = Path(__file__).parents[3]


@pytest.fixture
def handler() -> SignalHandler:
    return SignalHandler()


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_is_raised_where_one_listens(handler: SignalHandler) -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with pytest.raises(KeyboardInterrupt, match="interrupted"), handler.handling("bye"):
        press(signal.SIGTERM)
    assert handler.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_signal_within_a_callback_that_can_raise_nothing_is_raised_after_it(
    handler: SignalHandler, capfd: pytest.CaptureFixture[str]
) -> None:
    """As importlib's locks have: Python prints what such a callback raises, and goes on."""
    hook = sys.unraisablehook

    def press_within_a_callback() -> None:
        locked = SignalHandler()
        reference = weakref.ref(locked, lambda _: press())
        del locked
        assert reference() is None
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt, match="interrupted"), handler.handling("bye"):
        press_within_a_callback()
    assert handler.received == signal.SIGINT
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_a_held_signal_is_noted_and_the_next_command_knows_nothing_of_it(
    handler: SignalHandler,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with handler.handling("bye"), handler.deferring():
        assert handler.received == 0
        press()
        press()  # one stop that came as two signals
        assert handler.received == signal.SIGINT
    assert capfd.readouterr().err == "stopping; once more to stop at once\n"
    with handler.deferring():
        assert handler.received == 0


def test_what_may_be_cut_off_is_cut_off_within_what_is_held(handler: SignalHandler) -> None:
    with handler.handling("bye"), handler.deferring():
        with pytest.raises(KeyboardInterrupt), handler.interruptible():
            press()
        assert handler.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt), handler.interruptible():
            pytest.fail("it has come already")


def test_what_came_in_a_block_that_is_over_cuts_off_nothing(handler: SignalHandler) -> None:
    with handler.deferring():
        press()
    assert handler.received == signal.SIGINT
    with handler.interruptible():
        pass


def test_handlers_that_others_put_in_place_are_replaced(handler: SignalHandler) -> None:
    before = signal.getsignal(signal.SIGTERM)
    handler.reinstall()  # outside nothing is ours
    assert signal.getsignal(signal.SIGTERM) is before
    with handler.deferring():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler.reinstall()
        press(signal.SIGTERM)
        assert handler.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_copy_for_another_process_knows_of_no_signal(handler: SignalHandler) -> None:
    with handler.deferring(), handler.closing_at_end(lambda reason: None):  # which cannot be pickled
        press()
        copy = pickle.loads(pickle.dumps(handler))
    assert (handler.received, copy.received) == (signal.SIGINT, 0)


def test_a_full_disk_stops_a_sweep_as_a_signal_does_and_the_first_reason_counts(
    handler: SignalHandler,
) -> None:
    with handler.deferring():
        assert not handler.is_stopping
        handler.request_stop("no room in a")
        handler.request_stop("no room in b")
        assert handler.is_stopping
        assert not handler.is_interrupted
    assert handler.disk_full_reason == "no room in a"
    with handler.deferring():
        assert not handler.is_stopping


STUCK = """
import subprocess, sys, time
from orchestrator.system.signals import SignalHandler
handler = SignalHandler()
with handler.handling("the last words"), handler.deferring():
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
