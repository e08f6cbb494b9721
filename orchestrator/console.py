"""Summaries and tables as text: results on stdout, failures on stderr."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.compare import Table
    from orchestrator.summary import Summary


def print_summary(summary: Summary, space: str, sets: list[str], stop: str | None) -> None:
    for table in summary.tables():
        print_table(table)
    for name, reason in summary.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(summary.line())
    if picture := summary.picture():
        print(f"picture: {picture}")
    if summary.ended.signal:
        words = [
            "orchestrate",
            "sweep",
            "--space",
            space,
            *(part for item in sets for part in ("--set", item)),
            *([] if stop is None else ["--stop", stop]),
        ]
        print(f"interrupted; to carry on: {shlex.join(words)}", file=sys.stderr)
    else:
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
