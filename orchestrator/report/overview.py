"""What it comes to, in one table; and every setting, in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.analysis.intervals import dense_interval, interval, test_set_width
from orchestrator.analysis.notes import dense_marks, legend, stopped_note
from orchestrator.analysis.settings import dense_sets
from orchestrator.analysis.tables import caption, search_table, sparsest_table
from orchestrator.report.markup import Html, joined, paragraph, table, tag, texts_table
from orchestrator.report.section import Section, Wanted
from orchestrator.report.swept import Cell, Swept

MOST_METHODS, MOST_ROWS, BEST_POINTS = 60, 300, 12


def in_short(swept: Swept, wanted: Wanted) -> Section:
    """How sparse each method gets at little loss; of a search its best points."""
    if swept.searched:
        objectives = swept.results.attrs["objectives"]
        best = search_table(swept.results, objectives, method=wanted.how)
        parts: tuple[Html, ...] = (
            paragraph(f"{best.title[0].upper()}{best.title[1:]}."),
            texts_table(best, texts=2, most=BEST_POINTS),
        )
        return Section("short", "In short", joined(parts))
    found = sparsest_table(
        swept.results, tolerance=wanted.tolerance, method=wanted.how, earlier=swept.earlier
    )
    parts = (
        tag("h3", found.title[0].upper() + found.title[1:]),
        texts_table(swept.told(found), texts=swept.texts, most=MOST_METHODS),
        paragraph(found.note, class_="note"),
    )
    return Section("short", "In short", joined(parts))


def all_settings(swept: Swept, wanted: Wanted) -> Section:
    """The numbers behind the charts, and how to read them."""
    shown = swept.cells[:MOST_ROWS]
    intervals = [interval(cell.rows["final/accuracy"].tolist(), method=wanted.how) for cell in shown]
    reading = READING.format(caption=caption(intervals, wanted.how))
    signs = legend(cell.marks + dense_marks(cell.rows) for cell in shown)
    parts: list[Html] = [
        paragraph(f"{reading} {_width(swept)}".strip(), class_="note"),
        paragraph(f"{signs}.", class_="note") if signs else Html(""),
        paragraph(stopped, class_="note") if (stopped := stopped_note(swept.results)) else Html(""),
    ]
    for panel in dict.fromkeys(cell.panel for cell in shown):
        mine = [cell for cell in shown if cell.panel == panel]
        rows = [*_dense_rows(mine, wanted), *(_row(cell, wanted) for cell in mine)]
        parts += [tag("h4", panel), table(*_without_blanks(rows))]
    if len(swept.cells) > MOST_ROWS:
        command = tag("code", f"orchestrate compare {swept.name} --csv")
        text = f"The first {MOST_ROWS} of {len(swept.cells):,} settings. All of them: "
        parts.append(paragraph(text, command, class_="note"))
    return Section("settings", "Every setting", joined(parts))


def _dense_rows(cells: Sequence[Cell], wanted: Wanted) -> Iterator[list[str]]:
    """A row for each set of dense networks behind these settings."""
    for _, rows in dense_sets([cell.rows for cell in cells]):
        if (dense := dense_interval(rows, method=wanted.how)) is not None:
            yield ["dense", "", f"{dense}{dense_marks(rows)}", *[""] * (len(HEADER) - 4), str(dense.count)]


def _without_blanks(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows without the columns that no run has a value for."""
    used = [n for n in range(len(HEADER)) if n < 2 or any(row[n] for row in rows)]
    return [HEADER[n] for n in used], [[row[n] for n in used] for row in rows]


def _or_blank(cell: Cell, name: str, whole: float) -> str:
    """A mean as a part of the whole in percent; blank for runs of before it was counted."""
    if name not in cell.rows or cell.rows[name].isna().any():
        return ""
    return f"{100 * cell.mean(name) / whole:.2f}"


def _width(swept: Swept) -> str:
    """What the size of the test set alone does to an accuracy."""
    parts = []
    for name, images in swept.test_images.items():
        dense = float(swept.finished.loc[swept.finished["dataset"] == name, "ipa/accuracy"].mean())
        width = test_set_width(dense, images)
        parts.append(f"{name} has {images:,} test images, by which alone {100 * dense:.1f}% is ± {width:.1f}")
    if not parts:
        return ""
    return f"{'; '.join(parts)} points: no number of seeds narrows that, though pairs share it."


def _row(cell: Cell, wanted: Wanted) -> list[str]:
    dense = cell.mean("final/macs_dense")
    return [
        cell.name,
        cell.amount_text,
        f"{interval(cell.rows['final/accuracy'].tolist(), method=wanted.how)}{cell.marks}",
        f"{cell.mean('final/loss'):.3f}",
        f"{100 * cell.mean('final/sparsity'):.2f}",
        _or_blank(cell, "final/sparsity_chosen", 1),
        f"{100 * cell.mean('final/macs_effective') / dense:.2f}",
        _or_blank(cell, "final/macs_effective_chosen", dense),
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
    "chosen, %",
    "MACs, %",
    "MACs chosen, %",
    "MACs cut, %",
    "parameters cut",
    "epochs",
    "GFLOPs",
    "seeds",
)
READING = (
    "Accuracy is {caption}. Sparsity counts what is dead, by choice or because all that it reads or all "
    "that reads it is dead; chosen is what the masks took away by themselves. MACs are those of a machine "
    "that skips dead weights, as a share of the dense "
    "network's; cut is what is left after dead channels are taken out for good. Epochs and GFLOPs count "
    "all training since the first epoch of the dense network."
)
