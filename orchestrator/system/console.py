"""Lines and JSON for the terminal: results on stdout, failures on stderr."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from orchestrator.formatting import escape_controls
from orchestrator.system.output_streams import LINES

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text


def print_line(text: object, *, error: bool = False) -> None:
    """Print one line, with control characters escaped; `error` prints to stderr and flushes."""
    stream = sys.stderr if error else sys.stdout
    print(escape_controls(str(text)), file=stream, flush=error)


def print_text(text: str, *, error: bool = False) -> None:
    """Print a text of several lines; `error` prints to stderr and flushes."""
    print(escape_controls(text, allowed=LINES), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Print JSON in ASCII: its escapes keep control characters off the terminal."""
    print(json.dumps(content, indent=1, default=default).replace("\x7f", r"\u007f"))


def resume_hint() -> str:
    """Return the message for an interrupted command: the command that carries on."""
    return escape_controls(f"interrupted; to carry on: {shlex.join(['orchestrate', *sys.argv[1:]])}")


def plain(text: str) -> Text:
    """Return a text for rich, in one line and without markup."""
    from rich.text import Text

    return Text(escape_controls(text))
