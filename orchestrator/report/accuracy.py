"""Accuracy against sparsity, compression, MACs, and latency where it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.notes import MEANINGS, SURVIVORS
from orchestrator.analysis.plots import spread, spread_note
from orchestrator.analysis.rankings import turning
from orchestrator.formatting import format_percent
from orchestrator.report.charts import (
    MAX_LINES,
    Axis,
    Chart,
    Point,
    can_label_ends,
    dot_chart,
    dot_chart_height,
    line_chart,
)
from orchestrator.report.components import Block, Charts, Heading, Legend, Paragraph, Section, note
from orchestrator.report.data import ReportData, Setting

MAX_PANELS = 36
LARGE, SMALL = 420, 290
SAME_SPARSITY = 0.005
ACCURACY = "test accuracy, %"
LATENCY = "final/latency_ms_p50"


@dataclass(frozen=True)
class Quantity:
    """What accuracy is drawn against."""

    name: str
    axis: Axis
    value: Callable[[Setting], float]
    description: str


QUANTITIES = (
    Quantity(
        "sparsity",
        Axis("sparsity: weights removed, %"),
        lambda setting: 100 * setting.mean("final/sparsity"),
        "Of the prunable weights, whatever was removed together.",
    ),
    Quantity(
        "compression",
        Axis("compression: all parameters / living ones", is_log=True),
        lambda setting: setting.mean("final/compression"),
        "Biases and norms are counted, so that a network with many of them compresses less.",
    ),
    Quantity(
        "effective MACs",
        Axis("effective MACs of one image", is_log=True),
        lambda setting: setting.mean("final/macs_effective"),
        "Multiply-adds on a machine that skips every dead weight; FLOPs are twice as many.",
    ),
    Quantity(
        "physical MACs",
        Axis("physical MACs of one image", is_log=True),
        lambda setting: setting.mean("final/macs_physical"),
        "Multiply-adds of the network after cutting out, on any machine: single dead weights save none.",
    ),
    Quantity(
        "latency",
        Axis("measured latency of one image, ms", is_log=True),
        lambda setting: setting.mean(LATENCY),
        "The median of the form that would be shipped, on the machine that measured it.",
    ),
)


def accuracy_section(data: ReportData) -> Section:
    """Draw accuracy against each quantity: one network in a large chart, several side by side."""
    panels = data.panels[:MAX_PANELS]
    blocks: list[Block] = [Paragraph(_introduction(data, panels))]
    if all(_has_one_sparsity(data.settings_of(panel)) for panel in panels):
        blocks.append(Charts([_dot_chart(data, number, panel) for number, panel in enumerate(panels)]))
    elif len(panels) == 1:
        blocks += _one_panel(data, panels[0])
    else:
        blocks += _several_panels(data, panels)
    blocks += [Paragraph(text) for text in turning(data.results)]
    if LATENCY not in data.results:
        command = Markup("<code>orchestrate latency {}</code>").format(data.name)
        blocks.append(
            note(Markup("Latency was not measured for this sweep; {} measures it.").format(command))
        )
    return Section("accuracy", "Accuracy against sparsity and cost", blocks)


def _introduction(data: ReportData, panels: Sequence[str]) -> str:
    text = f"Means of {spread_note(data.finished)}; the dotted line is the dense networks' mean."
    if len(data.panels) > len(panels):
        text += f" The first {len(panels)} of {len(data.panels)} networks are drawn."
    if any(SURVIVORS in setting.marks for setting in data.settings):
        text += " Hollow points are means of survivors: other seeds of theirs were stopped early."
    return text


def _has_one_sparsity(settings: Sequence[Setting]) -> bool:
    """Return whether all settings are about as sparse, so that there is no axis to draw accuracy against."""
    sparsities = [setting.mean("final/sparsity") for setting in settings]
    return max(sparsities) - min(sparsities) < SAME_SPARSITY


def _dot_chart(data: ReportData, number: int, panel: str) -> Chart:
    settings = data.settings_of(panel)
    points = {setting.method: accuracy_point(0, setting) for setting in settings}
    figure = dot_chart(points, data.styles, x=Axis(ACCURACY), reference=("dense", _dense_mean(settings)))
    return Chart(
        f"accuracy-{number}",
        figure,
        label=f"Test accuracy of each method: {panel}",
        height=dot_chart_height(len(points)),
        title=f"{panel}: at {format_percent(settings[0].mean('final/sparsity'))} sparsity",
    )


def _one_panel(data: ReportData, panel: str) -> Iterator[Block]:
    """Yield a large chart against sparsity, its lines named at their ends if they can be, and small ones."""
    has_end_labels = can_label_ends(data.methods)
    first, *others = _quantities(data)
    large = Charts([_chart(data, panel, first, height=LARGE, has_end_labels=has_end_labels)])
    # The small charts need the legend in any case.
    yield from (large, _legend(data)) if has_end_labels else (_legend(data), large)
    yield Charts([_chart(data, panel, quantity, height=SMALL) for quantity in others])
    for quantity in (first, *others):
        yield note(f"{quantity.name[0].upper()}{quantity.name[1:]}: {quantity.description}")


def _several_panels(data: ReportData, panels: Sequence[str]) -> Iterator[Block]:
    yield _legend(data)
    for quantity in _quantities(data):
        yield Heading(f"Against {quantity.name}")
        yield note(quantity.description)
        yield Charts([_chart(data, panel, quantity, height=SMALL) for panel in panels])


def _quantities(data: ReportData) -> list[Quantity]:
    return [q for q in QUANTITIES if q.name != "latency" or LATENCY in data.results]


def _legend(data: ReportData) -> Block:
    if len(data.methods) <= MAX_LINES:
        return Legend(data.styles)
    return note(
        f"{len(data.methods)} methods are too many to tell apart by colour: points are drawn without lines, "
        "and say what they are when pointed at."
    )


def _chart(
    data: ReportData, panel: str, quantity: Quantity, *, height: int, has_end_labels: bool = False
) -> Chart:
    lines = {
        method: sorted(_points(data.settings_of(panel, method), quantity), key=lambda point: point.x)
        for method in data.methods_of(panel)
    }
    figure = line_chart(
        lines,
        data.styles,
        x=quantity.axis,
        y=Axis(ACCURACY, range=data.accuracy_range),
        height=height,
        reference=("dense", _dense_mean(data.settings_of(panel))),
        has_end_labels=has_end_labels,
        has_lines=not data.is_search and len(data.methods) <= MAX_LINES,
    )
    return Chart(
        f"{quantity.name.lower().replace(' ', '-')}-{data.panels.index(panel)}",
        figure,
        label=f"Test accuracy against {quantity.name}: {panel}",
        height=height,
        title=panel if len(data.panels) > 1 else f"Against {quantity.name}",
        unit=ACCURACY,
    )


def _points(settings: Sequence[Setting], quantity: Quantity) -> Iterator[Point]:
    for setting in settings:
        x = quantity.value(setting)
        # A logarithmic axis has no place for 0 (no MAC at all); what was not measured is NaN.
        if math.isfinite(x) and (not quantity.axis.is_log or 0 < x < 1e300):
            yield accuracy_point(x, setting, extra_line=f"{quantity.name} {x:.4g}")


def accuracy_point(x: float, setting: Setting, *, extra_line: str = "") -> Point:
    """Return a setting's mean test accuracy in percent at `x`, with its bar."""
    values = setting.rows["final/accuracy"].tolist()
    has_bar = len(values) > 1
    mean, low, high = (100 * end for end in spread(values))
    hover_lines = (
        *([] if setting.name == setting.method else [setting.name]),
        f"amount {setting.amount_text}",
        f"accuracy {mean:.1f}%" + (f", {low:.1f} to {high:.1f}" if has_bar else ""),
        *([extra_line] if extra_line else []),
        *(meaning for sign, meaning in MEANINGS.items() if sign in setting.marks),
    )
    bar = (low, high) if has_bar else None
    return Point(x, mean, bar, hover_lines, is_hollow=SURVIVORS in setting.marks)


def _dense_mean(settings: Sequence[Setting]) -> float:
    """Return the mean test accuracy of the dense networks behind the settings, in percent."""
    return 100 * sum(setting.mean("ipa/accuracy") for setting in settings) / len(settings)
