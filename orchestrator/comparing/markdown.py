"""Comparisons as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.comparing.tables import Table


def markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in found:
        rows = (table.header, ["---"] * len(table.header), *table.rows)
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"**{table.title}**\n\n{lines}" + (f"\n\n{table.note}" if table.note else ""))
    return "\n\n".join(parts)
