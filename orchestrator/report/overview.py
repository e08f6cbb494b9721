"""What it comes to, in one table; and every setting, in another."""

from __future__ import annotations

from orchestrator.comparing.interval import interval
from orchestrator.comparing.setting import percent
from orchestrator.comparing.tables import caption, searched, sparsest_table
from orchestrator.report.markup import Html, joined, paragraph, table, tag, texts_table
from orchestrator.report.section import Section, Wanted
from orchestrator.report.swept import Cell, Swept

MOST_METHODS, MOST_ROWS, BEST_POINTS = 60, 300, 12


def in_short(swept: Swept, wanted: Wanted) -> Section:
    """How sparse each method gets at little loss; of a search its best points."""
    if swept.searched:
        objectives = swept.results.attrs["objectives"]
        best = searched(swept.results, objectives, how=wanted.how)
        parts: tuple[Html, ...] = (
            paragraph(f"{best.title[0].upper()}{best.title[1:]}."),
            texts_table(best, texts=2, most=BEST_POINTS),
        )
        return Section("short", "In short", joined(parts))
    found = sparsest_table(swept.results, tolerance=wanted.tolerance, how=wanted.how)
    parts = (
        tag("h3", found.title[0].upper() + found.title[1:]),
        texts_table(swept.told(found), texts=swept.texts, most=MOST_METHODS),
        paragraph(found.note, class_="note"),
    )
    return Section("short", "In short", joined(parts))


def all_settings(swept: Swept, wanted: Wanted) -> Section:
    """The numbers behind the charts, and how to read them."""
    parts: list[Html] = [paragraph(READING.format(caption=caption(wanted.how)), class_="note")]
    shown = swept.cells[:MOST_ROWS]
    for panel in dict.fromkeys(cell.panel for cell in shown):
        rows = [_row(cell, wanted) for cell in shown if cell.panel == panel]
        parts += [tag("h4", panel), table(HEADER, rows)]
    if len(swept.cells) > MOST_ROWS:
        command = tag("code", f"orchestrate compare {swept.name} --csv")
        text = f"The first {MOST_ROWS} of {len(swept.cells):,} settings. All of them: "
        parts.append(paragraph(text, command, class_="note"))
    return Section("settings", "Every setting", joined(parts))


def _row(cell: Cell, wanted: Wanted) -> list[str]:
    dense = cell.mean("final/macs_dense")
    return [
        cell.name,
        percent(cell.amount),
        str(interval(cell.rows["final/accuracy"].tolist(), how=wanted.how)),
        f"{cell.mean('final/loss'):.3f}",
        f"{100 * cell.mean('final/sparsity'):.2f}",
        f"{100 * cell.mean('final/macs_effective') / dense:.2f}",
        f"{100 * cell.mean('final/macs_physical') / dense:.2f}",
        f"{cell.mean('final/parameters_physical'):,.0f}",
        f"{cell.mean('final/epochs'):g}",
        f"{cell.mean('final/train_flops') / 1e9:,.3g}",
        str(len(cell.rows)),
    ]


HEADER = (
    "method",
    "amount",
    "accuracy",
    "loss",
    "sparsity, %",
    "MACs, %",
    "MACs cut, %",
    "parameters cut",
    "epochs",
    "GFLOPs",
    "seeds",
)
READING = (
    "Accuracy is {caption}. MACs are those of a machine that skips dead weights, as a share of the dense "
    "network's; cut is what is left after dead channels are taken out for good. Epochs and GFLOPs count "
    "all training since the first epoch of the dense network."
)
