"""Comparisons as tables of texts, for the terminal, for Markdown and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.analysis.comparison import ComparisonOptions, sparsest
from orchestrator.analysis.intervals import Interval, IntervalMethod, dense_interval, interval, meaning
from orchestrator.analysis.markdown import markdown as markdown
from orchestrator.analysis.notes import SURVIVORS, dense_marks, legend, marks, stopped_note
from orchestrator.analysis.paired import DENSE, Baseline, default_baseline, differences, is_equal, verdict
from orchestrator.analysis.pareto import COSTS, candidates, cost_text, members
from orchestrator.analysis.settings import (
    amount_label,
    dense_sets,
    either,
    method_label,
    panel_title,
    point_label,
    settings,
)
from orchestrator.formatting import format_percent

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_METHODS = 6  # columns of a pivoted table
LISTED = [
    "method",
    "amount",
    "accuracy",
    "loss",
    "sparsity",
    "MACs",
    "MACs cut",
    "parameters cut",
    "epochs",
    "GFLOPs",
    "seeds",
]


@dataclass(frozen=True)
class Table:
    """A table of texts for one network and data set, or for all; `note` says how to read it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def caption(found: Iterable[Interval], how: IntervalMethod = "t") -> str:
    """What stands in a column of accuracies, these intervals."""
    return f"test accuracy in %, {meaning(found, how=how)}"


def with_legend(table: Table) -> Table:
    """The table with the meaning of the signs that stand in it, at the end of its note."""
    signs = legend(cell for row in table.rows for cell in row)
    return replace(table, note=f"{table.note} {signs}.".strip()) if signs else table


def tables(results: DataFrame, *, how: IntervalMethod = "t") -> list[Table]:
    """Mean accuracies; the note of the last names the settings that were stopped at every seed."""
    found = _accuracies(results, how)
    if (stopped := stopped_note(results)) and not found:
        return [Table("no trial has finished", LISTED, [], stopped)]
    if stopped:
        found[-1] = replace(found[-1], note=f"{found[-1].note} {stopped}".strip())
    return found


def _accuracies(results: DataFrame, how: IntervalMethod) -> list[Table]:
    """Amounts by methods, where a few methods share their amounts; else a row per setting."""
    if objectives := results.attrs.get("objectives"):
        return [searched(results, objectives, how=how)]
    few = pivoted(results, how=how)
    narrow = all(len(table.header) <= 1 + MOST_METHODS for table in few)
    full = all(all(row) for table in few for row in table.rows)
    deep = any(sum(row[0] != DENSE for row in table.rows) > 1 for table in few)
    return few if narrow and full and deep else listed(results, how=how)


def comparison_tables(results: DataFrame, asked: ComparisonOptions) -> list[Table]:
    """`tables`, and one table for each thing that is asked."""
    found = tables(results, how=asked.method)
    if asked.tolerance is not None:
        found.append(
            sparsest_table(results, tolerance=asked.tolerance, how=asked.method, earlier=asked.earlier)
        )
    if asked.baseline is not None:
        found.append(differences_table(results, asked.baseline, how=asked.method))
    if asked.cost is not None:
        found.append(front_table(results, asked.cost, how=asked.method))
    return found


def differences_asked(results: DataFrame, *, how: IntervalMethod = "t") -> list[Table]:
    """Paired differences to the first value of what was swept, where there is anything to compare."""
    if results.attrs.get("objectives"):
        return []
    baseline = default_baseline(results)
    return [differences_table(results, baseline, how=how)] if differences(results, baseline) else []


def pivoted(results: DataFrame, *, how: IntervalMethod = "t") -> list[Table]:
    """A row of mean test accuracies per amount, a column per method; the dense networks above them."""
    panels: dict[str, list[tuple[dict[str, object], DataFrame]]] = {}
    for setting, rows in settings(results):
        panels.setdefault(panel_title(setting), []).append((setting, rows))
    return [_pivoted(title, cells, how) for title, cells in panels.items()]


