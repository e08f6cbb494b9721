"""Which settings are shown one by one, where all of them would be too many to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.swept import Cell, Swept

MOST_PANELS, MOST_METHODS, MOST_AMOUNTS = 4, 6, 14


@dataclass(frozen=True)
class Group:
    """A heat map's columns: of one method its amounts, or of several methods their only one."""

    panel: str
    title: str
    names: tuple[str, ...]
    cells: tuple[Cell, ...]


def groups(swept: Swept) -> list[Group]:
    """The first networks and methods of the plan; of many amounts, some evenly spread, the ends with them."""
    found = []
    for panel in swept.panels[:MOST_PANELS]:
        methods = list(dict.fromkeys(cell.method for cell in swept.of(panel)))[:MOST_METHODS]
        by_method = {method: spread(swept.of(panel, method), MOST_AMOUNTS) for method in methods}
        if all(len(cells) == 1 for cells in by_method.values()):
            single = tuple(cells[0] for cells in by_method.values())
            names = tuple(cell.method + cell.marks for cell in single)
            found.append(Group(panel, panel, names, single))
            continue
        for method, cells in by_method.items():
            names = tuple(cell.amount_text.removesuffix("%") + cell.marks for cell in cells)
            found.append(
                Group(panel, f"{method} ({panel})" if len(swept.panels) > 1 else method, names, cells)
            )
    return found


def spread(cells: Sequence[Cell], most: int) -> tuple[Cell, ...]:
    if len(cells) <= most:
        return tuple(cells)
    return tuple(cells[round(n * (len(cells) - 1) / (most - 1))] for n in range(most))


def left_out(swept: Swept) -> str:
    """A sentence on what is not shown, or nothing."""
    parts = []
    if len(swept.panels) > MOST_PANELS:
        parts.append(f"the first {MOST_PANELS} of {len(swept.panels)} networks")
    if len(swept.methods) > MOST_METHODS:
        parts.append(f"the first {MOST_METHODS} of {len(swept.methods)} methods")
    if any(len(swept.of(p, m)) > MOST_AMOUNTS for p in swept.panels[:MOST_PANELS] for m in swept.methods):
        parts.append(f"{MOST_AMOUNTS} amounts, evenly spread")
    return f"Shown are {', '.join(parts)}." if parts else ""
