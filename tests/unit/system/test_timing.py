"""Side by side: who is timed how often, and what becomes of the times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import sleep

import pytest
import torch

from orchestrator.system.machine import MachineLoad
from orchestrator.system.timing import Spread, Timing, _order, _ratio, _rounds, side_by_side, spread

QUIET = MachineLoad(0.5, 0.0, 2)


def test_a_spread_by_hand() -> None:
    assert spread([0.005, 0.001, 0.003, 0.002, 0.004]) == Spread(3.0, pytest.approx(2.0))
    assert spread([0.25]) == Spread(250.0, 0.0)


def test_ratios_are_medians_over_the_rounds() -> None:
    first = [[4.0, 6.0, 5.0], [8.0], [10.0]]  # medians 5, 8, 10
    other = [[1.0], [4.0], [1.0, 3.0, 2.0]]  # medians 1, 4, 2: ratios 5, 2, 5
    assert _ratio(first, other) == 5.0


def test_every_other_round_runs_backwards() -> None:
    assert list(_order(["dense", "cut", ""], 3)) == [
        "dense",
        "cut",
        "",
        "",
        "cut",
        "dense",
        "dense",
        "cut",
        "",
    ]


@pytest.mark.parametrize(("longest", "rounds"), [(1e-5, 7), (0.03, 7), (0.05, 5), (0.1, 3), (9.0, 3)])
def test_long_calls_make_fewer_rounds(longest: float, rounds: int) -> None:
    assert _rounds(longest, 0.5001) == rounds


def test_all_functions_are_timed_and_the_first_one_twice() -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls[name] += 1
            sleep(seconds)

        return call

    found = side_by_side({"slow": counted("slow", 0.02), "fast": counted("fast", 0.001)}, seconds=0.1)
    assert list(found.spreads) == list(found.ratios) == ["slow", "fast"]
    assert found.spreads["slow"].p50 >= 20
    assert found.ratios["slow"] == 1.0
    assert 1.5 < found.ratios["fast"] <= 25  # 20 by the sleeps; a busy machine adds to both
    assert calls["slow"] >= 2 * 3 + 1
    assert found.load.cores >= 1


@pytest.mark.parametrize(
    ("aa", "load", "doubts"),
    [
        (1.0, QUIET, ()),
        (0.9, QUIET, ()),
        (1.1, QUIET, ()),
        (1.11, QUIET, ("A/A is 1.11",)),
        (0.85, QUIET, ("A/A is 0.85",)),
        (1.0, MachineLoad(0.5, 0.7, 2), ("other processes kept 0.7 of 2 cores busy",)),
        (1.0, MachineLoad(7.5, 0.0, 2), ()),
        (0.5, MachineLoad(2.5, 0.15, 2), ("A/A is 0.50", "load average 2.5 on 2 cores")),
    ],
)
def test_times_are_doubted_where_the_control_is_out_or_the_machine_is_busy(
    aa: float, load: MachineLoad, doubts: tuple[str, ...]
) -> None:
    assert Timing({}, {}, aa, load).doubts == doubts


class Event:
    """A CUDA event of which every second one is `milliseconds` after the one before."""

    milliseconds, waits = 2.0, 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        Event.waits += 1

    def elapsed_time(self, end: Event) -> float:
        return self.milliseconds


def test_on_a_gpu_events_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(Event, "waits", 0)
    calls: Counter[str] = Counter()
    functions = {name: lambda name=name: calls.update([name]) for name in ("dense", "cut")}
    found = side_by_side(functions, seconds=0.0, device="cuda")
    assert found.spreads["dense"] == Spread(2.0, 0.0)
    assert found.ratios == {"dense": 1.0, "cut": 1.0}
    # Three rounds of three calls, each waited for; dense is timed twice.
    assert Event.waits == 3 * 3 * 3
    assert calls["cut"] == 1 + 3 * (1 + 3)
