"""Progress bars, progress lines and the remaining time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.formatting import format_duration
from orchestrator.system.console import drawn_on, plain
from orchestrator.system.signals import STOPPING, SignalHandler
from orchestrator.trial.task import Task, TaskResult


@dataclass(frozen=True)
class RateEstimate:
    """What is known of the pace of one kind of run, in seconds.

    `todo` counts the runs that have not ended; `durations` are those of ended runs, and `running` how long
    each open run has been at it.
    """

    todo: int
    durations: Sequence[float] = ()
    running: Sequence[float] = ()


def eta_seconds(rates: Sequence[RateEstimate], *, concurrent: float) -> float | None:
    """Return the seconds until all is done, with `concurrent` runs at a time.

    None if a kind of run is to do of which none has ended.
    """
    work, longest = 0.0, 0.0
    for rate in rates:
        if not rate.todo:
            continue
        if not rate.durations:
            return None
        mean = sum(rate.durations) / len(rate.durations)
        remaining = [max(0.0, mean - seconds) for seconds in rate.running]
        work += mean * max(0, rate.todo - len(remaining)) + sum(remaining)
        longest = max([longest, mean if rate.todo > len(remaining) else 0.0, *remaining])
    return max(work / max(concurrent, 1.0), longest)


SECONDS_BETWEEN_LINES = 30.0
REFRESHES_A_SECOND = 4
NARROW = 70  # columns, below which the bars are short


def counts_text(counts: Mapping[str, int]) -> str:
    """Return `2 running, 1 failed`: the counts above 0 with their names, in the order given."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


@dataclass
class TaskCounter:
    """The number of dense trainings or of trials, and how many are in each state."""

    total: int
    reused: int = 0
    done: int = 0
    stopped: int = 0
    failed: int = 0
    # Key of a running task -> when it started, and how many a worker was given with it, itself included
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)  # of tasks given together, each one's share

    @property
    def ended(self) -> int:
        return self.reused + self.done + self.stopped + self.failed

    def on_start(self, key: str, *, together: int = 1) -> None:
        """Count a task that runs. A search makes the total grow: it is not known at the start."""
        self.started[key] = monotonic(), together
        self.total = max(self.total, self.ended + len(self.started))

    def on_result(self, result: TaskResult) -> None:
        """Count a task that has ended."""
        if result.task.key in self.started:
            started, together = self.started.pop(result.task.key)
            self.durations.append((monotonic() - started) / together)
        self.stopped += result.state == "stopped"
        self.done += result.state == "complete"
        self.failed += result.state == "failed"
        self.total = max(self.total, self.ended + len(self.started))

    def rate(self) -> RateEstimate:
        now = monotonic()
        running = [(now - started) / together for started, together in self.started.values()]
        return RateEstimate(max(0, self.total - self.ended), self.durations, running)

    def counts(self) -> str:
        """Return the counts as text; what matters most comes first: a narrow terminal cuts off the end."""
        counts = {"running": len(self.started), "failed": self.failed, "stopped": self.stopped}
        return counts_text({**counts, "done": self.done, "reused": self.reused})


class SweepProgress:
    """Show how the tasks of a sweep stand, on stderr; use it in a `with`.

    On a terminal these are bars, elsewhere a line now and then.
    """

    def __init__(self, dense: TaskCounter, trials: TaskCounter, signals: SignalHandler) -> None:
        self.dense, self.trials = dense, trials
        self._signals = signals
        self.concurrent = 1
        self.status_message = ""  # what the sweep waits for while nothing runs
        self._best: tuple[float, str] | None = None  # validation accuracy, name of the trial
        self._started = self._last_line = monotonic()
        self._console = Console(file=drawn_on(sys.stderr))
        self._live = (
            Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=REFRESHES_A_SECOND,
                vertical_overflow="crop",
            )
            if _is_terminal()
            else None
        )

    def __enter__(self) -> SweepProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def on_start(self, tasks: Sequence[Task]) -> None:
        """Count the tasks that a worker is given together, for the first time or again."""
        self.status_message = ""
        for task in tasks:
            self._counter(task).on_start(task.key, together=len(tasks))

    def on_result(self, result: TaskResult) -> None:
        """Count a task that has ended."""
        self._counter(result.task).on_result(result)
        if result.metrics and result.task.parent:
            trial = result.metrics["final/val_accuracy"], result.task.name
            self._best = max(self._best or trial, trial, key=lambda pair: pair[0])

    def print_line(self, line: str) -> None:
        """Print a line that stays, above the bars."""
        self._console.print(plain(line), soft_wrap=True)

    def tick(self) -> None:
        """Print a line now and then if there are no bars."""
        if self._live is None and monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            self.print_line(self.summary_line())

    def summary_line(self) -> str:
        """Return all counts, times and the best trial in one line."""
        counters = [("dense", self.dense), ("trials", self.trials)]
        words = [f"{name} {counter.ended}/{counter.total}" for name, counter in counters if counter.total]
        words += [counts] if (counts := self.trials.counts()) else []
        return ", ".join([*words, *self._remarks()])

    def _counter(self, task: Task) -> TaskCounter:
        return self.trials if task.parent else self.dense

    def _remarks(self) -> Iterator[str]:
        seconds_left = eta_seconds([self.dense.rate(), self.trials.rate()], concurrent=self.concurrent)
        yield f"{format_duration(monotonic() - self._started)} so far"
        if seconds_left is not None:
            yield f"about {format_duration(seconds_left)} left"
        if self._best:
            yield f"best {self._best[0]:.3f} ({self._best[1]})"

    def _render(self) -> Table:
        bars = Table.grid(padding=(0, 1), expand=True)
        bars.add_column(no_wrap=True)
        bars.add_column(no_wrap=True)
        bars.add_column(no_wrap=True, justify="right")
        bars.add_column(ratio=1, no_wrap=True, overflow="ellipsis")  # gives way on a narrow terminal
        width = 10 if self._console.width < NARROW else 20
        for name, counter in (("dense", self.dense), ("trials", self.trials)):
            if counter.total:
                bar = ProgressBar(total=counter.total, completed=counter.ended, width=width)
                bars.add_row(name, bar, f"{counter.ended}/{counter.total}", plain(counter.counts()))
        grid = Table.grid(expand=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(bars)
        message = STOPPING if self._signals.received else self.status_message
        grid.add_row(plain(", ".join([*([message] if message else []), *self._remarks()])))
        return grid


def waiting(message: str) -> AbstractContextManager[object]:
    """Show on a terminal what the block waits for."""
    if not _is_terminal():
        return nullcontext()
    return Console(file=drawn_on(sys.stderr)).status(plain(message), refresh_per_second=REFRESHES_A_SECOND)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
