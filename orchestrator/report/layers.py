"""Which layers the weights were taken from."""

from __future__ import annotations

from orchestrator.analysis.notes import legend
from orchestrator.report.featured import Group, groups, left_out
from orchestrator.report.heat import MOST_ROWS, heat_table
from orchestrator.report.markup import Html, joined, paragraph, tag
from orchestrator.report.section import Section
from orchestrator.report.swept import Cell, Json, Swept

PREFIX = "layers/"


def layers(swept: Swept) -> Section | None:
    """None where no run tells of layers. Of every network one run's file is read, for the layers' order."""
    shown = []
    sizes: dict[str, dict[str, int]] = {}
    for group in groups(swept):
        if group.panel not in sizes:
            sizes[group.panel] = _sizes(swept, group.cells[0])
        if sizes[group.panel]:
            shown.append(_map(group, sizes[group.panel]))
    if not shown:
        return None
    text = "Sparsity of each layer in %, means over seeds, from the input to the output. " + left_out(swept)
    signs = legend(name for group in groups(swept) for name in group.names)
    key = paragraph(f"{signs}.", class_="note") if signs else Html("")
    return Section("layers", "Layer by layer", joined((paragraph(text), key, *shown)))


def _sizes(swept: Swept, cell: Cell) -> dict[str, int]:
    """Layer -> its weights, in the order of the network."""
    table: Json | None = swept.file(swept.run_of(cell.trials[0]), "layers.json")
    if table is None:
        return {}
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    return {row["layer"]: row["weights"] for row in rows if row["weights"]}  # others are MACs alone


def _map(group: Group, sizes: dict[str, int]) -> Html:
    rows = [
        (
            joined((name, " ", tag("small", f"{weights:,}"))),
            [_mean(cell, f"{PREFIX}{name}") for cell in group.cells],
        )
        for name, weights in sizes.items()
    ]
    rest = len(rows) - MOST_ROWS
    more = paragraph(f"{rest} more layers are not shown.", class_="note") if rest > 0 else Html("")
    over = "amount asked for, %" if group.title != group.panel else "method"
    table = heat_table("layer, weights", group.names, rows, over=over)
    return joined((tag("h4", group.title), table, more))


def _mean(cell: Cell, name: str) -> float | None:
    return cell.mean(name) if name in cell.rows else None
