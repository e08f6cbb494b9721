"""What pruned networks forgot: accuracy class by class, beside the dense network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparison import sparsest_within
from orchestrator.analysis.notes import legend
from orchestrator.report.featured import Group, groups, left_out
from orchestrator.report.heat import heat_table
from orchestrator.report.markup import Html, joined, paragraph, table, tag
from orchestrator.report.section import Section, Wanted
from orchestrator.report.swept import Cell, Json, Swept

MOST_CLASSES = 20
FORGOTTEN = 0.5  # of what the dense network gets right


@dataclass(frozen=True)
class Seen:
    """One trial of a setting: its class accuracies and those of the dense network that it comes from."""

    cell: Cell
    seed: int
    classes: tuple[float | None, ...]
    dense: tuple[float | None, ...]
    accuracy: float
    chosen: bool  # the sparsest of its method within the tolerance, by validation accuracy


def classes(swept: Swept, wanted: Wanted) -> Section | None:
    """None where no confusion matrix is left. Of every setting that is shown, one run's file is read."""
    maps, lines = [], []
    for group in groups(swept):
        if found := _seen(swept, group, wanted.tolerance):
            maps.append(_map(group, found))
            lines += _lines(group, found)
    if not maps:
        return None
    points = f"{100 * wanted.tolerance:g}"
    text = (
        "Of the test images of each class, how many each network gets right, in %; one seed, the lowest that "
        f"has finished. Framed is the method's sparsest network within {points} of dense by validation "
        "accuracy; the list tells of it, and of the next sparser one: what was lost first. Where there is "
        "none, it tells of the least sparse one. "
        f"{left_out(swept)}"
    )
    header = ["method", "network", "amount", "accuracy, %", "dense, %", "worst class, %", "forgotten classes"]
    said = (
        f"Forgotten is a class of which less than {100 * FORGOTTEN:.0f}% is left of what the dense network "
        "gets right."
    )
    worst = table(header, lines, texts=2)
    shown = [name for group in groups(swept) for name in group.names]
    signs = legend([*shown, *(cell for line in lines for cell in line)])
    parts = (paragraph(text), worst, paragraph(f"{said} {signs}".strip(), class_="note"), *maps)
    return Section("classes", "Class by class", joined(parts))


def class_accuracies(confusion: Sequence[Sequence[int]]) -> tuple[float | None, ...]:
    """Of a matrix [true, predicted], the fraction of each true class on the diagonal; None without images."""
    return tuple(row[n] / sum(row) if sum(row) else None for n, row in enumerate(confusion))


def _seen(swept: Swept, group: Group, tolerance: float) -> list[Seen]:
    found = []
    best = _chosen(group, tolerance)
    for cell in group.cells:
        row = cell.trials[0]
        matrix = swept.file(swept.run_of(row), "confusion.json")
        dense: Json | None = swept.file(swept.dense_of(row), "confusion.json")
        if matrix is not None and dense is not None:
            found.append(
                Seen(
                    cell,
                    int(row["seed"]),
                    class_accuracies(matrix),
                    class_accuracies(dense),
                    float(row["final/accuracy"]),
                    row["key"] in best,
                )
            )
    return found


def _chosen(group: Group, tolerance: float) -> set[str]:
    """Keys of the sparsest trials within the tolerance, for each method its lowest seed's."""
    keys: set[str] = set()
    for method in dict.fromkeys(cell.method for cell in group.cells):
        import pandas

        rows = pandas.concat([cell.rows for cell in group.cells if cell.method == method])
        lowest = rows[rows["seed"] == rows["seed"].min()]
        keys |= set(lowest.loc[sparsest_within(lowest, tolerance), "key"])
    return keys


def _map(group: Group, found: Sequence[Seen]) -> Html:
    names = dict(zip((id(cell) for cell in group.cells), group.names, strict=True))
    columns = ["dense", *(names[id(seen.cell)] for seen in found)]
    order = _shown_classes(found)
    rows = [
        (f"class {number}", [found[0].dense[number], *(seen.classes[number] for seen in found)])
        for number in order
    ]
    marked = [number for number, seen in enumerate(found, start=1) if seen.chosen]
    more = len(found[0].dense) - len(order)
    rest = f"The {len(order)} classes that lost most; {more} others." if more else ""
    over = f"{'method' if group.title == group.panel else 'amount asked for, %'} (seed {found[0].seed})"
    heat = heat_table("class", columns, rows, over=over, marked=marked)
    return joined((tag("h4", group.title), heat, paragraph(rest, class_="note") if rest else Html("")))


def _shown_classes(found: Sequence[Seen]) -> list[int]:
    """All classes in their order, or those that lost most at any setting."""
    count = len(found[0].dense)
    if count <= MOST_CLASSES:
        return list(range(count))
    lost = [sum(_loss(seen, number) for seen in found) for number in range(count)]
    return sorted(sorted(range(count), key=lambda n: -lost[n])[:MOST_CLASSES])


def _loss(seen: Seen, number: int) -> float:
    return (seen.dense[number] or 0.0) - (seen.classes[number] or 0.0)


def _lines(group: Group, found: Sequence[Seen]) -> list[list[str]]:
    """The chosen trial of each method and the one after it; of a method without one, its first."""
    lines = []
    for method in dict.fromkeys(seen.cell.method for seen in found):
        mine = [seen for seen in found if seen.cell.method == method]
        chosen = next((n for n, seen in enumerate(mine) if seen.chosen), None)
        shown = mine[:1] if chosen is None else mine[chosen : chosen + 2]
        lines += [_line(group, seen) for seen in shown]
    return lines


def _line(group: Group, seen: Seen) -> list[str]:
    known = [n for n, value in enumerate(seen.classes) if value is not None]
    dense = sum((seen.dense[n] or 0.0) for n in known) / len(known)
    worst = min(known, key=lambda n: seen.classes[n] or 0.0)
    forgotten = [n for n in known if (seen.classes[n] or 0.0) < FORGOTTEN * (seen.dense[n] or 0.0)]
    return [
        seen.cell.method,
        group.panel,
        seen.cell.amount_text,
        f"{100 * seen.accuracy:.1f}{seen.cell.marks}",
        f"{100 * dense:.1f}",
        f"{worst}: {100 * (seen.classes[worst] or 0):.0f}, dense {100 * (seen.dense[worst] or 0):.0f}",
        ", ".join(map(str, forgotten)) or "none",
    ]
