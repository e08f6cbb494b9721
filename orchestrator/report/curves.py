"""Accuracy against what is left of the networks: sparsity, compression, MACs, and latency where measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.notes import MEANINGS, SURVIVORS
from orchestrator.analysis.orders import turning
from orchestrator.analysis.plots import spread, spread_note
from orchestrator.formatting import format_percent
from orchestrator.report.charts import Axis, Spec, key, looks
from orchestrator.report.markup import Html, joined, paragraph, tag
from orchestrator.report.plots import Mark, can_label, dot_chart, dots_height, line_chart
from orchestrator.report.section import Section, place, side_by_side
from orchestrator.report.swept import Cell, Swept

MOST_PANELS, MOST_LINES = 36, 14
TALL, SMALL = 420, 290
SAME_SPARSITY = 0.005
ACCURACY = "test accuracy, %"
LATENCY = "final/latency_ms_p50"
HOW_TO_MEASURE = "orchestrate latency {name}"


@dataclass(frozen=True)
class Quantity:
    """What accuracy is drawn against."""

    name: str
    axis: Axis
    value: Callable[[Cell], float]
    about: str


QUANTITIES = (
    Quantity(
        "sparsity",
        Axis("sparsity: weights removed, %"),
        lambda cell: 100 * cell.mean("final/sparsity"),
        "Of the prunable weights, whatever was removed together.",
    ),
    Quantity(
        "compression",
        Axis("compression: all parameters / living ones", log=True),
        lambda cell: cell.mean("final/compression"),
        "Biases and norms are counted, so that a network with many of them compresses less.",
    ),
    Quantity(
        "effective MACs",
        Axis("effective MACs of one image", log=True),
        lambda cell: cell.mean("final/macs_effective"),
        "Multiply-adds that a machine which skips every dead weight would do; FLOPs are twice as many.",
    ),
    Quantity(
        "physical MACs",
        Axis("physical MACs of one image", log=True),
        lambda cell: cell.mean("final/macs_physical"),
        "Multiply-adds of the network that was cut out, on any machine: single dead weights save none.",
    ),
    Quantity(
        "latency",
        Axis("measured latency of one image, ms", log=True),
        lambda cell: cell.mean(LATENCY),
        "Of the form that would be shipped, the median; the machine is that of the measurement.",
    ),
)


def curves(swept: Swept) -> Section:
    panels = swept.panels[:MOST_PANELS]
    charts: dict[str, Spec] = {}
    parts: list[Html] = [_note(swept, panels)]
    if all(_alike(swept.of(panel)) for panel in panels):
        parts.append(_dots(swept, panels, charts))
    elif len(panels) == 1:
        parts += _of_one(swept, panels[0], charts)
    else:
        parts += _of_several(swept, panels, charts)
    parts += [paragraph(text) for text in turning(swept.results)]
    if LATENCY not in swept.results:
        parts.append(_unmeasured(swept))
    return Section("accuracy", "Accuracy against what is left", joined(parts), charts)


def _alike(cells: Sequence[Cell]) -> bool:
    """Whether all settings are about as sparse: then there is nothing to draw their accuracy against."""
    sparsities = [cell.mean("final/sparsity") for cell in cells]
    return max(sparsities) - min(sparsities) < SAME_SPARSITY


def _dots(swept: Swept, panels: Sequence[str], charts: dict[str, Spec]) -> Html:
    places = []
    styles = looks(swept.methods)
    for number, panel in enumerate(panels):
        marks = {cell.method: accuracy_mark(0, cell) for cell in swept.of(panel)}
        dense = _dense(swept.of(panel))
        chart_id = f"accuracy-{number}"
        charts[chart_id] = dot_chart(marks, styles, x=Axis(ACCURACY), level=("dense", dense))
        sparsity = format_percent(swept.of(panel)[0].mean("final/sparsity"))
        title = f"{panel}: at {sparsity} sparsity"
        about = f"Test accuracy of each method: {panel}"
        places.append(place(chart_id, label=about, height=dots_height(len(marks)), title=title))
    return side_by_side(*places)


def _of_one(swept: Swept, panel: str, charts: dict[str, Spec]) -> Iterator[Html]:
    """A large chart against sparsity, its lines named at their ends if they can be, and small ones below."""
    labelled = can_label(swept.methods)
    keyed = _key(swept)
    first, *others = _measured(swept)
    if not labelled:
        yield keyed
    yield side_by_side(_placed(swept, panel, first, charts, height=TALL, labelled=labelled))
    if labelled:
        yield keyed
    yield side_by_side(*(_placed(swept, panel, other, charts, height=SMALL) for other in others))
    for quantity in (first, *others):
        yield paragraph(f"{quantity.name[0].upper()}{quantity.name[1:]}: {quantity.about}", class_="note")


def _of_several(swept: Swept, panels: Sequence[str], charts: dict[str, Spec]) -> Iterator[Html]:
    yield _key(swept)
    for quantity in _measured(swept):
        yield tag("h3", f"Against {quantity.name}")
        yield paragraph(f"{quantity.about[0].upper()}{quantity.about[1:]}", class_="note")
        yield side_by_side(*(_placed(swept, panel, quantity, charts, height=SMALL) for panel in panels))


def _placed(
    swept: Swept,
    panel: str,
    quantity: Quantity,
    charts: dict[str, Spec],
    *,
    height: int,
    labelled: bool = False,
) -> Html:
    """The place of one chart, which is put among `charts`."""
    chart_id = f"{quantity.name.lower().replace(' ', '-')}-{swept.panels.index(panel)}"
    charts[chart_id] = _chart(swept, panel, quantity, height=height, labelled=labelled)
    title = panel if len(swept.panels) > 1 else f"Against {quantity.name}"
    about = f"Test accuracy against {quantity.name}: {panel}"
    return place(chart_id, label=about, height=height, title=title, unit=ACCURACY)


def _key(swept: Swept) -> Html:
    return key(looks(swept.methods)) if len(swept.methods) <= MOST_LINES else _too_many(swept)


def _measured(swept: Swept) -> list[Quantity]:
    return [q for q in QUANTITIES if q.name != "latency" or LATENCY in swept.results]


def _note(swept: Swept, panels: Sequence[str]) -> Html:
    more = len(swept.panels) - len(panels)
    rest = f" The first {len(panels)} of {len(swept.panels)} networks are drawn." if more else ""
    text = f"Means of {spread_note(swept.finished)}; the dotted line is the dense networks' mean."
    return paragraph(f"{text}{rest}{_survivors(swept)}")


def _survivors(swept: Swept) -> str:
    if not any(SURVIVORS in cell.marks for cell in swept.cells):
        return ""
    return " Hollow points are means of survivors: other seeds of theirs were stopped early."


def _too_many(swept: Swept) -> Html:
    text = (
        f"{len(swept.methods)} methods are too many to tell apart by colour: points are drawn without lines, "
        "and say what they are when pointed at."
    )
    return paragraph(text, class_="note")


def _unmeasured(swept: Swept) -> Html:
    command = tag("code", HOW_TO_MEASURE.format(name=swept.name))
    return paragraph("Latency was not measured for this sweep; ", command, " measures it.", class_="note")


def accuracy_mark(x: float, cell: Cell, *, more: Sequence[str] = ()) -> Mark:
    """A setting's mean test accuracy in percent at `x`, with its bar."""
    values = cell.rows["final/accuracy"].tolist()
    mean, low, high = (100 * end for end in spread(values))
    bar = "" if len(values) == 1 else f", {low:.1f} to {high:.1f}"
    name = () if cell.name == cell.method else (cell.name,)
    signs = (meaning for sign, meaning in MEANINGS.items() if sign in cell.marks)
    said = (*name, f"amount {cell.amount_text}", f"accuracy {mean:.1f}%{bar}", *more, *signs)
    hollow = SURVIVORS in cell.marks
    if len(values) == 1:
        return Mark(x, mean, said=said, is_hollow=hollow)
    return Mark(x, mean, low, high, said, hollow)


