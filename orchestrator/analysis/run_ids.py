"""The run behind each row of a comparison, with the command that exports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.analysis.settings import amount_label, method_label, panel_title, settings
from orchestrator.analysis.tables import Table

if TYPE_CHECKING:
    from pandas import DataFrame

VALIDATION = "final/val_accuracy"
COMMAND = "orchestrate export"
HEADER = ["network", "method", "amount", "seed", "validation %", "command"]


def runs_table(results: DataFrame, *, most_rows: int | None = None) -> Table | None:
    """Return a row per setting: its most accurate run on validation images, and how it is exported.

    None without a finished trial. A network that is the only one is named in the title. Of more than
    `most_rows` settings the first are listed, and the note says how many there are.
    """
    lines = []
    for setting, rows in settings(results):
        run = rows.iloc[0]
        accuracy = ""
        if VALIDATION in rows and rows[VALIDATION].notna().any():
            run = rows.sort_values(VALIDATION, ascending=False, kind="stable").iloc[0]
            accuracy = f"{100 * float(run[VALIDATION]):.1f}"
        labels = [panel_title(setting), method_label(setting), amount_label(rows)]
        lines.append([*labels, str(run["seed"]), accuracy, f"{COMMAND} {run['run_id']}"])
    if not lines:
        return None
    has_networks = len({line[0] for line in lines}) > 1
    title, first = ("to export a row", 0) if has_networks else (f"to export a row: {lines[0][0]}", 1)
    note = "Of each row the seed that is best on validation images; --csv has the run ids of all seeds."
    if most_rows is not None and len(lines) > most_rows:
        note = f"The first {most_rows} of {len(lines):,} rows. {note}"
    return Table(title, HEADER[first:], [line[first:] for line in lines[:most_rows]], note)
