"""Lines, tables and JSON as the command line prints them: results on stdout, failures on stderr.

Texts come from stores, files and servers: what is in them is shown, and never obeyed by a terminal.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from orchestrator.control_characters import escape_controls
from orchestrator.output_streams import LINES, drawn_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text

    from orchestrator.comparing.summary import Summary
    from orchestrator.comparing.tables import Table

WIDTH = 200  # columns of a table where there is no terminal


def print_line(text: object, *, error: bool = False) -> None:
    """One line, whatever is in the text; `error` is for stderr, at once."""
    stream = sys.stderr if error else sys.stdout
    print(escape_controls(str(text)), file=stream, flush=error)


def print_text(text: str, *, error: bool = False) -> None:
    """A text of several lines; `error` is for stderr, at once."""
    print(escape_controls(text, allowed=LINES), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """JSON in ASCII, whose own escapes keep every text as it is."""
    print(json.dumps(content, indent=1, default=default).replace("\x7f", r"\u007f"))


def carry_on() -> str:
    """The command that was given, to be given again."""
    return escape_controls(f"interrupted; to carry on: {shlex.join(['orchestrate', *sys.argv[1:]])}")


def print_summary(summary: Summary) -> None:
    for table in summary.tables():
        print_table(table)
    for name, reason in summary.failures.items():
        print_line(f"failed: {name}: {reason}", error=True)
    print_line(summary.line())
    if picture := summary.picture():
        print_line(f"picture: {picture}")
    if report := summary.report():
        print_line(f"report:  {report}")
    if not summary.ended.signal:
        print_line("next: `orchestrate ui` opens the runs, `orchestrate compare` prints the table again")


def print_table(found: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn

    # The title stands on its own: rich would wrap it at the width of the table.
    print()
    print_line(found.title)
    drawn = Drawn()
    for name in found.header:
        drawn.add_column(plain(name))
    for row in found.rows:
        drawn.add_row(*(plain(cell) for cell in row))
    stream = drawn_on(sys.stdout)
    console = Console(file=stream)
    console = console if console.is_terminal else Console(file=stream, width=WIDTH)
    with console.capture() as capture:  # rich itself would end the process where a pipe is broken
        console.print(drawn)
    stream.write(capture.get())
    if found.note:
        print_text(found.note)


def plain(text: str) -> Text:
    """For rich: shown as it is, without markup, in one line."""
    from rich.text import Text

    return Text(escape_controls(text))