def _pivoted(title: str, cells: Sequence[tuple[dict[str, object], DataFrame]], how: IntervalMethod) -> Table:
    columns = list(dict.fromkeys(method_label(setting) for setting, _ in cells))
    by_amount: dict[float, dict[str, str]] = {}
    labels: dict[float, dict[str, None]] = {}
    found, dense = [], {}
    for setting, rows in cells:
        amount, method = float(str(setting["amount"])), method_label(setting)
        accuracy = interval(rows["final/accuracy"].tolist(), how=how)
        by_amount.setdefault(amount, {})[method] = f"{accuracy}{marks(rows)}"
        labels.setdefault(amount, {})[amount_label(rows)] = None
        found.append(accuracy)
        if (above := dense_interval(rows, how=how)) is not None:
            dense[method] = f"{above}{dense_marks(rows)}"
            found.append(above)
    lines = [
        [either(list(labels[amount])), *(row.get(method, "") for method in columns)]
        for amount, row in sorted(by_amount.items())
    ]
    if len(dense) == len(columns) and list(labels.get(0.0, ())) != ["0%"]:
        lines.insert(0, [DENSE, *(dense[method] for method in columns)])
    return with_legend(Table(f"{title}: {caption(found, how)}", ["amount", *columns], lines))


def listed(results: DataFrame, *, how: IntervalMethod = "t") -> list[Table]:
    """A row per setting: how well it does, what is left of it, and what it has cost since the first epoch.

    The dense networks that the settings come from stand above them, each once.
    """
    panels: dict[str, list[tuple[dict[str, object], DataFrame]]] = {}
    for setting, rows in settings(results):
        panels.setdefault(panel_title(setting), []).append((setting, rows))
    return [_listed(title, cells, how) for title, cells in panels.items()]


def _listed(title: str, cells: Sequence[tuple[dict[str, object], DataFrame]], how: IntervalMethod) -> Table:
    above = dict(dense_sets([rows for _, rows in cells]))
    lines, shown = [], []
    for number, (setting, rows) in enumerate(cells):
        if number in above and (dense := dense_interval(above[number], how=how)) is not None:
            text = f"{dense}{dense_marks(above[number])}"
            lines.append([DENSE, "", text, *[""] * (len(LISTED) - 4), str(dense.count)])
            shown.append(dense)
        accuracy = interval(rows["final/accuracy"].tolist(), how=how)
        shown.append(accuracy)
        method = [method_label(setting), amount_label(rows), f"{accuracy}{marks(rows)}"]
        lines.append([*method, *_costs(rows), str(len(rows))])
    return with_legend(Table(f"{title}: {caption(shown, how)}", LISTED, lines))


def searched(results: DataFrame, objectives: Mapping[str, str], *, how: IntervalMethod = "t") -> Table:
    """A row per point of a search, the best by the first objective first."""
    first, way = next(iter(objectives.items()))
    own = [name.removeprefix("final/") for name in objectives]
    found = sorted(settings(results), key=lambda pair: float(pair[1][first].mean()), reverse=way == "max")
    accuracies = [interval(rows["final/accuracy"].tolist(), how=how) for _, rows in found]
    lines = [
        [
            panel_title(setting),
            point_label(setting),
            amount_label(rows),
            *(figure(float(rows[name].mean())) for name in objectives),
            f"{accuracy}{marks(rows)}",
            *_costs(rows),
            str(len(rows)),
        ]
        for (setting, rows), accuracy in zip(found, accuracies, strict=True)
    ]
    goals = ", ".join(f"{name}: {way}" for name, way in objectives.items())
    header = ["network", "method", "amount", *own, *LISTED[2:]]
    return with_legend(Table(f"every point, by {goals}; {caption(accuracies, how)}", header, lines))


def _costs(rows: DataFrame) -> list[str]:
    def mean(name: str) -> float:
        return float(rows[f"final/{name}"].mean())

    return [
        f"{mean('loss'):.3f}",
        format_percent(mean("sparsity")),
        format_percent(mean("macs_effective") / mean("macs_dense")),
        format_percent(mean("macs_physical") / mean("macs_dense")),
        f"{mean('parameters_physical'):.0f}",
        f"{mean('epochs'):g}",
        f"{mean('train_flops') / 1e9:.3g}",
    ]


