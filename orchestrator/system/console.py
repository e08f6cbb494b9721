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
    """One line, whatever is in the text; `error` is for stderr, at once."""
    stream = sys.stderr if error else sys.stdout
    print(escape_controls(str(text)), file=stream, flush=error)


def print_text(text: str, *, error: bool = False) -> None:
    """A text of several lines; `error` is for stderr, at once."""
    print(escape_controls(text, allowed=LINES), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """JSON in ASCII, whose own escapes keep every text as it is."""
    print(json.dumps(content, indent=1, default=default).replace("\x7f", r"\u007f"))


def resume_hint() -> str:
    """The command that was given, to be given again."""
    return escape_controls(f"interrupted; to carry on: {shlex.join(['orchestrate', *sys.argv[1:]])}")


def plain(text: str) -> Text:
    """For rich: shown as it is, without markup, in one line."""
    from rich.text import Text

    return Text(escape_controls(text))
