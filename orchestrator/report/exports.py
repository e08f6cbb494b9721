"""The section that names the run behind each setting, with the commands that export it."""

from __future__ import annotations

from orchestrator.analysis.run_ids import COMMAND, runs_table
from orchestrator.report.components import Block, Code, Paragraph, Section, TableBlock, note
from orchestrator.report.data import ReportData

MAX_ROWS = 300
NUMBERS = 3  # columns to the right: seed, accuracy and command


def exports_section(data: ReportData) -> Section | None:
    """List for each setting its most accurate run on validation images, and how it is exported."""
    table = runs_table(data.results)
    if table is None:
        return None
    best = f"{COMMAND} {data.name} --best"
    blocks: list[Block] = [
        Paragraph("The most accurate network on validation images, or the smallest nearly as accurate:"),
        Code(f"{best}\n{best} --within 1%"),
        TableBlock(table.header, table.rows, len(table.header) - NUMBERS, MAX_ROWS, "settings"),
        note(table.note),
    ]
    return Section("exports", "Export a network", blocks)
