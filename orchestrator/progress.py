"""What a person sees while a sweep runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

SECONDS_BETWEEN_LINES = 30.0


class SweepProgress:
    """Counts what is done, reused and failed; use it in a `with`. Everything goes to stderr."""

    def __init__(self, total: int, *, reused: int) -> None:
        self.total, self.reused, self.done, self.failed, self.stopped = total, reused, 0, 0, 0
        self._console = Console(stderr=True)
        self._spoken = monotonic()
        # The text comes last and gives way: on a narrow terminal the counts and times stay readable.
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            expand=True,
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total, completed=reused)

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def ended(self, *, failed: bool, best: str, stopped: bool = False) -> None:
        """One more point has ended."""
        self.done += not failed and not stopped
        self.stopped += stopped
        self.failed += failed
        ended = self.reused + self.done + self.stopped + self.failed
        early = f"{self.stopped} stopped, " if self.stopped else ""
        text = f"{self.done} done, {self.reused} reused, {early}{self.failed} failed{best}"
        self._bar.update(self._task, completed=ended, description=text)
        if self._bar.disable and monotonic() - self._spoken > SECONDS_BETWEEN_LINES:
            self._spoken = monotonic()
            self._console.print(f"{text}, of {self.total}")
