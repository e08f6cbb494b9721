"""Differences to a baseline, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.paired import Baseline, Difference, default_baseline, differences
from orchestrator.analysis.settings import method_label, panel_title
from orchestrator.analysis.tables import differences_table
from orchestrator.report.charts import Axis, Looks, Spec, key, looks
from orchestrator.report.markup import Html, joined, paragraph, tag, texts_table
from orchestrator.report.plots import Mark, dot_chart, dots_height, line_chart
from orchestrator.report.section import Section, Wanted, place, side_by_side
from orchestrator.report.swept import Swept

MOST_PANELS, MOST_ROWS, MOST_LINES = 12, 40, 14
TALL, SMALL = 360, 270
UNIT = "difference in test accuracy, points"


def paired_differences(swept: Swept, wanted: Wanted) -> Section | None:
    """A chart per network with the amount along it; None where nothing pairs, as in a search."""
    if swept.searched:
        return None
    baseline = wanted.baseline or default_baseline(swept.results)
    found = differences(swept.results, baseline, method=wanted.how)
    if not found:
        return None
    by_panel: dict[str, list[Difference]] = {}
    for one in found:
        by_panel.setdefault(panel_title(one.setting), []).append(one)
    charts: dict[str, Spec] = {}
    places = [
        _placed(number, panel, mine, looks(swept.methods), baseline, charts, alone=len(by_panel) == 1)
        for number, (panel, mine) in enumerate(list(by_panel.items())[:MOST_PANELS])
    ]
    table = differences_table(swept.results, baseline, method=wanted.how)
    numbers = tag(
        "details",
        tag("summary", "The numbers"),
        texts_table(swept.told(table), texts=swept.texts, most=MOST_ROWS),
    )
    text = (paragraph(_introduction(baseline)), paragraph(table.note, class_="note"))
    shown = looks(swept.methods)
    said = {method_label(one.setting) for one in found}
    keyed = key({name: look for name, look in shown.items() if name in said})
    any_lines = any(not _dotted(mine) for mine in by_panel.values()) and len(said) <= MOST_LINES
    parts = (*text, keyed if any_lines else Html(""), side_by_side(*places), numbers)
    return Section("differences", f"Seed by seed against {_short(baseline)}", joined(parts), charts)


def _dotted(found: Sequence[Difference]) -> bool:
    """Whether each method has one amount only: then they stand in rows."""
    return len({method_label(one.setting) for one in found}) == len(found)


def _placed(
    number: int,
    panel: str,
    found: Sequence[Difference],
    styles: Looks,
    baseline: Baseline,
    charts: dict[str, Spec],
    *,
    alone: bool,
) -> Html:
    """The place of one network's chart, which is put among `charts`."""
    chart_id = f"difference-{number}"
    about = f"{UNIT}, to {baseline.text}: {panel}"
    title = "" if alone else panel
    level = (_short(baseline), 0.0)
    methods = list(dict.fromkeys(method_label(one.setting) for one in found))
    if _dotted(found):
        marks = {method: _marks(found, method)[0] for method in methods}
        charts[chart_id] = dot_chart(marks, styles, x=Axis(UNIT), level=level)
        return place(chart_id, label=about, height=dots_height(len(marks)), title=title)
    height = TALL if alone else SMALL
    charts[chart_id] = line_chart(
        {method: _marks(found, method) for method in methods},
        styles,
        x=Axis(_amount_title(found)),
        y=Axis(UNIT),
        level=level,
        height=height,
    )
    return place(chart_id, label=about, height=height, title=title, unit=UNIT)


def _amount_title(found: Sequence[Difference]) -> str:
    ceiling = any(one.amount.startswith("by ") for one in found)
    return "amount asked for, %" + (" (the most that an adaptive schedule may take)" if ceiling else "")


def _short(baseline: Baseline) -> str:
    """Its values, which say it all to a reader of the charts."""
    return "dense" if baseline.is_dense else ", ".join(map(str, baseline.values.values()))


def _introduction(baseline: Baseline) -> str:
    if baseline.is_dense:
        return "Each network against the dense network that it comes from, in points of test accuracy."
    return (
        f"Each network against the one with {baseline.text} at the same amount, in points of test accuracy. "
        "A pair shares its seed, and its dense network wherever that is not what differs, so that most of "
        "the spread between seeds cancels."
    )


def _marks(found: Sequence[Difference], method: str) -> list[Mark]:
    marks = []
    for one in found:
        if method_label(one.setting) == method:
            amount = float(str(one.setting["amount"]))
            gain = one.difference
            low, high = (None if end is None else 100 * end for end in (gain.low, gain.high))
            said = (f"amount {one.amount}", f"{gain.text(sign='+')} points, {gain.count} pairs")
            marks.append(Mark(100 * amount, 100 * gain.mean, low, high, said))
    return sorted(marks, key=lambda mark: mark.x)
