"""Comparisons as tables of text, for the terminal, Markdown and the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import Interval, IntervalMethod, dense_interval, interval, interval_note
from orchestrator.analysis.notes import SURVIVORS, dense_marks, legend, marks, stopped_note
from orchestrator.analysis.paired import DENSE, Baseline, default_baseline, differences, is_equal, verdict
from orchestrator.analysis.pareto import COSTS, candidates, cost_text, members
from orchestrator.analysis.setting_means import ComparisonOptions, sparsest
from orchestrator.analysis.settings import (
    amount_label,
    dense_sets,
    join_labels,
    method_label,
    panel_title,
    point_label,
    settings,
)
from orchestrator.formatting import escape_controls, format_number, format_percent

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_METHODS = 6  # columns of a pivoted table
COSTS_HEADER: tuple[str, ...] = ("loss", "sparsity", "MACs", "MACs cut", "parameters cut", "epochs")
COSTS_HEADER += ("GFLOPs", "effective GFLOPs")
HEADER = ["method", "amount", "accuracy", *COSTS_HEADER, "seeds"]
HTML = re.compile(r"<(?=[a-zA-Z/!?])")  # where a browser would see a tag
Setting = tuple[dict[str, object], "DataFrame"]


@dataclass(frozen=True)
class Table:
    """A table of text for one network and data set, or for all; `note` says how to read it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown that holds neither HTML nor control characters."""
    blocks = []
    for table in tables:
        rows = [[_escape(text).replace("|", r"\|") for text in row] for row in (table.header, *table.rows)]
        rows.insert(1, ["---"] * len(table.header))
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        title, note = (_escape(text, allowed="\n\t") for text in (table.title, table.note))
        blocks.append(f"**{title}**\n\n{lines}" + (f"\n\n{note}" if note else ""))
    return "\n\n".join(blocks)


def tables(results: DataFrame, *, method: IntervalMethod = "t") -> list[Table]:
    """Return mean accuracies: amounts by methods where a few methods share their amounts, else by setting.

    The note of the last table names the settings that were stopped at every seed.
    """
    if objectives := results.attrs.get("objectives"):
        accuracies = [search_table(results, objectives, method=method)]
    else:
        accuracies = pivot_tables(results, method=method)
        # Else a pivoted table would be too wide, have gaps, or spend a table on one row.
        is_narrow = all(len(table.header) <= 1 + MOST_METHODS for table in accuracies)
        is_full = all(all(row) for table in accuracies for row in table.rows)
        is_deep = any(sum(row[0] != DENSE for row in table.rows) > 1 for table in accuracies)
        if not (is_narrow and is_full and is_deep):
            accuracies = setting_tables(results, method=method)
    # Stopped settings are in no table, so that a reader would not know of them.
    if not (stopped := stopped_note(results)):
        return accuracies
    if not accuracies:
        return [Table("no trial has finished", HEADER, [], stopped)]
    last = accuracies[-1]
    return [*accuracies[:-1], replace(last, note=f"{last.note} {stopped}".strip())]


def comparison_tables(results: DataFrame, options: ComparisonOptions) -> list[Table]:
    """Return a table for each of tolerance, baseline and cost that is set.

    Without any, `tables` and that of the default tolerance.
    """
    shown = []
    if options.tolerance is None and options.baseline is None and options.cost is None:
        shown, options = tables(results, method=options.method), options.with_default_tolerance()
    method, tolerance, earlier = options.method, options.tolerance, options.earlier
    if tolerance is not None:
        shown.append(sparsest_table(results, tolerance=tolerance, method=method, earlier=earlier))
    if options.baseline is not None:
        shown.append(differences_table(results, options.baseline, method=method))
    if options.cost is not None:
        shown.append(front_table(results, options.cost, method=method))
    return shown


def pivot_tables(results: DataFrame, *, method: IntervalMethod = "t") -> list[Table]:
    """Return per network a row of mean test accuracies per amount, a column per method; dense first."""
    return [_pivot_table(title, group, method) for title, group in _by_panel(results).items()]


def _pivot_table(title: str, group: Sequence[Setting], method: IntervalMethod) -> Table:
    columns = list(dict.fromkeys(method_label(setting) for setting, _ in group))
    by_amount: dict[float, dict[str, str]] = {}
    labels: dict[float, dict[str, None]] = {}
    means, dense = [], {}
    for setting, rows in group:
        amount, column = float(str(setting["amount"])), method_label(setting)
        accuracy = interval(rows["final/accuracy"].tolist(), method=method)
        by_amount.setdefault(amount, {})[column] = f"{accuracy}{marks(rows)}"
        labels.setdefault(amount, {})[amount_label(rows)] = None
        means.append(accuracy)
        if (dense_accuracy := dense_interval(rows, method=method)) is not None:
            dense[column] = f"{dense_accuracy}{dense_marks(rows)}"
            means.append(dense_accuracy)
    lines = [
        [join_labels(list(labels[amount])), *(row.get(column, "") for column in columns)]
        for amount, row in sorted(by_amount.items())
    ]
    # An amount of 0% that nothing was trained at is the dense network itself.
    if len(dense) == len(columns) and list(labels.get(0.0, ())) != ["0%"]:
        lines.insert(0, [DENSE, *(dense[column] for column in columns)])
    return with_legend(Table(f"{title}: {caption(means, method)}", ["amount", *columns], lines))


def setting_tables(results: DataFrame, *, method: IntervalMethod = "t") -> list[Table]:
    """Return per network a row per setting: accuracy, what remains, and the training since epoch one.

    Above them are the dense networks that the settings start from, each once.
    """
    return [_setting_table(title, group, method) for title, group in _by_panel(results).items()]


def _setting_table(title: str, group: Sequence[Setting], method: IntervalMethod) -> Table:
    dense_above = dict(dense_sets([rows for _, rows in group]))
    lines, means = [], []
    for number, (setting, rows) in enumerate(group):
        dense_rows = dense_above.get(number)
        if dense_rows is not None and (dense := dense_interval(dense_rows, method=method)) is not None:
            text = f"{dense}{dense_marks(dense_rows)}"
            lines.append([DENSE, "", text, *[""] * len(COSTS_HEADER), str(dense.count)])
            means.append(dense)
        accuracy = interval(rows["final/accuracy"].tolist(), method=method)
        means.append(accuracy)
        labels = [method_label(setting), amount_label(rows), f"{accuracy}{marks(rows)}"]
        lines.append([*labels, *_costs(rows), str(len(rows))])
    return with_legend(Table(f"{title}: {caption(means, method)}", HEADER, lines))


def search_table(results: DataFrame, objectives: Mapping[str, str], *, method: IntervalMethod = "t") -> Table:
    """Return a row per point of a search, the best by the first objective first."""
    first, goal = next(iter(objectives.items()))
    ranked = sorted(settings(results), key=lambda pair: pair[1][first].mean(), reverse=goal == "max")
    accuracies = [interval(rows["final/accuracy"].tolist(), method=method) for _, rows in ranked]
    lines = [
        [
            panel_title(setting),
            point_label(setting),
            amount_label(rows),
            *(format_number(float(rows[name].mean())) for name in objectives),
            f"{accuracy}{marks(rows)}",
            *_costs(rows),
            str(len(rows)),
        ]
        for (setting, rows), accuracy in zip(ranked, accuracies, strict=True)
    ]
    goals = ", ".join(f"{name}: {goal}" for name, goal in objectives.items())
    columns = (name.removeprefix("final/") for name in objectives)
    header = ["network", "method", "amount", *columns, *HEADER[2:]]
    return with_legend(Table(f"every point, by {goals}; {caption(accuracies, method)}", header, lines))


def sparsest_table(
    results: DataFrame, *, tolerance: float, method: IntervalMethod = "t", earlier: DataFrame | None = None
) -> Table:
    """Return a row per method: the highest sparsity that it reaches within the tolerance of dense.

    `earlier` are the networks of rounds before the last, as rows of `results`.
    """
    header = ["network", "method", "sparsity %", "compression", "accuracy %", "below dense", "seeds"]
    rows, shown = [], []
    for best in sparsest(results, tolerance=tolerance, method=method, earlier=earlier):
        means = (best.sparsity, best.accuracy, best.loss)
        sparsity, accuracy, loss = ("none" if mean is None else str(mean) for mean in means)
        compression = "" if best.compression is None else f"{best.compression.mean:.3g}x"
        seeds = f"{best.seeds_within} of {best.seeds}" + (SURVIVORS if best.stopped else "")
        labels = [panel_title(best.method), method_label(best.method)]
        rows.append([*labels, sparsity, compression, accuracy, loss, seeds])
        shown += [mean for mean in means if mean is not None]
    limit = f"{100 * tolerance:g} {'point' if 100 * tolerance == 1 else 'points'}"
    meaning = interval_note(shown, method=method)
    note = (
        f"Seed by seed: the sparsest network of a method, after any round of any trial, whose validation "
        f"accuracy is at most {limit} below that of the same seed's dense network; then its test accuracy, "
        "and by how many points that is below the dense network's. A seed without one counts as its dense "
        "network, at sparsity 0; the column seeds says how many have one. "
        f"{meaning[0].upper()}{meaning[1:]}."
    )
    return with_legend(Table(f"highest sparsity within {limit} of dense", header, rows, note))


def default_differences(results: DataFrame, *, method: IntervalMethod = "t") -> list[Table]:
    """Return the differences to the first value that was swept; nothing where no trials pair."""
    if results.attrs.get("objectives"):
        return []
    baseline = default_baseline(results)
    return [differences_table(results, baseline, method=method)] if differences(results, baseline) else []


def differences_table(results: DataFrame, baseline: Baseline, *, method: IntervalMethod = "t") -> Table:
    """Return a row per setting that pairs with the baseline: its gain in points of test accuracy."""
    pairs = differences(results, baseline, method=method)
    gains = [pair.difference for pair in pairs]
    rows = [
        [
            panel_title(pair.setting),
            method_label(pair.setting),
            pair.amount,
            pair.difference.text(sign="+") + pair.marks,
            str(pair.difference.count),
            pair.p_text,
        ]
        for pair in pairs
    ]
    other = "its dense network" if baseline.is_dense else baseline.text
    means = interval_note(gains, method=method).replace("over seeds", "over pairs").replace("seed", "pair")
    note = (
        f"Test accuracy minus that of {other} at the same amount and seed, all else equal, in points; "
        f"{means}. Each interval stands alone; p is corrected for all of them (Holm). {verdict(gains)}"
    )
    if any(is_equal(rows, baseline) for _, rows in settings(results)):
        note += " Amount 0% is left out where nothing was pruned on either side: equal by definition."
    header = ["network", "method", "amount", "difference", "pairs", "p, Holm"]
    return with_legend(Table(f"difference to {baseline.text}, paired by seed", header, rows, note))


def front_table(results: DataFrame, cost: str, *, method: IntervalMethod = "t") -> Table:
    """Return the Pareto front of accuracy against a cost, cheapest first within each data set."""
    front = members(candidates(results, cost, method=method))
    rows = [
        [
            str(member.setting["dataset"]),
            member.network,
            member.method,
            member.amount_text,
            cost_text(cost, member.cost),
            f"{100 * member.val_accuracy:.1f}",
            f"{member.accuracy}{member.marks}",
        ]
        for member in front
    ]
    meaning = interval_note((member.accuracy for member in front), method=method)
    note = (
        f"{cost}: {COSTS[cost].about}; means over seeds. No network of these sweeps, dense ones included, "
        "is at least as cheap and as accurate on validation images as one of these and better in one. "
        f"Test accuracy in %, {meaning}. What is equal to a dense network is left out."
    )
    header = ["data set", "network", "method", "amount", cost, "validation %", "accuracy %"]
    return with_legend(Table(f"Pareto front of accuracy against {cost}", header, rows, note))


def caption(accuracies: Iterable[Interval], method: IntervalMethod = "t") -> str:
    """Return the heading of a column of these accuracies."""
    return f"test accuracy in %, {interval_note(accuracies, method=method)}"


def with_legend(table: Table) -> Table:
    """Return the table with the meaning of its signs (†, ‡, §) at the end of its note."""
    signs = legend(text for row in table.rows for text in row)
    return replace(table, note=f"{table.note} {signs}.".strip()) if signs else table


def _by_panel(results: DataFrame) -> dict[str, list[Setting]]:
    panels: dict[str, list[Setting]] = {}
    for setting, rows in settings(results):
        panels.setdefault(panel_title(setting), []).append((setting, rows))
    return panels


def _costs(rows: DataFrame) -> list[str]:
    """The cells of COSTS_HEADER: means over seeds; MACs as fractions of the dense network's."""
    names = ("macs_dense", "macs_effective", "macs_physical", "parameters_physical", "train_flops")
    dense, effective, physical, parameters, flops = (float(rows[f"final/{name}"].mean()) for name in names)
    without_dead = rows.get("final/train_flops_effective")  # earlier versions did not count them
    return [
        f"{rows['final/loss'].mean():.3f}",
        *map(format_percent, (float(rows["final/sparsity"].mean()), effective / dense, physical / dense)),
        f"{parameters:.0f}",
        f"{rows['final/epochs'].mean():g}",
        f"{flops / 1e9:.3g}",
        "" if without_dead is None or without_dead.isna().any() else f"{without_dead.mean() / 1e9:.3g}",
    ]


def _escape(text: str, *, allowed: str = "") -> str:
    return HTML.sub("&lt;", escape_controls(text, allowed=allowed))
