"""Comparisons as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.formatting import escape_controls

if TYPE_CHECKING:
    from orchestrator.analysis.tables import Table

HTML = re.compile(r"<(?=[a-zA-Z/!?])")


def markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in found:
        rows = [[cell(text) for text in row] for row in (table.header, *table.rows)]
        rows.insert(1, ["---"] * len(table.header))
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        note = f"\n\n{_text(table.note)}" if table.note else ""
        parts.append(f"**{_text(table.title)}**\n\n{lines}{note}")
    return "\n\n".join(parts)


def cell(text: str) -> str:
    """The text of a cell, which neither ends it nor is HTML."""
    return _text(escape_controls(text)).replace("|", r"\|")


def _text(text: str) -> str:
    """A text in which no HTML begins."""
    return HTML.sub("&lt;", escape_controls(text, allowed="\n\t"))
