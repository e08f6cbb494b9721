"""Summaries and tables as text: results on stdout, failures on stderr."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.comparing.summary import Summary
    from orchestrator.comparing.tables import Table


def carry_on() -> str:
    """The command that was given, to be given again."""
    return f"interrupted; to carry on: {shlex.join(['orchestrate', *sys.argv[1:]])}"


def print_summary(summary: Summary) -> None:
    for table in summary.tables():
        print_table(table)
    for name, reason in summary.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(summary.line())
    if picture := summary.picture():
        print(f"picture: {picture}")
    if report := summary.report():
        print(f"report:  {report}")
    if not summary.ended.signal:
        print("next: `orchestrate ui` opens the runs, `orchestrate compare` prints the table again")


def print_table(found: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn

    # The title stands on its own: rich would wrap it at the width of the table.
    print(f"\n{found.title}")
    drawn = Drawn(*found.header)
    for row in found.rows:
        drawn.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(drawn)
    if found.note:
        print(found.note)
