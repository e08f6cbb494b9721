"""What other processes do is told from what this one does."""

from __future__ import annotations

import subprocess
import sys
from time import sleep

import pytest

from orchestrator.system import machine
from orchestrator.system.machine import MachineLoad, watch_load


def test_a_quiet_machine_is_not_busy() -> None:
    assert MachineLoad(2.0, 0.2, 2).busy == ""
    assert MachineLoad(16.0, 1.6, 16).busy == ""


def test_others_are_all_that_is_busy_but_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": [10.0, 12.0], "_busy_seconds": [100.0, 103.0], "_process_seconds": [7.0, 8.0]}
    for name, values in clocks.items():
        monkeypatch.setattr(machine, name, iter(values).__next__)
    assert watch_load()().others == 1.0  # 3 s of work in 2 s, 1 s of it ours


def test_another_process_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        sleep(0.2)
        load = watch_load()
        sleep(1.0)
        assert load().others > 0.1
    finally:
        busy.kill()
        busy.wait()
