"""Progress bars, progress lines and the remaining time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.formatting import format_duration
from orchestrator.system.console import plain
from orchestrator.system.output_streams import drawn_on
from orchestrator.system.signals import STOPPING, received_signal
from orchestrator.trial.task import Task, TaskResult


@dataclass(frozen=True)
class RateEstimate:
    """One kind of run, in seconds: what those that ended took, and how long the others are at it.

    `todo` counts what has not ended, those that run among them.
    """

    todo: int
    durations: Sequence[float] = ()
    running: Sequence[float] = ()


def eta_seconds(paces: Sequence[RateEstimate], *, concurrent: float) -> float | None:
    """Seconds until all is done, `concurrent` runs at a time; None where a kind to do has not ended once."""
    work, longest = 0.0, 0.0
    for pace in paces:
        if not pace.todo:
            continue
        if not pace.durations:
            return None
        mean = sum(pace.durations) / len(pace.durations)
        rest = [max(0.0, mean - seconds) for seconds in pace.running]
        work += mean * max(0, pace.todo - len(rest)) + sum(rest)
        longest = max([longest, mean if pace.todo > len(rest) else 0.0, *rest])
    return max(work / max(concurrent, 1.0), longest)


SECONDS_BETWEEN_LINES = 30.0
REFRESHES_A_SECOND = 4
NARROW = 70  # columns, below which the bars are short


@dataclass
class TaskCounter:
    """The dense trainings or the trials: how many there are, and how they stand."""

    total: int
    reused: int = 0
    done: int = 0
    stopped: int = 0
    failed: int = 0
    started: dict[str, float] = field(default_factory=dict)  # key of a running point -> when
    took: list[float] = field(default_factory=list)

    @property
    def over(self) -> int:
        return self.reused + self.done + self.stopped + self.failed

    def begin(self, key: str) -> None:
        """One more runs; of a search nobody knows at the start how many there will be."""
        self.started[key] = monotonic()
        self.total = max(self.total, self.over + len(self.started))

    def end(self, outcome: TaskResult) -> None:
        began = self.started.pop(outcome.task.key, None)
        if began is not None:
            self.took.append(monotonic() - began)
        self.stopped += outcome.stopped
        self.done += outcome.metrics is not None
        self.failed += outcome.metrics is None and not outcome.stopped
        self.total = max(self.total, self.over + len(self.started))

    def pace(self) -> RateEstimate:
        now = monotonic()
        return RateEstimate(
            max(0, self.total - self.over), self.took, [now - at for at in self.started.values()]
        )

    def counts(self) -> str:
        """What there is of each; what matters most comes first, a narrow terminal cuts off the rest."""
        named = {"running": len(self.started), "failed": self.failed, "stopped": self.stopped}
        named |= {"done": self.done, "reused": self.reused}
        return ", ".join(f"{count} {word}" for word, count in named.items() if count)


class SweepProgress:
    """Counts how the points of a sweep stand; use it in a `with`. Everything goes to stderr."""

    def __init__(self, dense: TaskCounter, trials: TaskCounter) -> None:
        self.dense, self.trials = dense, trials
        self.concurrent = 1
        self.news = ""  # what is waited for while nothing runs
        self._best: tuple[float, str] | None = None
        self._began = self._spoken = monotonic()
        self._console = Console(file=drawn_on(sys.stderr))
        self._live = (
            Live(
                get_renderable=self._drawing,
                console=self._console,
                refresh_per_second=REFRESHES_A_SECOND,
                vertical_overflow="crop",
            )
            if _on_terminal()
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

    def started(self, point: Task) -> None:
        """A point is running, for the first time or again."""
        self.news = ""
        self._phase(point).begin(point.key)

    def ended(self, outcome: TaskResult) -> None:
        """One more point has ended."""
        self._phase(outcome.task).end(outcome)
        if outcome.metrics and outcome.task.parent:
            found = outcome.metrics["final/val_accuracy"], outcome.task.name
            self._best = max(self._best or found, found, key=lambda pair: pair[0])

    def print_line(self, line: str) -> None:
        """One line that stays, above the bars."""
        self._console.print(plain(line), soft_wrap=True)

    def tick(self) -> None:
        """Time has gone by: where there is no bar, a line is due now and then."""
        if self._live is None and monotonic() - self._spoken > SECONDS_BETWEEN_LINES:
            self._spoken = monotonic()
            self.print_line(self.line())

    def line(self) -> str:
        """All of it in one line."""
        named = [("dense", self.dense), ("trials", self.trials)]
        parts = [f"{name} {phase.over}/{phase.total}" for name, phase in named if phase.total]
        parts += [phase.counts() for phase in (self.trials,) if phase.counts()]
        return ", ".join([*parts, *self._remarks()])

    def _phase(self, point: Task) -> TaskCounter:
        return self.trials if point.parent else self.dense

    def _remarks(self) -> Iterator[str]:
        left = eta_seconds([self.dense.pace(), self.trials.pace()], concurrent=self.concurrent)
        yield f"{format_duration(monotonic() - self._began)} so far"
        if left is not None:
            yield f"about {format_duration(left)} left"
        if self._best:
            yield f"best {self._best[0]:.3f} ({self._best[1]})"

    def _drawing(self) -> Table:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")  # gives way on a narrow terminal
        width = 10 if self._console.width < NARROW else 20
        for name, phase in (("dense", self.dense), ("trials", self.trials)):
            if phase.total:
                bar = ProgressBar(total=phase.total, completed=phase.over, width=width)
                grid.add_row(name, bar, f"{phase.over}/{phase.total}", plain(phase.counts()))
        whole = Table.grid(expand=True)
        whole.add_column(no_wrap=True, overflow="ellipsis")
        whole.add_row(grid)
        news = STOPPING if received_signal() else self.news
        whole.add_row(plain(", ".join([*([news] if news else []), *self._remarks()])))
        return whole


def waiting(what: str) -> AbstractContextManager[object]:
    """Says on a terminal what is waited for within the block, and takes it away again."""
    if not _on_terminal():
        return nullcontext()
    return Console(file=drawn_on(sys.stderr)).status(plain(what), refresh_per_second=REFRESHES_A_SECOND)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
