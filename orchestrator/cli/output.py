"""Print summaries and tables on stdout, and the command that carries on after a signal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from orchestrator.system.console import drawn_on, plain, print_json, print_line, print_text, resume_hint
from orchestrator.system.signals import SignalHandler

if TYPE_CHECKING:
    from orchestrator.analysis.tables import Table
    from orchestrator.execution.summary import Summary


WIDTH = 200  # columns of a table where there is no terminal


@contextmanager
def exit_on_signal(*, start_seconds: float | None = None) -> Iterator[SignalHandler]:
    """Handle the signals of a command: it ends by itself, and exits with 128 plus the signal's number.

    `start_seconds` are those of `SignalHandler.handling`.
    """
    signals = SignalHandler()
    with signals.handling(resume_hint(), start_seconds=start_seconds):
        try:
            yield signals
        except KeyboardInterrupt:
            if not signals.received:
                raise
        if signals.received:
            print_line(resume_hint(), error=True)
            raise typer.Exit(128 + signals.received)


class Result(Protocol):
    """What a command prints: JSON, or lines of text."""

    def to_json(self) -> Any: ...

    def lines(self) -> Iterable[str]: ...


def print_result(result: Result, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    for line in result.lines():
        print_line(line)


def print_summary(summary: Summary) -> None:
    tables = summary.tables()
    for table in tables:
        print_table(table)
    for name, reason in summary.failures.items():
        print_line(f"failed: {name}: {reason}", error=True)
    print_line(summary.line())
    if picture := summary.picture():
        print_line(f"picture: {picture}")
    if report := summary.report():
        print_line(f"report:  {report}")
    if not summary.outcome.signal:
        compare = f"`orchestrate compare {shlex.quote(summary.space)}`"
        again = f", {compare} prints the table again" if tables else ""
        print_line(f"next: `orchestrate ui` opens the runs{again}")


def print_table(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    # The title is a line of its own: rich would wrap it at the width of the table.
    print()
    print_line(table.title)
    grid = RichTable()
    for name in table.header:
        grid.add_column(plain(name))
    for row in table.rows:
        grid.add_row(*(plain(cell) for cell in row))
    stream = drawn_on(sys.stdout)
    console = Console(file=stream)
    console = console if console.is_terminal else Console(file=stream, width=WIDTH)
    with console.capture() as capture:  # rich itself would end the process where a pipe is broken
        console.print(grid)
    stream.write(capture.get())
    if table.note:
        print_text(table.note)