def sparsest_table(
    results: DataFrame, *, tolerance: float, how: IntervalMethod = "t", earlier: DataFrame | None = None
) -> Table:
    """A row per method: the highest sparsity that it reaches within the tolerance of dense.

    `earlier` are the networks of rounds before the last, as rows of `results`.
    """
    header = ["network", "method", "sparsity %", "compression", "accuracy %", "below dense", "seeds"]
    rows, shown = [], []
    for found in sparsest(results, tolerance=tolerance, how=how, earlier=earlier):
        compression = "" if found.compression is None else f"{found.compression.mean:.3g}x"
        means = [_or_none(found.sparsity), compression, _or_none(found.accuracy), _or_none(found.loss)]
        seeds = f"{found.found} of {found.seeds}" + (SURVIVORS if found.stopped else "")
        rows.append([panel_title(found.method), method_label(found.method), *means, seeds])
        shown += [one for one in (found.sparsity, found.accuracy, found.loss) if one is not None]
    limit = f"{100 * tolerance:g} {points(100 * tolerance)}"
    note = (
        f"Seed by seed: the sparsest network of a method, after any round of any trial, whose validation "
        f"accuracy is at most {limit} below that of the same seed's dense network; then its test accuracy, "
        "and by how many points that is below the dense network's. A seed without one counts as its dense "
        f"network, at sparsity 0; `seeds` says how many have one. {_sentence(meaning(shown, how=how))}"
    )
    return with_legend(Table(f"highest sparsity within {limit} of dense", header, rows, note))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _or_none(found: Interval | None) -> str:
    return "none" if found is None else str(found)


def points(number: float) -> str:
    """The word that goes with a number of percentage points."""
    return "point" if number == 1 else "points"


def differences_table(results: DataFrame, baseline: Baseline, *, how: IntervalMethod = "t") -> Table:
    """A row per setting that pairs with the baseline: how much better it is, in points of test accuracy."""
    every = differences(results, baseline, how=how)
    rows = [
        [
            panel_title(found.setting),
            method_label(found.setting),
            found.amount,
            found.difference.text(sign="+") + found.marks,
            str(found.difference.count),
            found.p_text,
        ]
        for found in every
    ]
    other = "its dense network" if baseline.is_dense else baseline.text
    means = meaning((found.difference for found in every), how=how)
    note = (
        f"Test accuracy minus that of {other} at the same amount and seed, all else equal, in points; "
        f"{means.replace('over seeds', 'over pairs').replace('seed', 'pair')}. Each interval stands alone; p "
        f"is corrected for all of them (Holm). {verdict([found.difference for found in every])}"
    )
    if any(is_equal(rows, baseline) for _, rows in settings(results)):
        note += " Amount 0% is left out where nothing was pruned on either side: equal by definition."
    header = ["network", "method", "amount", "difference", "pairs", "p, Holm"]
    return with_legend(Table(f"difference to {baseline.text}, paired by seed", header, rows, note))


def front_table(results: DataFrame, cost: str, *, how: IntervalMethod = "t") -> Table:
    """The Pareto front, cheapest first within each data set."""
    front = members(candidates(results, cost, how=how))
    rows = [
        [
            str(one.setting["dataset"]),
            one.network,
            one.method,
            one.amount_text,
            cost_text(cost, one.cost),
            f"{100 * one.val_accuracy:.1f}",
            f"{one.accuracy}{one.marks}",
        ]
        for one in front
    ]
    note = (
        f"{cost}: {COSTS[cost].about}; means over seeds. No network of these sweeps, dense ones included, "
        "is at least as cheap and as accurate on validation images as one of these and better in one. "
        f"{_sentence(caption((one.accuracy for one in front), how))} What is equal to a dense network is "
        "left out."
    )
    header = ["data set", "network", "method", "amount", cost, "validation %", "accuracy %"]
    return with_legend(Table(f"Pareto front of accuracy against {cost}", header, rows, note))


def figure(value: float) -> str:
    """A number of any size: `0.9556`, `134,975`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
