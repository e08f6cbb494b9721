"""Time functions that compute the same, side by side in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch
from torch.utils.benchmark import Timer

from orchestrator.system.machine import MachineLoad, watch_load

MIN_ROUNDS, MAX_ROUNDS = 3, 7
MIN_CALLS = 3  # of a round on a GPU
CONTROL = ""  # the first function, timed a second time
MIN_SELF_RATIO, MAX_SELF_RATIO = 0.9, 1.1


@dataclass(frozen=True)
class Spread:
    """Median and interquartile range of the time of one call, in milliseconds."""

    p50: float
    iqr: float


@dataclass(frozen=True)
class Timing:
    """Result of `side_by_side`: a spread per function, and how many times as fast as the first each is.

    `ratios` are medians over the rounds; `self_ratio` is that of the first function against itself.
    """

    spreads: Mapping[str, Spread]
    ratios: Mapping[str, float]
    self_ratio: float
    load: MachineLoad

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why no claim should rest on these times; empty if they can be relied on."""
        doubts = (
            [] if MIN_SELF_RATIO <= self.self_ratio <= MAX_SELF_RATIO else [f"A/A is {self.self_ratio:.2f}"]
        )
        return (*doubts, *([self.load.busy] if self.load.busy else []))


def side_by_side(
    functions: Mapping[str, Callable[[], object]], *, seconds: float, device: str = "cpu"
) -> Timing:
    """Time every function for about `seconds`, one after the other in each round, the first one twice.

    Every other round runs backwards, so that a machine that slows down favours none. One call of each
    comes before. A sample is the mean of a block of calls (torch.utils.benchmark), long enough for the
    clock; calls that are long make fewer rounds, and take their time. On a `cuda` device a sample is one call
    between two events on the device.
    """
    first = next(iter(functions))
    clock = _event_times if device == "cuda" else _block_times
    timed = {**functions, CONTROL: functions[first]}
    rounds = _rounds(max(_seconds(function) for function in functions.values()), seconds)
    samples: dict[str, list[list[float]]] = {name: [] for name in timed}
    load = watch_load()
    for name in _order(list(timed), rounds):
        samples[name].append(clock(timed[name], seconds / rounds))
    return Timing(
        {name: spread([t for times in samples[name] for t in times]) for name in functions},
        {name: _ratio(samples[first], samples[name]) for name in functions},
        _ratio(samples[first], samples[CONTROL]),
        load(),
    )


def _block_times(function: Callable[[], object], seconds: float) -> list[float]:
    """Return the mean time of a call, in seconds, in each of several blocks."""
    times: list[float] = (
        Timer("run()", globals={"run": function}).blocked_autorange(min_run_time=seconds).times
    )
    return times


def _event_times(function: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each call on a GPU, from the first kernel to the last, and at least three.

    The host waits for each call before the next: one that is short is as long as its kernels take to launch.
    """
    times: list[float] = []
    function()
    torch.cuda.synchronize()
    started = perf_counter()
    while len(times) < MIN_CALLS or perf_counter() - started < seconds:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def _seconds(function: Callable[[], object]) -> float:
    """Return the time of one call, which also warms up."""
    started = perf_counter()
    function()
    return perf_counter() - started


def _rounds(longest: float, seconds: float) -> int:
    """Return as many rounds as the time allows: a round makes at least two calls of a function."""
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / (2 * longest))))


def _order(names: Sequence[str], rounds: int) -> Iterator[str]:
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


def _ratio(first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Return the median over the rounds of how many times as long the first took."""
    return median(median(a) / median(b) for a, b in zip(first, other, strict=True))


def spread(seconds: Sequence[float]) -> Spread:
    """Return the spread of samples in seconds. The range of a single one is 0."""
    if len(seconds) < 2:
        return Spread(1e3 * seconds[0], 0.0)
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    return Spread(1e3 * middle, 1e3 * (high - low))


def batch_suffix(batch: int) -> str:
    """Return the suffix of a metric's name; nothing for a batch of one."""
    return "" if batch == 1 else f"_batch{batch}"