def _chart(swept: Swept, panel: str, quantity: Quantity, *, height: int, labelled: bool) -> Spec:
    cells = swept.of(panel)
    lines = {
        method: sorted(_marks(swept.of(panel, method), quantity), key=lambda mark: mark.x)
        for method in dict.fromkeys(cell.method for cell in cells)
    }
    spec = line_chart(
        lines,
        looks(swept.methods),
        x=quantity.axis,
        y=Axis(ACCURACY, range=swept.accuracy_range),
        level=("dense", _dense(cells)),
        height=height,
        labelled=labelled,
    )
    if swept.searched or len(swept.methods) > MOST_LINES:
        for line in spec["data"]:
            line["mode"] = "markers"
    return spec


def _dense(cells: Sequence[Cell]) -> float:
    """Mean test accuracy of the dense networks behind these settings, in percent."""
    return 100 * sum(cell.mean("ipa/accuracy") for cell in cells) / len(cells)


def _marks(cells: Sequence[Cell], quantity: Quantity) -> Iterator[Mark]:
    for cell in cells:
        x = quantity.value(cell)
        # What has no place on a logarithmic axis, as no MAC at all, and what was not measured.
        if math.isfinite(x) and (not quantity.axis.log or 0 < x < 1e300):
            yield accuracy_mark(x, cell, more=(f"{quantity.name} {x:.4g}",))
